"""Print what can be decided with scores and what a cheap baseline decides, judged by retraining, for docs/decide.md.

python docs/decide.py            # all tables; minutes
python docs/decide.py sources    # one of them
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from adamshap import gpu
from adamshap.reference import Adam, Batch, Network, Run
from adamshap.reference.command import simulated_sources
from adamshap.reference.contract import Array, Params
from adamshap.reference.models import mean_loss, outputs
from adamshap.reference.weighting import WEIGHTINGS, weighted, weighted_steps
from adamshap.verify.claims.downstream import flip
from adamshap.verify.claims.stability import baselines, retraining
from adamshap.verify.claims.statistics import auc, spearman

NETWORK = Network((64, 64, 64, 10), "tanh")
ADAM = Adam(lr=1e-3)
EPOCHS, BATCH = 5, 32
RUNS, RETRAININGS, SPLITS = 3, 3, 3
OURS, CONFIDENCE, NEIGHBOURS, TRUSTED, ALONE = (
    "score",
    "out-of-fold confidence",
    "kNN-Shapley",
    "model of the validation set",
    "model of the source alone",
)


# --- runs, retrainings and baselines ---------------------------------------------------------------------------------


def one_run(train: Batch, valid: Batch, seed: int, epochs: int = EPOCHS, **options: Any) -> Run:
    """Return a run that keeps every step's scores."""
    settings: dict[str, Any] = {"epochs": epochs, "batch_size": BATCH, "keep_step_scores": True, "device": "cpu"}
    return gpu.attribute(NETWORK, ADAM, train, valid, seed=seed, **settings, **options)


def runs(train: Batch, valid: Batch, epochs: int = EPOCHS, **options: Any) -> list[Run]:
    """Return runs of different seeds, as ``adamshap attribute --seeds 3`` makes them."""
    return [one_run(train, valid, seed, epochs, **options) for seed in range(RUNS)]


def mean_score(found: Sequence[Run]) -> Array:
    """Return the mean over runs of the weighted scores, each run's in units of its root mean square."""
    scores = [weighted(run, "unit") for run in found]
    return np.mean([one / np.sqrt(np.mean(one**2)) for one in scores], axis=0)


