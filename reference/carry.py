"""Whole-run accounting: the momentum step is credited to the samples that the momentum is made of (docs/method.md 6).

A step's update is split into a part of the momentum and a part of its batch, ``A(g) ≈ M ⊙ m + S ⊙ g``; what the
momentum's part does to the loss goes back, step by step, to the samples whose gradients m holds.

==================  ==============================  ============================================================
method 6            name                            meaning
==================  ==============================  ============================================================
M, S                ``Split.momentum``, ``.slope``  the two parts of Adam's map, per unit of m and of g
1/D̄, N              ``mean_inverse``, ``excess``    ∫₀¹ dτ / D(τ g), and (1/D̄ − 1/D(g)) / g
Γ_t                 ``walked_gradient``             validation gradient on the segment from θ_t to θ_{t+1}
C_t                 ``carried``                     what a unit of m after step t does to the rest of the run
x_i                 ``x``                           sample i's contribution to the batch gradient
==================  ==============================  ============================================================
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from adamshap.reference import ghost, network
from adamshap.reference.adam import Coefficients, bias_correction, denominator, divided_difference, step_coefficients
from adamshap.reference.contract import (
    TWO_TERM,
    AdamState,
    Array,
    Estimator,
    Gradient,
    Params,
    RunConfig,
    Slope,
    Snapshot,
    Step,
    refuse,
)

# --- the split of one parameter's update -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """``A(g) ≈ inverse · η μ + slope · g``: the inverse denominator that the momentum meets, and the batch's slope."""

    slope: Array
    inverse: Array


PANEL = 2.0
"""Longest piece of an integral over u: the integrand's nearest pole is π/2 away."""

PANEL_NODES = 16
"""Gauss–Legendre nodes for each: the poles lie outside the ellipse with half-axes summing to 3.4, and 3.4⁻³² < u."""

FARTHEST_RATIO = 1e20
"""Of the smaller of √q |g| and ε to √κ: a larger one changes the integral by less than one rounding."""


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
    nodes, weights = ghost.unit_interval_rule(PANEL_NODES)
    per_g = np.divide(1, g, out=np.zeros_like(g), where=g != 0)
    mean = np.zeros_like(g)
    for panel in range(panels):
        for node, weight in zip(nodes, weights, strict=True):
            u = U * ((panel + node) / panels)
            f = np.sinh(u) / (np.cosh(u) + c.eps / rho)
            mean += weight / panels * f * (f * per_g)  # f² underflows where N does not
    return mean * np.divide(U, s, out=np.zeros_like(g), where=s > 0)


def even(given: ghost.SlopeInput) -> Split:
    """Split by Aumann–Shapley: momentum and batch arrive evenly, (τ m, τ g), τ from 0 to 1; nothing is left over."""
    c, N = given.c, excess(given.c, given.g)
    inverse = 1 / denominator(c, given.g)
    return Split(c.lr * (c.k * inverse - c.mu * N), inverse + given.g * N)


def in_random_order(given: ghost.SlopeInput) -> Split:
    """Split with the samples in random order, as `ghost.random_order`, while the momentum arrives evenly.

    Sample i finds τ m beside the partial sum Y of those before it; the momentum meets 1/D(Y).
    """
    if len(given.x) == 1:
        return even(given)
    c, sigma = given.c, ghost.partial_sum_deviation(given.x, given.g)
    slope, inverse = np.zeros_like(given.g), np.zeros_like(given.g)
    for tau, w in zip(*ghost.unit_interval_rule(given.nodes[0]), strict=True):
        s, arrived = math.sqrt(tau * (1 - tau)) * sigma, replace(c, mu=tau * c.mu)
        rest = 1.0  # the weight of the middle node of an odd rule
        for h, a in zip(*ghost.positive_normal_rule(given.nodes[1]), strict=True):
            above, below = tau * given.g + h * s, tau * given.g - h * s
            slope += w * 2 * a * h**2 * divided_difference(arrived, above, below)
            inverse += w * a * (1 / denominator(c, above) + 1 / denominator(c, below))
            rest -= 2 * a
        if given.nodes[1] % 2:
            inverse += w * rest / denominator(c, tau * given.g)
    return Split(slope, inverse)


def frozen(given: ghost.SlopeInput) -> Split:
    """Hold the denominator of the step really taken: linear in momentum and batch, so nothing is left over."""
    return Split(ghost.frozen(given), 1 / denominator(given.c, given.g))


