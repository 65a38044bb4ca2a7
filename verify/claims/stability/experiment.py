"""What the study measures on one split of each data set: agreement over seeds, truth by retraining, flipped labels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adamshap import gpu
from adamshap.reference.contract import Adam, Array, Batch, Network
from adamshap.verify.claims import data
from adamshap.verify.claims.downstream import flip
from adamshap.verify.claims.stability import agreement, baselines, retraining, runs, weightings
from adamshap.verify.claims.stability.runs import SCORES, Kept, Training
from adamshap.verify.claims.stability.settings import Case, Settings
from adamshap.verify.claims.stability.tasks import load
from adamshap.verify.claims.statistics import Record, auc, pearson, spearman

GROUPS = (1, 3, 5, 10)
"""Numbers of runs whose mean is compared with that of as many others."""
AVERAGED = 5
"""Number of runs whose mean is compared with truths and baselines."""
CARRY = "carry"
HALVES, LEFT_OUT, RETRAINED = 1, 2, 10_000  # streams of random numbers, and the first seed of retrainings


def measure(settings: Settings, seed: int) -> list[Record]:
    """Return the records of split `seed` of every data set."""
    return [record for case in settings.cases for record in _case(settings, case, seed)]


@dataclass(frozen=True, eq=False)
class Study:
    """A split of a data set, and the training that it gets."""

    settings: Settings
    case: Case
    split: int
    task: data.Task
    network: Network

    def record(self, part: str, **values: Any) -> Record:
        """Return a record of the study's data set and split."""
        return {"part": part, "task": self.case.name, "seed": self.split, **values}

    def usual(self) -> Training:
        """Return the training of the case."""
        return Training(self.case.epochs, self.settings.batch_size, self.settings.lr)

    def train(self, start: int, order: int, training: Training | None = None) -> Kept:
        """Return the run of the initialisation `start` and the order `order`."""
        data = self.task.train, self.task.valid
        return runs.train(self.network, *data, training or self.usual(), start=start, order=order)

    def halves(self, halves: int, retrainings: int, training: Training) -> tuple[Array, Array]:
        """Return masks of random halves, and the losses of networks trained on them."""
        masks = retraining.half_masks(self.task.train.n, halves, np.random.default_rng([self.split, HALVES]))
        losses = retraining.losses_of_halves(
            self.network,
            self.task.train,
            self.task.valid,
            masks,
            training,
            retrainings=retrainings,
            first_seed=RETRAINED,
        )
        return masks, losses

    def length(self) -> int:
        """Return the length of the lists compared."""
        return agreement.list_length(self.task.train.n, self.settings.top)


def _case(settings: Settings, case: Case, split: int) -> Iterator[Record]:
    task = load(case, split)
    study = Study(settings, case, split, task, task.network(settings.hidden))
    kept = [study.train(seed, seed) for seed in range(case.runs)]
    yield from _over_seeds(study, kept)
    yield from _one_varies(study)
    masks, losses = study.halves(case.halves, case.retrainings, study.usual())
    yield study.record("noise", truth="halves", ceiling=retraining.ceiling(losses), retrainings=len(losses))
    candidates = dict(_candidates(study, kept))
    for (score, weighting, averaged), values in candidates.items():
        for number, totals in enumerate(values):
            lds = retraining.datamodeling_score(totals, masks, losses)
            yield study.record("halves", score=score, weighting=weighting, runs=averaged, number=number, spearman=lds)
    if case.left_out:
        yield from _left_out(study, candidates)
    if case.flipped_runs and task.loss != "mse":
        yield from _flipped(study)
    if case.variants:
        yield from _variants(study, kept, (masks, losses))


# --- over seeds ------------------------------------------------------------------------------------------------------


def _ways(study: Study, kept: Sequence[Kept]) -> Iterator[tuple[str, str, list[Array]]]:
    """Yield a score, a weighting, and the totals of each run."""
    for score in SCORES:
        for weighting in weightings.WEIGHTINGS:
            yield score, weighting, [weightings.totals(run, score, weighting) for run in kept]
        if study.task.loss != "mse":
            y = study.task.train.y
            unit = [weightings.totals(run, score, weightings.UNIT) for run in kept]
            yield score, weightings.WITHIN, [weightings.within_classes(totals, y) for totals in unit]


