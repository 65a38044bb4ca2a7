"""Whole-run accounting: the momentum step is credited to the samples that built up the momentum (docs/method.md 6).

A step's update is split into a momentum part and a batch part, ``A(g) ≈ M ⊙ m + S ⊙ g``. The effect of the momentum
part on the loss is credited, step by step, to the samples whose gradients m holds.

==================  ==============================  ============================================================
method 6            name                            meaning
==================  ==============================  ============================================================
M, S                ``Split.momentum``, ``.slope``  the two parts of Adam's map, per unit of m and of g
1/D̄, N              ``mean_inverse``, ``excess``    ∫₀¹ dτ / D(τ g), and (1/D̄ − 1/D(g)) / g
Γ_t                 ``walked_gradient``             validation gradient on the segment from θ_t to θ_{t+1}
C_t                 ``carried``                     effect of a unit of m after step t on the rest of the run
x_i                 ``x``                           sample i's contribution to the batch gradient
d                   ``decay_gradients``             λ₂ θ, credited to decay as x_i is to a sample
==================  ==============================  ============================================================
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import cast

import numpy as np

from adamshap.reference import models, slopes
from adamshap.reference.accounts import Settlement, zero_scores
from adamshap.reference.adam import (
    Coefficients,
    bias_correction,
    decay_gradients,
    denominator,
    divided_difference,
    step_coefficients,
)
from adamshap.reference.contract import (
    AdamState,
    Array,
    CompletedSteps,
    Estimator,
    Gradient,
    Params,
    RunConfig,
    Slope,
    Snapshot,
    Step,
    refuse,
)
from adamshap.reference.scoring import dot_products
from adamshap.reference.validation import gradient_at

# --- the split of one parameter's update -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """``A(g) ≈ inverse · η μ + slope · g``: the momentum's inverse denominator, and the batch's slope."""

    slope: Array
    inverse: Array


PANEL = 2.0
"""Largest length of a panel of the integral over u: the integrand's nearest pole is π/2 away."""

PANEL_NODES = 16
"""Gauss–Legendre nodes per panel: the poles lie outside the ellipse with half-axes summing to 3.4, and 3.4⁻³² < u."""

FARTHEST_RATIO = 1e20
"""Cap on the ratio of min(√q |g|, ε) to √κ: a larger one changes the integral by less than one rounding."""


def excess(c: Coefficients, g: Array) -> Array:
    r"""Return N = ∫₀¹ q g τ² / (r(τ g) D(τ g)²) dτ, so that ∫₀¹ dτ / D(τ g) = 1/D(g) + g N.

    With s = √q |g| and s τ = √κ sinh u, N is 1/(s g) times the integral of (sinh u / (cosh u + ε/√κ))² from 0 to
    U = asinh(s/√κ): positive, smooth over all orders of magnitude of τ, and so summed on panels of equal length.
    """
    denominator(c, np.zeros_like(g))  # refuses D(0) = 0
    s = math.sqrt(c.q) * np.abs(g)
    # With κ = 0, U would be infinite. Far below both s and ε, √κ changes nothing.
    rho = np.maximum(np.sqrt(c.kappa), np.minimum(s, c.eps) / FARTHEST_RATIO)
    rho = np.where(s > 0, rho, 1.0)
    U = np.arcsinh(s / rho)
    panels = max(1, math.ceil(U.max() / PANEL))
    nodes, weights = slopes.unit_interval_rule(PANEL_NODES)
    per_g = np.divide(1, g, out=np.zeros_like(g), where=g != 0)
    mean = np.zeros_like(g)
    for panel in range(panels):
        for node, weight in zip(nodes, weights, strict=True):
            u = U * ((panel + node) / panels)
            f = np.sinh(u) / (np.cosh(u) + c.eps / rho)
            mean += weight / panels * f * (f * per_g)  # f² underflows where N does not
    return mean * np.divide(U, s, out=np.zeros_like(g), where=s > 0)


def even(given: slopes.SlopeInput) -> Split:
    """Split by Aumann–Shapley: momentum and batch arrive evenly, (τ m, τ g), τ from 0 to 1; without remainder."""
    c, N = given.c, excess(given.c, given.g)
    inverse = 1 / denominator(c, given.g)
    return Split(c.lr * (c.k * inverse - c.mu * N), inverse + given.g * N)