def linearized(given: ghost.SlopeInput) -> Split:
    """Take both derivatives of the map at (m, g) = (0, 0)."""
    return Split(ghost.linearized(given), 1 / denominator(given.c, np.zeros_like(given.g)))


def tangent(given: ghost.SlopeInput) -> Split:
    """Take both derivatives of the map at (m, g)."""
    return Split(ghost.tangent(given), 1 / denominator(given.c, given.g))


SPLITS: dict[str, Callable[[ghost.SlopeInput], Split]] = {
    "frozen": frozen,
    "linearized": linearized,
    "tangent": tangent,
    "secant": even,
    "random_order": in_random_order,
}


def splits(step: Step, slope: Slope, x: Params, g: Params, nodes: tuple[int, int]) -> tuple[Params, Params]:
    """Return S and M of each parameter: `A(g) ≈ M ⊙ m + S ⊙ g`."""
    S, M = {}, {}
    factor = step.adam.lr * step.adam.betas[0] / bias_correction(step.adam.betas[0], step.state.step + 1)
    for name, c in step_coefficients(step).items():
        split = SPLITS[slope](ghost.SlopeInput(c, x[name], g[name], nodes))
        S[name], M[name] = split.slope, factor * split.inverse
    return S, M


# --- the step that was walked ----------------------------------------------------------------------------------------

WALKED: dict[str, Callable[[int], tuple[Array, Array]]] = {
    "start": lambda count: (np.zeros(1), np.ones(1)),
    "midpoint": lambda count: (np.full(1, 0.5), np.ones(1)),
    "path": ghost.unit_interval_rule,
}
"""Where, from θ_t (0) to θ_{t+1} (1), the validation gradient is taken, and with which weights."""


def walked_gradient(step: Step, after: Params, gradient: Gradient, nodes: tuple[int, int], *, each: bool) -> Params:
    """Return Γ_t with a leading axis: 1 for the mean validation loss, n_val for `each` sample's own."""
    total: Params = {}
    for tau, w in zip(*WALKED[gradient](nodes[0]), strict=True):
        point = {name: (1 - tau) * p + tau * after[name] for name, p in step.params.items()}
        for name, there in ghost.gradient_at(step, point, each=each).items():
            total[name] = total.get(name, 0.0) + w * there
    return total


# --- the run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """What the run's end needs to know of a step: its own scores, and Γ ⊙ M, by which it pays the momentum.

    Its batch is read again by `index`, as data may be larger than memory.
    """

    index: Array
    params: Params
    state: AdamState
    scores: Array
    owed: Params
    decay: Array
    closed: Array

    def numbers(self) -> Params:
        """Return the arrays that the run's accounts are made of, keyed by their names in error messages."""
        owed = {f"what is owed through {name!r}": array for name, array in self.owed.items()}
        return {"decay": self.decay, "closed": self.closed, "scores": self.scores} | owed