def drawn(mask: Array, steps: int, generator: np.random.Generator) -> Array:
    """Return batches (steps, batch) of the samples of `mask`, epoch after epoch."""
    members, count = np.flatnonzero(mask), steps * BATCH
    orders = [generator.permutation(members) for _ in range(-(-count // len(members)))]
    return np.concatenate(orders)[:count].reshape(steps, BATCH)


def retrained(train: Batch, phases: Sequence[Sequence[Array]]) -> list[list[Params]]:
    """Return the trained parameters of each set of phases, from each initialisation.

    A phase is a mask of the samples that it trains on; the phases of a set divide the steps, whose number is that of
    `EPOCHS` epochs of all samples (for each phase), whatever the mask.
    """
    steps = EPOCHS * -(-train.n // BATCH)
    found: list[list[Params]] = [[] for _ in phases]
    for seed in range(1000, 1000 + RETRAININGS):
        for at in range(0, len(phases), retraining.AT_ONCE):
            part = phases[at : at + retraining.AT_ONCE]
            # The same stream for all, so that they differ as little as their samples do.
            batches = []
            for masks in part:
                generator = np.random.default_rng(seed)
                batches.append(np.concatenate([drawn(mask, steps, generator) for mask in masks]))
            index = np.stack(batches, axis=1)
            weight = np.full(index.shape, 1 / BATCH)
            theta = retraining.trained(NETWORK, ADAM, train, index, weight, NETWORK.init(seed))
            for place in range(len(part)):
                found[at + place].append(retraining.params_of(NETWORK, theta, place))
    return found


def losses(networks: Sequence[Sequence[Params]], test: Batch) -> Array:
    """Return the mean losses (sets, initialisations) on `test`."""
    return np.array([[mean_loss(NETWORK, params, test) for params in one] for one in networks])


def accuracies(networks: Sequence[Sequence[Params]], test: Batch) -> Array:
    """Return the accuracies (sets, initialisations) on `test`."""
    return np.array(
        [[(outputs(NETWORK, params, test.x).argmax(axis=1) == test.y).mean() for params in one] for one in networks]
    )


def trusted(train: Batch, valid: Batch) -> Array:
    """Return the confidence in each training label of a logistic regression that saw the validation set alone."""
    model = LogisticRegression(max_iter=1000).fit(valid.x, valid.y)
    return own_confidence(model, train)


def own_confidence(model: LogisticRegression, batch: Batch) -> Array:
    """Return the probability of each sample's label; 0 for a class that `model` does not know."""
    full = np.zeros((batch.n, 10))
    full[:, model.classes_] = model.predict_proba(batch.x)
    return full[np.arange(batch.n), batch.y]


def of_samples(train: Batch, valid: Batch) -> dict[str, Array]:
    """Return our scores of samples and those of the baselines, high for helpful."""
    cheap = baselines.of_data(train, valid)
    return {
        OURS: mean_score(runs(train, valid)),
        CONFIDENCE: cheap[CONFIDENCE],
        NEIGHBOURS: cheap[NEIGHBOURS],
        TRUSTED: trusted(train, valid),
    }


# --- tables ----------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def spread(values: Array, digits: int = 3, sign: str = "") -> str:
    """Return mean ± standard error."""
    values = np.asarray(values, float).ravel()
    error = values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():{sign}.{digits}f} ± {error:.{digits}f}"


# --- sources ---------------------------------------------------------------------------------------------------------


def parts(seed: int, target: str) -> tuple[Batch, Batch, Batch, Array]:
    """Return training, validation and test samples with the training samples' sources, the last two of `target`."""
    split = simulated_sources.split(seed)
    change = simulated_sources.CHANGES[target]
    valid, test = (split.valid_x, split.valid_y), (split.test_x, split.test_y)
    batches = standardised((split.x, split.y), *((change(x), y) for x, y in (valid, test)))
    return *batches, split.source


def upright(seed: int) -> tuple[Batch, Batch, Batch]:
    """Return training, validation and test samples of upright digits with right labels."""
    return standardised(*simulated_sources.upright(seed))


def standardised(*pairs: tuple[Array, Array]) -> tuple[Batch, Batch, Batch]:
    """Return training, validation and test samples with inputs of mean 0 and deviation 1 in the first."""
    mean, scale = pairs[0][0].mean(axis=0), pairs[0][0].std(axis=0)
    scale = np.where(scale == 0, 1.0, scale)
    train, valid, test = (Batch((x - mean) / scale, y) for x, y in pairs)
    return train, valid, test


def per_source(values: Array, source: Array) -> Array:
    """Return each source's mean."""
    return np.array([values[source == name].mean() for name in simulated_sources.SOURCES])


def alone(train: Batch, valid: Batch, source: Array) -> Array:
    """Return minus the validation loss of a logistic regression of each source alone."""
    found = []
    for name in simulated_sources.SOURCES:
        mine = source == name
        model = LogisticRegression(max_iter=1000).fit(train.x[mine], train.y[mine])
        found.append(np.log(np.maximum(own_confidence(model, valid), 1e-12)).mean())
    return np.array(found)


def sources() -> None:
    """Print what each source does to the test loss, beside the scores; and the tests of dropping some."""
    for target, trusts in (("upright", 200), ("upright", 20), ("mirrored", 200)):
        values: dict[str, list[Array]] = {}
        effects, kept, dropped = [], {}, []
        for seed in range(SPLITS):
            train, valid, test, source = parts(seed, target)
            valid = valid.take(np.arange(trusts))
            mine = {name: per_source(one, source) for name, one in of_samples(train, valid).items()}
            mine[ALONE] = alone(train, valid, source)
            without = [source != name for name in simulated_sources.SOURCES]
            everyone = np.ones(train.n, bool)
            worst = int((mine[OURS] < 0).sum())
            dropped.append(str(worst))
            chosen = {
                name: ~np.isin(source, np.array(simulated_sources.SOURCES)[np.argsort(one)[:worst]])
                for name, one in mine.items()
            }
            networks = retrained(train, [[mask] for mask in (everyone, *without, *chosen.values())])
            found, right = losses(networks, test), accuracies(networks, test)
            count = 1 + len(without)
            effects.append((found[1:count] - found[0]).mean(axis=1))
            for name, one in mine.items():
                values.setdefault(name, []).append(one)
            for place, name in enumerate(("nothing dropped", *chosen)):
                at = 0 if place == 0 else count - 1 + place
                kept.setdefault(name, []).append((found[at].mean(), right[at].mean()))
        truth = np.array(effects)
        print(
            f"Target: {target}; {trusts} validation examples. Test loss without a source minus that with it, and the"
            " means over its samples.\n"
        )
        print_sources("without it", truth, values)
        print(f"As many sources dropped as have a negative score: {', '.join(dropped)} of the splits' eight.\n")
        print_choices(kept)


def print_sources(effect: str, truth: Array, values: Mapping[str, Sequence[Array]]) -> None:
    """Print each source's effect (splits, sources) beside its scores."""
    rows = [
        [name, spread(truth[:, at], sign="+"), *(f"{np.mean(v, axis=0)[at]:+.2g}" for v in values.values())]
        for at, name in enumerate(simulated_sources.SOURCES)
    ]
    ranks = [spread([spearman(a, b) for a, b in zip(v, truth, strict=True)], 2) for v in values.values()]
    table(["source", effect, *values], [*rows, ["Spearman with the effect", "", *ranks]])


def print_choices(found: Mapping[str, Sequence[tuple[float, ...]]]) -> None:
    """Print test loss and accuracy after each choice."""
    table(
        ["chosen by", "test loss", "test accuracy"],
        [[name, spread(np.array(v)[:, 0]), spread(np.array(v)[:, 1])] for name, v in found.items()],
    )


# --- what to collect more of -----------------------------------------------------------------------------------------


def collect() -> None:
    """Print what more of each source does, when the scores have seen the half that is there."""
    values: dict[str, list[Array]] = {}
    effects, chosen = [], {}
    for seed in range(SPLITS):
        train, valid, test, source = parts(seed, "upright")
        there = np.random.default_rng(seed).random(train.n) < 0.5
        half = train.take(np.flatnonzero(there))
        mine = {name: per_source(one, source[there]) for name, one in of_samples(half, valid).items()}
        mine[ALONE] = alone(half, valid, source[there])
        more = [there | (source == name) for name in simulated_sources.SOURCES]
        best = {name: there | (source == simulated_sources.SOURCES[int(one.argmax())]) for name, one in mine.items()}
        networks = retrained(train, [[mask] for mask in (there, *more, *best.values())])
        found, right = losses(networks, test), accuracies(networks, test)
        effects.append((found[0] - found[1 : 1 + len(more)]).mean(axis=1))
        for place, name in enumerate(("nothing more", *best)):
            at = 0 if place == 0 else len(more) + place
            chosen.setdefault(name, []).append((found[at].mean(), right[at].mean()))
        for name, one in mine.items():
            values.setdefault(name, []).append(one)
    truth = np.array(effects)
    print("Fall of the test loss with as many more of the source, and the means over the first half's samples.\n")
    print_sources("with more", truth, values)
    print("The other half of the best source is added.\n")
    print_choices(chosen)


# --- wrong labels ----------------------------------------------------------------------------------------------------


def labels() -> None:
    """Print how well wrong labels are found, and the tests without as many of the lowest as there are wrong ones."""
    for title, mistaken in (("a tenth drawn at random", at_random), ("7 of 10 annotators swap 4 and 9", shared)):
        found: dict[str, list[tuple[float, float, float]]] = {}
        for seed in range(SPLITS):
            train, valid, test = upright(seed)
            wrong, y = mistaken(train.y, seed)
            train = Batch(train.x, y)
            run = runs(train, valid)
            cheap = baselines.of_data(train, valid)
            passes = [baselines.Passes.of(NETWORK, as_floats(one.params), train) for one in run]
            mine = {
                OURS: mean_score(run),
                CONFIDENCE: cheap[CONFIDENCE],
                NEIGHBOURS: cheap[NEIGHBOURS],
                TRUSTED: trusted(train, valid),
                "loss after training": -np.mean([one.losses() for one in passes], axis=0),
                "EL2N after training": -np.mean([np.linalg.norm(one.errors(), axis=1) for one in passes], axis=0),
            }
            everyone = np.ones(train.n, bool)
            left = {name: np.argsort(np.argsort(one)) >= wrong.sum() for name, one in mine.items()}
            networks = retrained(train, [[mask] for mask in (everyone, ~wrong, *left.values())])
            loss, right = losses(networks, test).mean(axis=1), accuracies(networks, test).mean(axis=1)
            areas = [float("nan"), 1.0, *(auc(-one, wrong) for one in mine.values())]
            for name, *row in zip(("nothing", "the wrong ones", *mine), areas, loss, right, strict=True):
                found.setdefault(name, []).append((row[0], row[1], row[2]))
        print(f"Wrong labels: {title}.\n")
        table(
            ["removed by", "AUC", "test loss", "test accuracy"],
            [[name, *(spread(np.array(v)[:, at]) for at in range(3))] for name, v in found.items()],
        )


def at_random(y: Array, seed: int) -> tuple[Array, Array]:
    """Return the mask of wrong labels, and the labels: a tenth is drawn from the other classes."""
    return flip(y, 10, 0.1, seed)


def shared(y: Array, seed: int) -> tuple[Array, Array]:
    """Return the same where seven of ten annotators take 4 and 9 for each other."""
    wrong = np.isin(y, (4, 9)) & (np.random.default_rng(seed).random(len(y)) < 0.7)
    return wrong, np.where(wrong, 13 - y, y)


def as_floats(params: Params) -> Params:
    """Return the parameters in float64."""
    return {name: p.astype(float) for name, p in params.items()}


# --- one prediction --------------------------------------------------------------------------------------------------

EXPLAINED, REMOVED = 8, 20


def explain() -> None:
    """Print what becomes of a prediction without the examples that are named as its causes."""
    found: dict[str, list[float]] = {}
    fixed: dict[str, list[float]] = {}
    for seed in range(SPLITS):
        train, valid, _ = upright(seed)
        trained = runs(train, valid)
        params = [as_floats(run.params) for run in trained]
        passes = [baselines.Passes.of(NETWORK, p, valid) for p in params]
        hardest = np.argsort(-np.mean([one.losses() for one in passes], axis=0))[:EXPLAINED]
        asked = valid.take(hardest)
        scores = mean_score(runs(train, asked, per_validation=True))
        inside = [baselines.Passes.of(NETWORK, p, train).inputs[-1] for p in params]
        rivals = {
            "input space": distances(train.x, asked.x),
            "last hidden layer": np.mean(
                [distances(a, one.inputs[-1][hardest]) for a, one in zip(inside, passes, strict=True)], axis=0
            ),
        }
        generator = np.random.default_rng(seed)
        phases, names = [[np.ones(train.n, bool)]], [("", -1, 1)]
        for k, y in enumerate(asked.y):
            same = train.y == y
            helpful = {OURS: -scores[:, k], "chance": np.where(same, generator.random(train.n), np.inf)}
            harmful = {OURS: scores[:, k], "chance": np.where(same, np.inf, generator.random(train.n))}
            for name, d in rivals.items():
                helpful[name], harmful[name] = np.where(same, d[:, k], np.inf), np.where(same, np.inf, d[:, k])
            for side, orders in ((1, helpful), (-1, harmful)):
                for name, order in orders.items():
                    phases.append([np.argsort(np.argsort(order)) >= REMOVED])
                    names.append((name, k, side))
        networks = retrained(train, phases)
        before = np.array([[sample_loss(p, asked, k) for p in networks[0]] for k in range(EXPLAINED)]).mean(axis=1)
        for (name, k, side), one in list(zip(names, networks, strict=True))[1:]:
            after = np.mean([sample_loss(p, asked, k) for p in one])
            (found if side > 0 else fixed).setdefault(name, []).append(side * (after - before[k]))
    print(
        f"Mean over {EXPLAINED * SPLITS} validation examples with a high loss; {REMOVED} training examples removed.\n"
    )
    table(
        ["named by", "loss rises without those that helped", "falls without those that hurt"],
        [[name, spread(found[name], 2, "+"), spread(fixed[name], 2, "+")] for name in found],
    )


def distances(train: Array, asked: Array) -> Array:
    """Return the distances (N, K)."""
    return np.linalg.norm(train[:, None] - asked[None], axis=2)


def sample_loss(params: Params, batch: Batch, k: int) -> float:
    """Return the loss of the k-th sample."""
    return float(mean_loss(NETWORK, params, batch.take(np.array([k]))))


# --- parts of a run --------------------------------------------------------------------------------------------------


def epochs() -> None:
    """Print what each source does in the first and in the last third of a run of 3 x 5 epochs."""
    early, late, truth_early, truth_late, kept = [], [], [], [], {}
    for seed in range(SPLITS):
        train, valid, test, source = parts(seed, "upright")
        found = runs(train, valid, 3 * EPOCHS)
        first, last = (np.mean([of_steps(run, third) for run in found], axis=0) for third in (0, 2))
        whole = per_source(mean_score(found), source)
        first, last = per_source(first, source), per_source(last, source)
        everyone, names = np.ones(train.n, bool), np.array(simulated_sources.SOURCES)
        without = [source != name for name in names]
        good, good_late = (~np.isin(source, names[values < 0]) for values in (whole, last))
        choices = {
            "nothing": [everyone] * 3,
            "those below 0 in the whole run, from the start": [good] * 3,
            "those below 0 in the last third, from the start": [good_late] * 3,
            "those below 0 in the last third, there": [everyone, everyone, good_late],
        }
        phases = [[mask, everyone, everyone] for mask in without] + [[everyone, everyone, mask] for mask in without]
        networks = retrained(train, [*phases, *choices.values()])
        loss, right = losses(networks, test).mean(axis=1), accuracies(networks, test).mean(axis=1)
        base = loss[2 * len(without)]
        early.append(first)
        late.append(last)
        truth_early.append(loss[: len(without)] - base)
        truth_late.append(loss[len(without) : 2 * len(without)] - base)
        for name, *row in zip(choices, loss[2 * len(without) :], right[2 * len(without) :], strict=True):
            kept.setdefault(name, []).append(tuple(row))
    print("Loss without the source in a third of the run minus loss with it, and the scores of that third.\n")
    table(
        ["source", "score, first third", "without it there", "score, last third", "without it there"],
        [
            [name, *(spread(np.array(v)[:, at], sign="+") for v in (early, truth_early, late, truth_late))]
            for at, name in enumerate(simulated_sources.SOURCES)
        ],
    )
    print_choices(kept)


def of_steps(run: Run, third: int) -> Array:
    """Return the scores of a third of the steps, in units of their root mean square."""
    assert run.step_scores is not None
    part = np.array_split(np.arange(len(run.step_scores)), 3)[third]
    scores = weighted_steps(run.step_index[part], run.step_scores[part], len(run.scores), "unit")
    return scores / np.sqrt(np.mean(scores**2))


# --- the README's command --------------------------------------------------------------------------------------------

SEEDS = 10


def demo() -> None:
    """Print the sources with a negative score in single runs of other seeds, for each weighting."""
    train, valid, _, source = parts(0, "upright")
    rows = []
    for seed in range(SEEDS):
        run = one_run(train, valid, seed)
        means = {name: per_source(weighted(run, name), source) for name in WEIGHTINGS}
        below = [", ".join(np.array(simulated_sources.SOURCES)[one < 0]) for one in means.values()]
        rows.append([str(seed), *below])
    table(["seed", *(f"below 0, weighting {name}" for name in WEIGHTINGS)], rows)


TABLES: Mapping[str, Callable[[], None]] = {
    "sources": sources,
    "collect": collect,
    "labels": labels,
    "explain": explain,
    "epochs": epochs,
    "demo": demo,
}


def main() -> None:
    """Print the tables that the arguments name, or all."""
    for name in sys.argv[1:] or TABLES:
        print(f"## {name}\n")
        TABLES[name]()


if __name__ == "__main__":
    main()
