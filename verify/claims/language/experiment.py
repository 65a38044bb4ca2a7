"""What the study measures in a run: every estimator against every target, by every protocol, and where it breaks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np

from adamshap import gpu
from adamshap.reference import models
from adamshap.reference.adam import Coefficients, step_coefficients, update_map
from adamshap.reference.contract import SLOPES, AdamState, Array, MarginalKind, Params, Step, batch_order
from adamshap.reference.slopes import step_slopes
from adamshap.reference.two_term import (
    OWN_NODES,
    arrival_slope,
    normal_rule,
    own_spread,
    part_of_the_way,
    signed_root,
    two_coefficients,
)
from adamshap.reference.validation import validation_gradients
from adamshap.verify.claims import estimators as fitted
from adamshap.verify.claims.language import corpora, exact, protocols
from adamshap.verify.claims.language.exact import (
    FIRST,
    FIRST_1,
    LAST,
    OWN,
    OWN_DATA,
    PAPER,
    PAPER_1,
    SHAPLEY,
    SHAPLEY_HISTORY,
)
from adamshap.verify.claims.language.models import count, kind_of
from adamshap.verify.claims.language.protocols import POOLED, TOTALS, WITHIN
from adamshap.verify.claims.language.settings import Exact, Run
from adamshap.verify.claims.statistics import Record, pearson
from adamshap.verify.claims.stepping import FROZEN, LINEARIZED, NODES, RANDOM_ORDER, SECANT, SGD, Estimator, label

EVERY: tuple[Estimator, ...] = (
    SGD,
    ("sgd", "midpoint"),
    FROZEN,
    LINEARIZED,
    ("linearized", "midpoint"),
    SECANT,
    ("random_order", "start"),
    RANDOM_ORDER,
)
"""Estimators of every examined step; thorough ones have all slopes with all places of the gradient."""
HISTORY, STEP_MEAN = "history alone", "[mean of each step]"
BLIND = (HISTORY, STEP_MEAN)
EXACT_DATA = f"[{FIRST}]"
"""The exact `first` as an estimator: perfect scores of the samples, without history."""
WITH_HISTORY = (SGD, ("sgd", "midpoint"), LINEARIZED, ("linearized", "midpoint"), RANDOM_ORDER)
RANGES = ((1, 1), (2, 2), (3, 10), (11, 100), (101, 10**9))
"""Ranges of steps for correlations within steps."""
LATER = 11
"""First step of the later steps, over which everything is pooled and added up as well."""


def with_history(name: str) -> str:
    """Return the name of an estimator with the momentum's step added."""
    return f"{name} + history"


def weight_1(name: str) -> str:
    """Return the name of an estimator for x_i = ∇ℓ_i."""
    return f"{name}, weight 1"


@dataclass(frozen=True, eq=False)
class Point:
    """A step with all that estimators need: contributions, their sum, and Γ at two places."""

    t: int
    index: Array
    step: Step
    x: Params
    g: Params
    gammas: Mapping[str, Params]

    @classmethod
    def of(cls, t: int, index: Array, step: Step) -> "Point":
        """Return the point of a step."""
        x = models.sample_gradients(step)
        g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
        point = cls(t, index, step, x, g, {})
        return replace(point, gammas={place: point.gamma(place) for place in ("start", "midpoint")})

    def gamma(self, place: str) -> Params:
        """Return Γ at a place."""
        if place in self.gammas:
            return self.gammas[place]
        found = validation_gradients(self.step, place, self.g, NODES, each=False)  # type: ignore[arg-type]
        return {name: a[0] for name, a in found.items()}

    def scores(self, estimators: Sequence[Estimator]) -> dict[str, Array]:
        """Return each estimator's scores (n,)."""
        slopes = {slope: self.slope(slope) for slope in {slope for slope, _ in estimators}}
        gammas = {place: self.gamma(place) for place in {place for _, place in estimators}}
        return {
            label((slope, place)): self.dots({name: S * gammas[place][name] for name, S in slopes[slope].items()})
            for slope, place in estimators
        }

    def slope(self, slope: str) -> Params:
        """Return S of each parameter."""
        return step_slopes(self.step, slope, self.x, self.g, NODES)  # type: ignore[arg-type]

    def dots(self, P: Params) -> Array:
        """Return ⟨P, x_i⟩ of each sample."""
        products = [x_i.reshape(self.step.n, -1) @ P[name].ravel() for name, x_i in self.x.items()]
        total: Array = np.sum(products, axis=0)
        return total