def in_random_order(given: slopes.SlopeInput) -> Split:
    """Split with the samples in random order, as `slopes.random_order`, while the momentum arrives evenly.

    Sample i arrives at τ m and the partial sum Y of the samples before it; the momentum's inverse is 1/D(Y).
    """
    if len(given.x) == 1:
        return even(given)
    c, sigma = given.c, slopes.partial_sum_deviation(given.x, given.g)
    slope, inverse = np.zeros_like(given.g), np.zeros_like(given.g)
    for tau, w in zip(*slopes.unit_interval_rule(given.nodes[0]), strict=True):
        s, arrived = math.sqrt(tau * (1 - tau)) * sigma, replace(c, mu=tau * c.mu)
        rest = 1.0  # finally the weight of the middle node of an odd rule
        for h, a in zip(*slopes.positive_normal_rule(given.nodes[1]), strict=True):
            above, below = tau * given.g + h * s, tau * given.g - h * s
            slope += w * 2 * a * h**2 * divided_difference(arrived, above, below)
            inverse += w * a * (1 / denominator(c, above) + 1 / denominator(c, below))
            rest -= 2 * a
        if given.nodes[1] % 2:
            inverse += w * rest / denominator(c, tau * given.g)
    return Split(slope, inverse)


def frozen(given: slopes.SlopeInput) -> Split:
    """Fix the denominator at that of the actual step: linear in momentum and batch, so without remainder."""
    return Split(slopes.frozen(given), 1 / denominator(given.c, given.g))


def linearized(given: slopes.SlopeInput) -> Split:
    """Take both derivatives of the map at (m, g) = (0, 0)."""
    return Split(slopes.linearized(given), 1 / denominator(given.c, np.zeros_like(given.g)))


def tangent(given: slopes.SlopeInput) -> Split:
    """Take both derivatives of the map at (m, g)."""
    return Split(slopes.tangent(given), 1 / denominator(given.c, given.g))


SPLITS: dict[str, Callable[[slopes.SlopeInput], Split]] = {
    "frozen": frozen,
    "linearized": linearized,
    "tangent": tangent,
    "secant": even,
    "random_order": in_random_order,
}


def splits(step: Step, slope: Slope, x: Params, g: Params, nodes: tuple[int, int]) -> tuple[Params, Params]:
    """Return S and M of each parameter: `A(g) ≈ M ⊙ m + S ⊙ g`, with L2 decay `M ⊙ m + S ⊙ (d + g)`."""
    S, M = {}, {}
    for name, c in step_coefficients(step).items():
        adam = step.settings(name)
        factor = adam.lr * adam.betas[0] / bias_correction(adam.betas[0], step.state.next_step)
        given = slopes.SlopeInput(c, x[name], g[name], nodes)
        split = SPLITS[slope](given if c.shift is None else with_decay(given, c.shift))
        S[name], M[name] = split.slope, factor * split.inverse
    return S, M


def with_decay(given: slopes.SlopeInput, d: Array) -> slopes.SlopeInput:
    """Return the input of a split in which L2 decay d arrives with the samples, a part of it with each of them."""
    return slopes.SlopeInput(replace(given.c, shift=None), given.x + d / len(given.x), given.g + d, given.nodes)


# --- the segment from θ_t to θ_{t+1} ---------------------------------------------------------------------------------

WALKED: dict[str, Callable[[int], tuple[Array, Array]]] = {
    "start": lambda count: (np.zeros(1), np.ones(1)),
    "midpoint": lambda count: (np.full(1, 0.5), np.ones(1)),
    "path": slopes.unit_interval_rule,
}
"""Nodes on the segment from θ_t (0) to θ_{t+1} (1) at which the validation gradient is taken, and their weights."""


def walked_gradient(step: Step, after: Params, gradient: Gradient, nodes: tuple[int, int], *, each: bool) -> Params:
    """Return Γ_t with a leading axis: 1 for the mean validation loss, n_val for `each` sample's own."""
    total: Params = {}
    for tau, w in zip(*WALKED[gradient](nodes[0]), strict=True):
        point = {name: (1 - tau) * p + tau * after[name] for name, p in step.params.items()}
        for name, there in gradient_at(step, point, each=each).items():
            total[name] = total.get(name, 0.0) + w * there
    return total