@dataclass(frozen=True)
class Ledger:
    """The steps of a run in order, and how they are judged; every array has the judges J in its last axis or first."""

    config: RunConfig
    slope: Slope
    gradient: Gradient
    per_validation: bool
    nodes: tuple[int, int]
    entries: list[Entry] = field(default_factory=list)

    def entry(self, index: Array, step: Step, after: Params) -> Entry:
        """Return the entry of a step of the samples `index` that ended at the parameters `after`."""
        step = step.as_float64()
        x = network.sample_gradients(step)
        g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
        S, M = splits(step, self.slope, x, g, self.nodes)
        gamma = walked_gradient(step, after, self.gradient, self.nodes, each=self.per_validation)
        owed = {name: gamma[name] * M[name] for name in M}
        scores = ghost.dot_products(x, {name: gamma[name] * S[name] for name in S})
        rate = step.adam.lr * step.adam.weight_decay
        decay = rate * _summed(gamma, step.params)
        gain = _losses(step, step.params, each=self.per_validation) - _losses(step, after, each=self.per_validation)
        closed = gain - decay - scores.sum(axis=0) - _summed(owed, step.state.m)
        return Entry(index, step.params, step.state, scores + closed / step.n, owed, decay, closed)

    def _step(self, entry: Entry) -> Step:
        """Return the step of an entry."""
        config = self.config
        batch = config.train.take(entry.index)
        step = Step(config.network, entry.params, config.adam, entry.state, batch, config.valid, config.reduction)
        return step.as_float64()

    def kept(self) -> Snapshot:
        """Return the entries so far as arrays (steps, ...), from which `restore` makes them again."""
        config = self.config
        steps, judges = len(self.entries), config.valid.n if self.per_validation else 1
        arrays = {name: np.zeros((steps, judges)) for name in ("decay", "closed")}
        arrays["scores"] = np.zeros((steps, min(config.batch_size, config.train.n), judges))  # 0 after a smaller batch
        for name, shape in config.network.shapes.items():
            arrays |= {f"{group}/{name}": np.zeros((steps, *shape)) for group in ("params", "m", "v")}
            arrays[f"owed/{name}"] = np.zeros((steps, judges, *shape))
        for row, entry in enumerate(self.entries):
            arrays["decay"][row], arrays["closed"][row] = entry.decay, entry.closed
            arrays["scores"][row, : len(entry.index)] = entry.scores
            state = entry.state
            for group, named in {"params": entry.params, "m": state.m, "v": state.v, "owed": entry.owed}.items():
                for name, array in named.items():
                    arrays[f"{group}/{name}"][row] = array
        return arrays

    def restore(self, kept: Snapshot) -> None:
        """Make the entries again that `kept` was made of, for as many steps."""
        names = self.config.network.shapes
        for row, (_, index) in zip(range(len(kept["decay"])), self.config.order(), strict=False):
            groups = ("params", "m", "v", "owed")
            params, m, v, owed = ({name: kept[f"{group}/{name}"][row].copy() for name in names} for group in groups)
            scores, accounts = (
                kept["scores"][row, : len(index)].copy(),
                (kept[name][row] for name in ("decay", "closed")),
            )
            self.entries.append(Entry(index, params, AdamState(row, m, v), scores, owed, *accounts))

    def own(self, totals: Array) -> Array:
        """Return, like `totals`, what each sample has from its own steps, without what later ones owe it."""
        sums = np.zeros_like(totals).reshape(len(totals), -1)
        for entry in self.entries:
            sums[entry.index] += entry.scores
        return sums.reshape(totals.shape)

    def settle(self, totals: Array) -> tuple[Array, Array, Array]:
        """Return each sample's total, like `totals`, and each step's share of weight decay and what was closed."""
        sums = np.zeros_like(totals).reshape(len(totals), -1)
        carried: Params = {}
        beta1 = self.config.adam.betas[0]
        for entry in reversed(self.entries):
            sums[entry.index] += entry.scores
            if carried:
                x = network.sample_gradients(self._step(entry))
                sums[entry.index] += (1 - beta1) * ghost.dot_products(x, carried)
            carried = {name: beta1 * carried.get(name, 0.0) + owed for name, owed in entry.owed.items()}
        rows = (len(self.entries), sums.shape[1])  # also where there is no entry yet
        shares = (np.reshape([getattr(entry, name) for entry in self.entries], rows) for name in ("decay", "closed"))
        decay, closed = (share if self.per_validation else share[:, 0] for share in shares)
        return sums.reshape(totals.shape), decay, closed


def ledger_of(config: RunConfig, estimator: Estimator) -> Ledger:
    """Return an empty ledger for ``credit="carry"``.

    Parameters
    ----------
    config : RunConfig
        The run.
    estimator : Estimator
        Its slope, one of "frozen", "linearized", "tangent", "secant" and "random_order", is how Adam's map is split
        between momentum and batch: "secant" and "frozen" without remainder. "sgd" and "two_term" are no such split and
        are refused. Its gradient is where on the segment from θ_t to θ_{t+1}, the step that was walked, the validation
        gradient is taken.
    """
    slope = estimator.slope
    if slope == TWO_TERM or slope not in SPLITS:
        refuse(
            "slope",
            f"'{slope}' with credit 'carry'",
            "one of " + ", ".join(SPLITS) + ": the others do not split the step between batch and momentum",
        )
    return Ledger(config, slope, estimator.gradient, estimator.per_validation, estimator.nodes)


def _summed(judged: Params, values: Params) -> Array:
    """Return ⟨judged_j, values⟩ over all parameters: (J,)."""
    sums: Array = ghost.dot_products({name: value[None] for name, value in values.items()}, judged)[0]
    return sums


def _losses(step: Step, params: Params, *, each: bool) -> Array:
    losses = network.sample_losses(step.net, params, step.valid)
    return losses if each else np.mean(losses, keepdims=True)