@dataclass(frozen=True, eq=False)
class Examined:
    """Targets and scores of a step, by name."""

    t: int
    index: Array
    targets: Mapping[str, Array]
    scores: Mapping[str, Array]


def measure(settings: Exact, run: Run, seed: int) -> Iterator[Record]:
    """Yield the records of a run with `seed`; `settings` are those of the Shapley values."""
    where = {"run": run.label, "corpus": run.corpus.name, "model": run.shape.label, "change": run.change, "seed": seed}
    steps = []
    corpus = corpora.load(run.corpus, seed)
    for t, index, step, seen in walk(run, corpus, seed):
        point = Point.of(t, index, step)
        thorough = t in run.thorough
        examined = _examine(settings, point, thorough or t in run.shapley, seed)
        steps.append(examined)
        yield {"part": "loss", **where, "t": t, "loss": float(models.mean_loss(step.net, step.params, step.valid))}
        if thorough:
            for found in (_slopes(point, examined), _by_kind(point, examined), _by_seen(point, examined, seen)):
                yield from ({**record, **where, "t": t} for record in found)
    yield {"part": "model", **where, "parameters": count(step.net), "n": run.n, "T": run.corpus.length}
    yield from ({**record, **where} for record in correlations(steps, corpus.train.n))


def walk(run: Run, corpus: corpora.Corpus, seed: int) -> Iterator[tuple[int, Array, Step, Params]]:
    """Train, and yield each examined step with its number, samples, and how many steps each coordinate has had.

    A step counts for a coordinate if its gradient was not 0.
    """
    net, optimiser = run.shape.network(corpus), run.optimiser()
    params = net.init(seed)
    state = AdamState.zeros(params)
    seen = {name: np.zeros(a.shape, np.int32) for name, a in params.items()}
    last = max(run.examined)
    epochs = -(-last * run.n // corpus.train.n) + 1
    for t, (_, index) in enumerate(batch_order(corpus.train.n, batch_size=run.n, epochs=epochs, seed=seed), start=1):
        step = Step(net, params, optimiser, state, corpus.train.take(index), corpus.valid)
        if t in run.examined:
            yield t, index, step, {name: a.copy() for name, a in seen.items()}
        if t == last:
            return
        before = state.m
        params, state = gpu.update(step, device="cpu", dtype="float64")
        for name, counts in seen.items():
            kept = step.settings(name).betas[0] * before[name]
            counts += np.abs(state.m[name] - kept) > 1e-12 * np.abs(kept)  # beyond rounding


def _examine(settings: Exact, point: Point, shapley: bool, seed: int) -> Examined:
    step, gamma = point.step, point.gamma("start")
    wanted = exact.targets(
        step, point.x, gamma, shapley=settings.evaluations if shapley else 0, counted=settings.counted, seed=seed
    )
    scores = point.scores(EVERY)
    past = exact.history(step, gamma)
    for estimator in WITH_HISTORY:
        scores[with_history(label(estimator))] = scores[label(estimator)] + past
        scores[with_history(weight_1(label(estimator)))] = step.n * scores[label(estimator)] + past
    scores[HISTORY] = np.full(step.n, past)
    return Examined(point.t, point.index, wanted, scores)


# --- protocols -------------------------------------------------------------------------------------------------------


def correlations(steps: Sequence[Examined], samples: int) -> Iterator[Record]:
    """Yield every estimator's correlation with every target by every protocol; `samples` is their number N."""
    for target in (FIRST, PAPER, FIRST_1, PAPER_1, OWN, OWN_DATA, LAST, SHAPLEY, SHAPLEY_HISTORY):
        having = [step for step in steps if target in step.targets]
        for protocol, place, chosen in _groups(having):
            wanted = np.array([step.targets[target] for step in chosen])
            index = np.array([step.index for step in chosen])
            columns = {name: np.array([step.scores[name] for step in chosen]) for name in chosen[0].scores}
            columns[STEP_MEAN] = np.broadcast_to(wanted.mean(axis=1, keepdims=True), wanted.shape)
            columns[EXACT_DATA] = np.array([step.targets[FIRST] for step in chosen])
            for name, values in columns.items():
                if protocol == WITHIN and (name in (*BLIND, EXACT_DATA) or "history" in name):
                    continue  # constant in a step, or equal to the estimator without it
                about = {"protocol": protocol, "place": place, "steps": len(chosen), "target": target}
                found = protocols.summary(protocol, values, wanted, index, samples)
                yield {"part": "protocols", **about, "estimator": name, **found}


def _groups(steps: Sequence[Examined]) -> Iterator[tuple[str, str, list[Examined]]]:
    """Yield a protocol, the name of a range of steps, and the steps."""
    for first, last in RANGES:
        yield from _group(WITHIN, steps, first, last)
    for protocol in (WITHIN, POOLED, TOTALS):
        # Totals need all steps of the run.
        if protocol != TOTALS or all(b.t == a.t + 1 for a, b in pairwise(steps)):
            yield from _group(protocol, steps, 1, 10**9)
            yield from _group(protocol, steps, LATER, 10**9)


def _group(
    protocol: str, steps: Sequence[Examined], first: int, last: int
) -> Iterator[tuple[str, str, list[Examined]]]:
    chosen = [step for step in steps if first <= step.t <= last]
    if chosen and (protocol == WITHIN or len(chosen) > 1):
        name = f"t = {first}" if first == last else f"t ≥ {first}" if last == 10**9 else f"t = {first} to {last}"
        yield protocol, name, chosen


# --- where it breaks -------------------------------------------------------------------------------------------------


def _slopes(point: Point, examined: Examined) -> Iterator[Record]:
    """Yield R of all slopes with all places of Γ, of the slopes fitted to one marginal, and of every contribution."""
    usual = point.scores(list(product(SLOPES, ("start", "midpoint", "path"))))
    for truth in (FIRST, LAST, SHAPLEY):
        found = usual | _fitted(point, truth)  # type: ignore[arg-type]
        for name, values in found.items():
            r = pearson(values, examined.targets[truth])
            yield {"part": "slopes", "target": truth, "estimator": name, "pearson": r}


ONE_TERM = "one_term"
TWO_TERM = "[two_term]"


def _fitted(point: Point, truth: MarginalKind) -> dict[str, Array]:
    """Return the scores of one and of two terms fitted to a marginal, and what knows every contribution, in brackets.

    Both are fitted with the batch's means and squares alone; the second term itself needs every x_i where T > 1.
    """
    step, x = point.step, point.x
    part = part_of_the_way(truth, step.n)
    gamma = validation_gradients(step, "midpoint", point.g, NODES, each=False, part=part)
    c, nodes = step_coefficients(step), (8, 2)
    one, two = np.zeros(step.n), np.zeros(step.n)
    for name, x_i in x.items():
        flat, P = x_i.reshape(step.n, -1), gamma[name].ravel()
        S, R = (a.ravel() for a in two_coefficients(truth, c[name], x_i, nodes))
        two += flat @ (P * S) + signed_root(flat) @ (P * R)
        one += flat @ (P * one_slope(truth, c[name], x_i, nodes).ravel())
    found = {ONE_TERM: one, TWO_TERM: two}
    if truth != SHAPLEY:
        found |= fitted.with_every_contribution(step, x, point.g, truth)
    return found


def one_slope(truth: MarginalKind, c: Coefficients, x: Array, nodes: tuple[int, int]) -> Array:
    """Return the slope of the least squares without a second term: S = Σ ω s (docs/method.md 4)."""
    mean, deviation = x.mean(axis=0), own_spread(x)
    size = np.hypot(mean, deviation)
    slope: Array = np.zeros_like(mean)
    for h, a in zip(*normal_rule(OWN_NODES), strict=True):
        own = mean + h * deviation
        z = np.abs(own) / np.where(size > 0, size, 1.0)
        slope += a * z**2 * arrival_slope(truth, c, x, own, deviation, nodes)
    return slope


SHOWN: tuple[Estimator, ...] = (SGD, LINEARIZED, SECANT, RANDOM_ORDER)
CHANGE = "[A(x) − A(0)]"


def _parts(point: Point) -> dict[str, Params]:
    """Return, for each estimator and for the change of the step itself, its summands (n, …) by parameter."""
    found = {}
    for slope, place in SHOWN:
        S, gamma = point.slope(slope), point.gamma(place)
        found[label((slope, place))] = {name: gamma[name] * S[name] * x_i for name, x_i in point.x.items()}
    c, gamma = step_coefficients(point.step), point.gamma("start")
    found[CHANGE] = {
        name: gamma[name] * (update_map(c[name], x_i) - update_map(c[name], np.zeros_like(x_i[0])))
        for name, x_i in point.x.items()
    }
    return found


def _by_kind(point: Point, examined: Examined) -> Iterator[Record]:
    """Yield each kind's share of the variance, and R with `first` of the step that this kind alone takes."""
    n = point.step.n
    firsts = exact.firsts_by_kind(point.step, point.x)
    total = examined.targets[FIRST]
    for kind, wanted in firsts.items():
        yield {"part": "kinds", "kind": kind, "estimator": "exact", "share": share(wanted, total), "pearson": 1.0}
    for estimator, parts in _parts(point).items():
        whole = exact.total_over(parts, n)
        for kind, wanted in firsts.items():
            own = exact.total_over({name: part for name, part in parts.items() if kind_of(name) == kind}, n)
            found = {"share": share(own, whole), "pearson": pearson(own, wanted)}
            yield {"part": "kinds", "kind": kind, "estimator": estimator, **found}


SEEN = ("never", "in under a tenth of the steps", "in more")
"""How often a coordinate has had a gradient before."""


def _by_seen(point: Point, examined: Examined, seen: Params) -> Iterator[Record]:
    """Yield, by how often coordinates have had a gradient, their share of coordinates and of an estimator's variance.

    "pearson" is the estimator's R with `first`, "without" that of the estimator without these coordinates.
    """
    before = point.t - 1
    rare = {name: (counts > 0) & (counts < before / 10) for name, counts in seen.items()}
    which = {
        SEEN[0]: {name: counts == 0 for name, counts in seen.items()},
        SEEN[1]: rare,
        SEEN[2]: {name: (counts > 0) & ~rare[name] for name, counts in seen.items()},
    }
    coordinates = sum(a.size for a in seen.values())
    first = examined.targets[FIRST]
    for estimator, parts in _parts(point).items():
        whole = exact.total_over(parts, point.step.n)
        for group, masks in which.items():
            own = exact.total_over({name: part * masks[name] for name, part in parts.items()}, point.step.n)
            yield {
                "part": "seen",
                "group": group,
                "estimator": estimator,
                "coordinates": sum(int(mask.sum()) for mask in masks.values()) / coordinates,
                "touched": sum(int((masks[name] & (a != 0)).sum()) for name, a in point.g.items()) / coordinates,
                "share": share(own, whole),
                "without": pearson(whole - own, first),
                "pearson": pearson(whole, first),
            }


def share(part: Array, whole: Array) -> float:
    """Return cov(part, whole)/var(whole): the shares of parts that add up to the whole add up to 1."""
    centred = whole - whole.mean()
    square = float(centred @ centred)
    return float((part - part.mean()) @ centred) / square if square > 0 else float("nan")