# --- the run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """Record of a step for the settlement: its own scores, and Γ ⊙ M, which its momentum owes to earlier samples.

    The batch is read again by `index`, as data may be larger than memory.
    """

    index: Array
    params: Params
    state: AdamState
    scores: Array
    owed: Params
    decay: Array
    closed: Array

    def numbers(self) -> Params:
        """Return the recorded arrays, keyed by their names in error messages."""
        owed = {f"credit owed through {name!r}": array for name, array in self.owed.items()}
        return {"decay": self.decay, "closed": self.closed, "scores": self.scores} | owed


@dataclass(frozen=True)
class Ledger:
    """The account for ``credit="carry"``: the steps of a run in order.

    Every array has J as its first or last axis: 1 for the mean validation loss, n_val for each sample's own.
    """

    config: RunConfig
    estimator: Estimator
    entries: list[Entry] = field(default_factory=list)

    def scores(self, step: Step, validated: Step) -> None:
        """Return None: the scores depend on the parameters after the step."""

    def entry(self, index: Array, scores: Array | None, step: Step, after: Params) -> Entry:
        """Return the entry of a step of the samples `index` that ended at the parameters `after`."""
        step, each, nodes = step.as_float64(), self.estimator.per_validation, self.estimator.nodes
        x = models.sample_gradients(step)
        g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
        S, M = splits(step, split_slope(self.estimator), x, g, nodes)
        gamma = walked_gradient(step, after, self.estimator.gradient, nodes, each=each)
        owed = {name: gamma[name] * M[name] for name in M}
        own = dot_products(x, {name: gamma[name] * S[name] for name in S})
        decay, d = _decay(step, gamma), decay_gradients(step)
        if d:
            decay = decay + _summed({name: gamma[name] * S[name] for name in d}, d)
        gain = _losses(step, step.params, each=each) - _losses(step, after, each=each)
        closed = gain - decay - own.sum(axis=0) - _summed(owed, step.state.m)
        return Entry(index, step.params, step.state, own + closed / step.n, owed, decay, closed)

    def record(self, entry: Entry) -> None:
        """Add a step's entry."""
        self.entries.append(entry)

    def own_scores(self) -> Array:
        """Return each sample's credit from its own steps, without the credit owed by later steps."""
        totals = zero_scores(self.config, self.estimator)
        sums = totals.reshape(len(totals), -1)
        for entry in self.entries:
            sums[entry.index] += entry.scores
        return totals

    def settle(self) -> Settlement:
        """Return each sample's total, and the parts of each step due to weight decay and to closing the account."""
        scores = zero_scores(self.config, self.estimator)
        sums = scores.reshape(len(scores), -1)
        carried: Params = {}
        decays = [entry.decay for entry in self.entries]
        for row, entry in reversed(list(enumerate(self.entries))):
            sums[entry.index] += entry.scores
            t = entry.state.next_step
            beta1 = {name: self.config.adam.at(t, name).betas[0] for name in entry.owed}
            if carried:
                step = self._step(entry)
                x, d = models.sample_gradients(step), decay_gradients(step)
                for beta, names in grouped(beta1):
                    sums[entry.index] += (1 - beta) * dot_products({name: x[name] for name in names}, carried)
                    decaying = {name: carried[name] for name in names if name in d}
                    if decaying:
                        decays[row] = decays[row] + (1 - beta) * _summed(decaying, d)
            carried = {name: beta1[name] * carried.get(name, 0.0) + owed for name, owed in entry.owed.items()}
        rows = (len(self.entries), sums.shape[1])  # explicit, as there may be no entry
        per_step = (np.reshape(arrays, rows) for arrays in (decays, [entry.closed for entry in self.entries]))
        decay, closed = (array if self.estimator.per_validation else array[:, 0] for array in per_step)
        return Settlement(scores, decay, closed)

    def _step(self, entry: Entry) -> Step:
        """Return the step of an entry."""
        config = self.config
        batch = config.train.take(entry.index)
        step = Step(config.network, entry.params, config.adam, entry.state, batch, config.valid, config.reduction)
        return step.as_float64()

    def kept(self) -> Snapshot:
        """Return the entries so far as arrays (steps, ...), for `restore`."""
        config = self.config
        steps, columns = len(self.entries), config.valid.n if self.estimator.per_validation else 1
        arrays = {name: np.zeros((steps, columns)) for name in ("decay", "closed")}
        largest = min(config.batch_size, config.train.n)
        arrays["scores"] = np.zeros((steps, largest, columns))  # a smaller batch is padded with 0
        for name, shape in config.network.shapes.items():
            arrays |= {f"{group}/{name}": np.zeros((steps, *shape)) for group in ("params", "m", "v")}
            arrays[f"owed/{name}"] = np.zeros((steps, columns, *shape))
        for row, entry in enumerate(self.entries):
            arrays["decay"][row], arrays["closed"][row] = entry.decay, entry.closed
            arrays["scores"][row, : len(entry.index)] = entry.scores
            state = entry.state
            for group, named in {"params": entry.params, "m": state.m, "v": state.v, "owed": entry.owed}.items():
                for name, array in named.items():
                    arrays[f"{group}/{name}"][row] = array
        return arrays

    def restore(self, own_scores: Array, kept: Mapping[str, Array]) -> None:
        """Restore the entries from the arrays of `kept`; `own_scores` follow from them."""
        names = self.config.network.shapes
        for row, (_, index) in zip(range(len(kept["decay"])), self.config.order(), strict=False):
            groups = ("params", "m", "v", "owed")
            params, m, v, owed = ({name: kept[f"{group}/{name}"][row].copy() for name in names} for group in groups)
            scores = kept["scores"][row, : len(index)].copy()
            decay, closed = (kept[name][row] for name in ("decay", "closed"))
            state = AdamState(CompletedSteps(row), m, v)
            self.entries.append(Entry(index, params, state, scores, owed, decay, closed))