def _over_seeds(study: Study, kept: Sequence[Kept]) -> Iterator[Record]:
    for score, weighting, totals in _ways(study, kept):
        for averaged in GROUPS:
            means = agreement.means(totals, averaged)
            if len(means) >= 2:
                found = agreement.agreement(means, study.length())
                yield study.record("seeds", score=score, weighting=weighting, varies="both", runs=averaged, **found)
        of_first = [first_batch_in_top(run, values) for run, values in zip(kept, totals, strict=True)]
        if weighting in weightings.WEIGHTINGS:
            share = float(np.mean([first_step_share(run, score, weighting) for run in kept]))
            chance = agreement.list_length(study.task.train.n, TOP) * study.settings.batch_size / study.task.train.n
            yield study.record(
                "first batch",
                score=score,
                weighting=weighting,
                in_top=float(np.mean(of_first)),
                chance=chance,
                share=share,
            )


TOP = 10
"""Length of the list in which samples of the first batch are counted."""


def first_batch_in_top(run: Kept, totals: Array) -> int:
    """Return how many of the `TOP` highest totals are of samples of the first batch."""
    top = agreement.highest(totals, agreement.list_length(run.count, TOP))
    return int(np.isin(top, run.first_batch()).sum())


def first_step_share(run: Kept, score: str, weighting: str) -> float:
    """Return the first step's share of Σ score² over all samples and steps, with the weights of `weighting`."""
    weights = weightings.WEIGHTINGS[weighting](run, score)
    squares = np.nansum((run.steps[score] * weights[:, None]) ** 2, axis=1)
    return float(squares[0] / squares.sum()) if squares.any() else float("nan")


def _one_varies(study: Study) -> Iterator[Record]:
    """Yield agreement where the initialisation alone, or the order alone, differs."""
    numbers = range(1, study.case.one_varies + 1)
    for varies, kept in (
        ("initialisation", [study.train(number, 0) for number in numbers]),
        ("order", [study.train(0, number) for number in numbers]),
    ):
        if len(kept) >= 2:
            for score, weighting, totals in _ways(study, kept):
                found = agreement.agreement(totals, study.length())
                yield study.record("seeds", score=score, weighting=weighting, varies=varies, runs=1, **found)


# --- truth by retraining ---------------------------------------------------------------------------------------------


def _candidates(study: Study, kept: Sequence[Kept]) -> Iterator[tuple[tuple[str, str, int], list[Array]]]:
    """Yield scores to compare with a truth: name, weighting and number of runs averaged, and one or more totals."""
    for score, weighting, totals in _ways(study, kept):
        for averaged in (1, AVERAGED):
            yield (score, weighting, averaged), agreement.means(totals, averaged)
    for name, values in baselines.of_data(study.task.train, study.task.valid).items():
        yield (name, "", 0), [values]
    for name, each in _of_networks(study, kept).items():
        for averaged in (1, AVERAGED):
            yield (name, "", averaged), agreement.means(each, averaged)
    if study.case.carry:
        carried = [_carried(study, seed) for seed in range(study.settings.carry_runs)]
        yield (CARRY, weightings.SUM, 1), carried


def _of_networks(study: Study, kept: Sequence[Kept]) -> Mapping[str, list[Array]]:
    """Return the scores of the first `AVERAGED` trained networks, by name."""
    found: dict[str, list[Array]] = {}
    for number, run in enumerate(kept[:AVERAGED]):
        of_one = baselines.of_network(
            study.network, run.params, study.task.train, study.task.valid, study.settings.projections, number
        )
        for name, values in of_one.items():
            found.setdefault(name, []).append(values)
    return found


