"""The functions of the contract, for one way to compute."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from adamshap.reference.contract import AdamState, Array, Batch, CompletedSteps, Marginals, Network, Params, Step
from adamshap.verify.candidates.parts import adam_of, network_of
from adamshap.verify.candidates.variants.adam_map import AdamMap, Scalars, unit_rule
from adamshap.verify.candidates.variants.arithmetic import Arithmetic
from adamshap.verify.candidates.variants.passes import Captures, captures_of, mean_loss, sample_losses
from adamshap.verify.candidates.variants.slopes import signed_root, slope_of, two_terms

__all__ = ["Variant"]

EXACT_SHAPLEY = 10
"""Largest batch whose coalitions are all tried."""


@dataclass(frozen=True)
class _Pass:
    """A step's gradients and maps."""

    how: Arithmetic
    step: Step

    @cached_property
    def net(self) -> Network:
        return network_of(self.step)

    @cached_property
    def scalars(self) -> Scalars:
        return Scalars.of(self.how, adam_of(self.step), self.step.state.next_step, self.step.dtype)

    @cached_property
    def maps(self) -> dict[str, AdamMap]:
        m, v = self.step.state.m, self.step.state.v
        return {name: AdamMap.of(self.how, self.scalars, m[name], v[name]) for name in self.step.params}

    @cached_property
    def captures(self) -> Captures:
        captured = captures_of(self.how, self.net, self.step.params, self.step.train)
        return captured.times(1 / self.step.n) if self.step.reduction == "mean" else captured

    @cached_property
    def g(self) -> Params:
        return self.captures.summed(self.how)

    @cached_property
    def spreads(self) -> Params:
        """Σ (x_i − g/n)² per parameter."""
        n = self.step.n
        if self.how.variance == "centred":
            return {name: ((x - self.g[name] / n) ** 2).sum(axis=0) for name, x in self.captures.each().items()}
        squares = self.captures.squared(self.how)
        return {name: np.maximum(square - self.g[name] * self.g[name] / n, 0) for name, square in squares.items()}

    def at(self, fraction: float) -> Params:
        """Return the point on the way from A(0) to A(g), after weight decay."""
        points = {}
        for name, p in self.step.params.items():
            A, g = self.maps[name], self.g[name]
            way = (1 - fraction) * A(np.zeros_like(g)) + fraction * A(g)
            points[name] = p * (1 - self.scalars.lr * self.scalars.weight_decay) - way
        return points

    def after(self, g: Params) -> Params:
        """Return θ⁺ for the gradient g."""
        s = self.scalars
        return {name: p - s.lr * s.weight_decay * p - self.maps[name](g[name]) for name, p in self.step.params.items()}

    def gamma(self, gradient: str, nodes: int, part: tuple[float, float], each: bool) -> Params:
        """Return Γ, with a leading axis of 1, or of n_val for each validation sample's own."""
        low, high = part
        if gradient == "path":
            rule = [(low + tau * (high - low), w) for tau, w in zip(*unit_rule(nodes), strict=True)]
        else:
            rule = [((low + high) / 2, 1.0)]
        total: Params = {}
        for fraction, w in rule:
            point = self.step.params if gradient == "start" else self.at(fraction)
            for name, found in self.gradients(point, self.step.valid, each).items():
                total[name] = total.get(name, 0) + w * found
        return total

    def gradients(self, params: Params, batch: Batch, each: bool) -> Params:
        captured = captures_of(self.how, self.net, params, batch)
        if each:
            return captured.each()
        return {name: g[None] for name, g in captured.times(1 / batch.n).summed(self.how).items()}