def ledger_of(config: RunConfig, estimator: Estimator) -> Ledger:
    """Return an empty ledger for ``credit="carry"``.

    Parameters
    ----------
    config : RunConfig
        The run.
    estimator : Estimator
        Its slope, one of "frozen", "linearized", "tangent", "secant" and "random_order", determines the split of Adam's
        map between momentum and batch: "secant" and "frozen" without remainder. "sgd", "auto" and "two_term" define no
        split and are refused. Its gradient determines where on the segment from θ_t to θ_{t+1} the validation gradient
        is taken.
    """
    split_slope(estimator)
    estimator.refuse_with_carry()
    return Ledger(config, estimator)


def split_slope(estimator: Estimator) -> Slope:
    """Return the slope of `estimator`, if it splits the step between batch and momentum."""
    slope = estimator.slope
    if slope not in SPLITS:
        refuse(
            "slope",
            f"'{slope}' with credit 'carry'",
            "one of " + ", ".join(SPLITS) + ": the others do not split the step between batch and momentum",
        )
    return cast(Slope, slope)


def grouped(values: Mapping[str, float]) -> Iterator[tuple[float, list[str]]]:
    """Yield each distinct value with the parameters that have it, so that a sum over them is multiplied only once."""
    for value in dict.fromkeys(values.values()):
        yield value, [name for name, other in values.items() if other == value]


def _decay(step: Step, gamma: Params) -> Array:
    """Return η λ ⟨Γ_j, θ⟩ over all parameters: (J,), the decrease of the loss by weight decay."""
    settings = {name: step.settings(name) for name in step.params}
    rates = {name: adam.lr * adam.weight_decay for name, adam in settings.items()}
    parts = (rate * _summed({name: gamma[name] for name in names}, step.params) for rate, names in grouped(rates))
    return reduce(np.add, parts)


def _summed(gradients: Params, values: Params) -> Array:
    """Return ⟨gradients_j, values⟩ over the parameters of `gradients`: (J,)."""
    sums: Array = dot_products({name: values[name][None] for name in gradients}, gradients)[0]
    return sums


def _losses(step: Step, params: Params, *, each: bool) -> Array:
    losses = models.sample_losses(step.net, params, step.valid)
    return losses if each else np.mean(losses, keepdims=True)