def _carried(study: Study, seed: int) -> Array:
    totals: Array = gpu.attribute(
        study.network,
        Adam(lr=study.settings.lr),
        study.task.train,
        study.task.valid,
        epochs=study.case.epochs,
        batch_size=study.settings.batch_size,
        seed=seed,
        credit="carry",
        device="cpu",
    ).scores
    return totals


def _left_out(study: Study, candidates: Mapping[tuple[str, str, int], list[Array]]) -> Iterator[Record]:
    generator = np.random.default_rng([study.split, LEFT_OUT])
    samples = generator.permutation(study.task.train.n)[: study.case.left_out]
    effects = np.array(
        [
            retraining.leave_one_out(
                study.network,
                study.task.train,
                study.task.valid,
                samples,
                study.usual(),
                seed=RETRAINED + number,
            )
            for number in range(study.case.leave_one_out_seeds)
        ]
    )
    yield study.record("noise", truth="one left out", ceiling=retraining.ceiling(effects), retrainings=len(effects))
    truth = effects.mean(axis=0)
    for (score, weighting, averaged), values in candidates.items():
        for number, totals in enumerate(values):
            found = {"spearman": spearman(totals[samples], truth), "pearson": pearson(totals[samples], truth)}
            yield study.record("one left out", score=score, weighting=weighting, runs=averaged, number=number, **found)


# --- flipped labels --------------------------------------------------------------------------------------------------


def _flipped(study: Study) -> Iterator[Record]:
    train = study.task.train
    flipped, labels = flip(train.y, study.task.outputs, study.settings.flipped, study.split)
    wrong = replace(
        study, task=replace(study.task, train=Batch(train.x, labels)), case=replace(study.case, carry=False)
    )
    kept = [wrong.train(seed, seed) for seed in range(study.case.flipped_runs)]
    for (score, weighting, averaged), values in _candidates(wrong, kept):
        for number, totals in enumerate(values):
            found = auc(-totals, flipped)
            yield study.record("flips", score=score, weighting=weighting, runs=averaged, number=number, auc=found)


# --- other training --------------------------------------------------------------------------------------------------


def _variants(study: Study, kept: Sequence[Kept], halves: tuple[Array, Array]) -> Iterator[Record]:
    """Yield agreement and datamodeling scores of runs with one setting changed, with halves retrained alike.

    `kept` and `halves` are those without a change.
    """
    settings, usual = study.settings, study.usual()
    for name, training in {"no change": usual, **changed(usual)}.items():
        its_runs = [study.train(seed, seed, training) for seed in range(settings.variant_runs)]
        if name == "no change":
            its_runs = list(kept[: settings.variant_runs])
        if replace(training, slope=usual.slope) == usual:
            masks, losses = halves
        else:
            masks, losses = study.halves(settings.variant_halves, settings.variant_retrainings, training)
        for score in SCORES if training.slope == usual.slope else SCORES[:1]:  # SGD's formula has no other slope
            for weighting in (weightings.SUM, weightings.RATE, weightings.UNIT):
                if weighting == weightings.RATE and not training.scheduled:
                    continue
                totals = [weightings.totals(run, score, weighting) for run in its_runs]
                alone = [retraining.datamodeling_score(one, masks, losses) for one in totals]
                yield study.record(
                    "variants",
                    variant=name,
                    score=score,
                    weighting=weighting,
                    halves=float(np.mean(alone)),
                    halves_of_mean=retraining.datamodeling_score(np.mean(totals, axis=0), masks, losses),
                    ceiling=retraining.ceiling(losses),
                    **agreement.agreement(totals, study.length()),
                )


def changed(usual: Training) -> dict[str, Training]:
    """Return `usual` with one setting changed, by name."""
    return {
        "batch 16": replace(usual, batch_size=16),
        "batch 128": replace(usual, batch_size=128),
        f"{3 * usual.epochs} epochs": replace(usual, epochs=3 * usual.epochs),
        "η rises for an epoch, then falls": replace(usual, scheduled=True),
        "`secant`": replace(usual, slope="secant"),
        "`linearized`": replace(usual, slope="linearized"),
    }