@dataclass(frozen=True)
class Variant:
    """An implementation for perceptrons."""

    how: Arithmetic

    def update(self, step: Step) -> tuple[Params, AdamState]:
        """Return θ⁺, m⁺ and v⁺."""
        of = _Pass(self.how, step)
        s, m, v = of.scalars, {}, {}
        for name, g in of.g.items():
            m[name] = s.beta1 * step.state.m[name] + (1 - s.beta1) * g
            v[name] = s.beta2 * step.state.v[name] + (1 - s.beta2) * (g * g)
        return of.after(of.g), AdamState(CompletedSteps(step.state.next_step), m, v)

    def utility(self, step: Step, coalition: Array) -> float:
        """Return U(S)."""
        return self._game(step, "exact")(coalition)

    def _game(self, step: Step, loss: str) -> Callable[[Array], float]:
        of, x = _Pass(self.how, step), _Pass(self.how, step).captures.each()
        before = mean_loss(self.how, of.net, step.params, step.valid)
        gamma = of.gamma("start", 1, (0.0, 1.0), False)

        def gain(coalition: Array) -> float:
            kept = np.flatnonzero(coalition)
            g = {name: self.how.total(x_i[kept]) if len(kept) else np.zeros_like(x_i[0]) for name, x_i in x.items()}
            if loss == "exact":
                return before - mean_loss(self.how, of.net, of.after(g), step.valid)
            parts = [self.how.multiply(gamma[name].reshape(1, -1), of.maps[name](g[name]).reshape(-1, 1)) for name in g]
            return float(np.sum(parts))

        return gain

    def marginals(self, step: Step, kind: str, loss: str, permutations: int = 1024, seed: int = 0) -> Marginals:
        """Return the marginals, Shapley values over all coalitions of up to `EXACT_SHAPLEY` samples."""
        n, game = step.n, self._game(step, loss)
        one = np.eye(n, dtype=bool)
        empty, total = game(np.zeros(n, bool)), game(np.ones(n, bool))
        if kind == "first":
            values = np.array([game(one[i]) - empty for i in range(n)])
        elif kind == "last":
            values = np.array([total - game(~one[i]) for i in range(n)])
        elif n > EXACT_SHAPLEY:
            raise NotImplementedError("Shapley values of many samples")
        else:
            values = _shapley(game, n)
        return Marginals(values, empty, total, np.zeros(n))

    def influence(self, step: Step) -> Array:
        """Return ⟨∇L(θ⁺), A'(g) ⊙ x_i⟩."""
        of = _Pass(self.how, step)
        gamma = of.gradients(of.after(of.g), step.valid, False)
        P = {name: gamma[name][0] * of.maps[name].difference(g, g) for name, g in of.g.items()}
        return of.captures.dots(self.how, P)

    def scores(
        self,
        step: Step,
        slope: str = "random_order",
        gradient: str = "midpoint",
        efficient: bool = False,
        per_validation: bool = False,
        nodes: tuple[int, int] | None = None,
        denominator: str = "exact",
        kind: str = "shapley",
    ) -> Array:
        """Return (n,) scores, or (n, n_val)."""
        of, two = _Pass(self.how, step), slope == "two_term"
        nodes = nodes or ((8, 2) if two else (4, 4))
        part = {"first": (0.0, 1 / step.n), "last": (1 - 1 / step.n, 1.0), "shapley": (0.0, 1.0)}[kind]
        gamma = of.gamma(gradient, nodes[0], part if two else (0.0, 1.0), per_validation)
        S, R = self._coefficients(of, slope, nodes, denominator, kind)
        captured = of.captures
        columns = []
        for column in range(len(next(iter(gamma.values())))):
            Gamma = {name: found[column] for name, found in gamma.items()}
            values = captured.dots(self.how, {name: Gamma[name] * S[name] for name in S})
            if two:
                roots = Captures(
                    of.net, captured.losses, list(map(signed_root, captured.b)), list(map(signed_root, captured.a))
                )
                values = values + roots.dots(self.how, {name: Gamma[name] * R[name] for name in R})
            columns.append(values)
        matrix = np.stack(columns, axis=1)
        if efficient:
            empty, full = (sample_losses(self.how, of.net, of.at(end), step.valid) for end in (0.0, 1.0))
            gain = empty - full if per_validation else (empty - full).mean(keepdims=True)
            matrix = matrix + (gain - matrix.sum(axis=0)) / step.n
        return matrix if per_validation else matrix[:, 0]

    def _coefficients(
        self, of: _Pass, slope: str, nodes: tuple[int, int], denominator: str, kind: str
    ) -> tuple[Params, Params]:
        n = of.step.n
        if slope == "two_term":
            both = {name: two_terms(kind, A, of.g[name], of.spreads[name], n, nodes) for name, A in of.maps.items()}
            return {name: S for name, (S, _) in both.items()}, {name: R for name, (_, R) in both.items()}
        if denominator == "previous":
            s = of.scalars
            c2 = type(s.c2)(self.how.power(s.beta2, of.step.state.step))
            v = of.step.state.v
            roots = {name: np.sqrt(v[name] / c2 + s.eps_root) for name in v}
            return {name: s.lr * of.maps[name].k / (root + s.eps) for name, root in roots.items()}, {}
        needs = slope == "random_order"
        return {
            name: slope_of(slope, A, of.g[name], of.spreads[name] if needs else of.g[name], n, nodes)
            for name, A in of.maps.items()
        }, {}


def _shapley(game: Callable[[Array], Any], n: int) -> Array:
    values, members = np.zeros(n), [np.array([code >> i & 1 == 1 for i in range(n)]) for code in range(2**n)]
    gains = [game(member) for member in members]
    for code, member in enumerate(members):
        for i in np.flatnonzero(~member):
            values[i] += (gains[code | 1 << int(i)] - gains[code]) / (n * math.comb(n - 1, int(member.sum())))
    return values
