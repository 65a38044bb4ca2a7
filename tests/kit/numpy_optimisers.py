"""Perceptrons, and optimisers read from a case's JSON, in plain NumPy in the step's own dtype.

A second implementation of steps with groups, schedules, clipping and L2 decay. It knows the optimiser by its JSON only,
so it also shows that a reader in another language has all it needs. Gradients are written by hand.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamshap.reference import AdamState, Marginals, Step
from adamshap.reference.contract import Array, Batch, CompletedSteps, Network, Params
from adamshap.verify.optimisers.as_json import optimiser_to_json

SUPPORTS = ("groups", "schedule", "clip", "l2")


# --- the optimiser, from JSON ----------------------------------------------------------------------------------------


def factor(schedule: Any, t: int) -> float:
    if schedule is None:
        return 1.0
    shape, warmup = schedule["shape"], schedule["warmup"]
    if isinstance(shape, list):
        return float(shape[t - 1])
    if t - 1 < warmup:
        return (t - 1) / warmup  # type: ignore[no-any-return]
    if shape == "constant":
        return 1.0
    floor, part = schedule["floor"], min(1.0, (t - 1 - warmup) / (schedule["steps"] - warmup))
    left = 1 - part if shape == "linear" else math.cos(math.pi * part / 2) ** 2
    return floor + (1 - floor) * left  # type: ignore[no-any-return]


def settings(step: Step) -> tuple[dict[str, Any], Any]:
    """Return the settings of each parameter, and the clipping."""
    written = optimiser_to_json(step.adam, step.params)
    if "adam" in written:
        return {name: {**written["adam"], "l2": 0.0} for name in step.params}, None
    given = written["optimizer"]
    found = dict.fromkeys(step.params, given["adam"])
    for group in given["groups"]:
        found |= dict.fromkeys(group["params"], group["adam"])
    f = factor(given["schedule"], step.state.step + 1)
    return {name: {**one, "lr": one["lr"] * f} for name, one in found.items()}, given["clip"]


# --- the network -----------------------------------------------------------------------------------------------------


def normal_cdf(z: Array) -> Array:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z.ravel()]).reshape(z.shape).astype(z.dtype)


def logistic(z: Array) -> Array:
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + small), small / (1 + small))  # type: ignore[no-any-return]


def activated(kind: str, z: Array) -> tuple[Array, Array]:
    """Return φ(z) and φ'(z)."""
    if kind == "relu":
        return np.where(z > 0, z, 0), (z > 0).astype(z.dtype)
    if kind == "tanh":
        return np.tanh(z), 1 - np.tanh(z) ** 2
    if kind == "sigmoid":
        return logistic(z), logistic(z) * logistic(-z)
    if kind == "silu":
        return z * logistic(z), logistic(z) * (1 + z * logistic(-z))
    if kind == "gelu":
        density = np.exp(-np.minimum(z * z, 200) / 2) / math.sqrt(2 * math.pi)
        return z * normal_cdf(z), normal_cdf(z) + z * density.astype(z.dtype)
    return z, np.ones_like(z)


def passes(net: Network, params: Params, batch: Batch, back: bool) -> tuple[Array, Params]:
    """Return each sample's loss (n,), and its gradients (n, …)."""
    a: Array = batch.x.astype(next(iter(params.values())).dtype)
    inputs, slopes = [], []
    for layer in range(net.depth):
        inputs.append(a)
        z = a @ params[f"{layer}.weight"].T + params.get(f"{layer}.bias", 0)
        a, slope = activated(net.activation, z) if layer < net.depth - 1 else (z, z)
        slopes.append(slope)
    if net.loss == "mse":
        off = a - batch.y.astype(a.dtype)
        losses, b = (off**2).mean(axis=1), 2 * off / a.shape[1]
    else:
        shifted = a - a.max(axis=1, keepdims=True)
        exponentials, own = np.exp(shifted), np.arange(a.shape[1]) == batch.y[:, None]
        losses = np.log(exponentials.sum(axis=1)) - shifted[own]
        b = exponentials / exponentials.sum(axis=1, keepdims=True) - own
    gradients: Params = {}
    for layer in reversed(range(net.depth) if back else []):
        gradients[f"{layer}.weight"] = b[:, :, None] * inputs[layer][:, None]
        gradients[f"{layer}.bias"] = b
        if layer:
            b = (b @ params[f"{layer}.weight"]) * slopes[layer - 1]
    return losses, {name: gradients[name].astype(a.dtype) for name in params if back}


def mean_gradient(net: Network, params: Params, batch: Batch) -> Params:
    return {name: g.mean(axis=0) for name, g in passes(net, params, batch, True)[1].items()}


# --- Adam ------------------------------------------------------------------------------------------------------------


@dataclass
class Map:
    """Adam's map of the samples' gradient for one parameter: A(d + g)."""

    lr: float
    eps: float
    mu: Array
    k: float
    kappa: Array
    q: float
    d: Array

    def root(self, g: Array) -> Array:
        return np.hypot(np.sqrt(self.kappa), math.sqrt(self.q) * (self.d + g))  # type: ignore[no-any-return]

    def __call__(self, g: Array) -> Array:
        return self.lr * (self.mu + self.k * (self.d + g)) / (self.root(g) + self.eps)

    def slope(self, a: Array, b: Array) -> Array:
        """Return (A(a) − A(b))/(a − b), its terms in k collected so that they do not cancel."""
        r, s = self.root(a), self.root(b)
        a, b = self.d + a, self.d + b
        r_, s_ = np.where(r > 0, r, 1), np.where(s > 0, s, 1)
        product = self.q * a * b
        beside = r_ + np.maximum(product, 0) / s_
        positive = self.kappa / beside * (self.kappa / s_ + self.q * (a * (a / s_) + b * (b / s_)))
        gap = np.where(product > 0, positive, r * s - product)
        total = np.where(r + s > 0, r + s, 1)
        top = self.k * (self.eps + (self.kappa + gap) / total) - self.mu * (self.q * ((a + b) / total))
        return self.lr * top / (r + self.eps) / (s + self.eps)  # type: ignore[no-any-return]


class Taken:
    """Everything that the functions need of one step."""

    def __init__(self, step: Step) -> None:
        if not isinstance(step.net, Network):
            raise NotImplementedError("a perceptron")
        self.step, self.net = step, step.net
        own, clip = settings(step)
        t, weight = step.state.step + 1, 1 / step.n if step.reduction == "mean" else 1.0
        x = {name: weight * each for name, each in passes(self.net, step.params, step.train, True)[1].items()}
        if clip is not None:
            norm = math.sqrt(sum(float((each.sum(axis=0) ** 2).sum()) for each in x.values()))
            c = min(1.0, clip["norm"] / (norm + clip["eps"])) if norm + clip["eps"] else 1.0
            x = {name: c * each for name, each in x.items()}
        self.x, self.g = x, {name: each.sum(axis=0) for name, each in x.items()}
        self.own = own
        self.maps: dict[str, Map] = {}
        for name, one in own.items():
            (beta1, beta2), p = one["betas"], step.params[name]
            c1, c2 = 1 - beta1**t, 1 - beta2**t
            self.maps[name] = Map(
                one["lr"],
                one["eps"],
                beta1 / c1 * step.state.m[name],
                (1 - beta1) / c1,
                beta2 / c2 * step.state.v[name] + one["eps_root"],
                (1 - beta2) / c2,
                one["l2"] * p,
            )

    def after(self, g: Params, fraction: float = 1.0) -> Params:
        """Return the parameters at a fraction of the way from A(d) to A(d + g)."""
        moved = {}
        for name, p in self.step.params.items():
            A, one = self.maps[name], self.own[name]
            way = A(g[name]) if fraction == 1 else (1 - fraction) * A(0 * g[name]) + fraction * A(g[name])
            moved[name] = p - one["lr"] * one["weight_decay"] * p - way
        return moved

    def received(self, members: Any) -> Params:
        return {name: each[np.asarray(members, bool)].sum(axis=0) for name, each in self.x.items()}


def update(step: Step) -> tuple[Params, AdamState]:
    one = Taken(step)
    g = {name: one.maps[name].d + array for name, array in one.g.items()}
    betas = {name: one.own[name]["betas"] for name in g}
    m = {name: betas[name][0] * step.state.m[name] + (1 - betas[name][0]) * g[name] for name in g}
    v = {name: betas[name][1] * step.state.v[name] + (1 - betas[name][1]) * g[name] ** 2 for name in g}
    return one.after(one.g), AdamState(CompletedSteps(step.state.step + 1), m, v)


def _utility(one: Taken, first_order: bool = False) -> Callable[[Any], float]:
    if first_order:
        gamma = mean_gradient(one.net, one.step.params, one.step.valid)
        return lambda members: sum(
            float((gamma[name] * one.maps[name](g)).sum()) for name, g in one.received(members).items()
        )

    def loss(params: Params) -> float:
        return float(passes(one.net, params, one.step.valid, False)[0].mean())

    before = loss(one.step.params)
    return lambda members: before - loss(one.after(one.received(members)))


def utility(step: Step, coalition: Array) -> float:
    return _utility(Taken(step))(coalition)


def marginals(step: Step, kind: str, loss: str) -> Marginals:
    U, n = _utility(Taken(step), loss == "first_order"), step.n
    everybody, nobody = U(np.ones(n)), U(np.zeros(n))
    if kind == "first":
        values = np.array([U(row) - nobody for row in np.eye(n)])
    elif kind == "last":
        values = np.array([everybody - U(1 - row) for row in np.eye(n)])
    else:
        known = {members: U(members) for members in itertools.product((0, 1), repeat=n)}
        values = np.zeros(n)
        for members, i in itertools.product(known, range(n)):
            if not members[i]:
                weight = 1 / (n * math.comb(n - 1, sum(members)))
                values[i] += weight * (known[(*members[:i], 1, *members[i + 1 :])] - known[members])
    return Marginals(values, nobody, everybody, np.zeros(n))


def influence(step: Step) -> Array:
    one = Taken(step)
    gamma = mean_gradient(one.net, one.after(one.g), step.valid)
    return _dot(one.x, {name: gamma[name] * one.maps[name].slope(g, g) for name, g in one.g.items()})


def _dot(x: Params, P: Params) -> Array:
    return sum(x_i.reshape(len(x_i), -1) @ P[name].ravel() for name, x_i in x.items())  # type: ignore[return-value]


def _slope(kind: str, A: Map, x: Array, g: Array, nodes: tuple[int, int]) -> Array:
    zero = np.zeros_like(g)
    if kind == "sgd":
        return A.lr + zero
    if kind == "frozen":
        return A.lr * A.k / (A.root(g) + A.eps)  # type: ignore[no-any-return]
    if kind in ("linearized", "tangent"):
        return A.slope(g, g) if kind == "tangent" else A.slope(zero, zero)
    if kind == "secant" or len(x) == 1:
        return A.slope(g, zero)
    sigma = np.sqrt(len(x) / (len(x) - 1) * ((x - g / len(x)) ** 2).sum(axis=0))
    path, path_weights = np.polynomial.legendre.leggauss(nodes[0])
    normal, normal_weights = np.polynomial.hermite_e.hermegauss(nodes[1])
    total = zero
    for tau, w in zip((path + 1) / 2, path_weights / 2, strict=True):
        for h, a in zip(normal, normal_weights / math.sqrt(2 * math.pi), strict=True):
            if h > 1e-9:
                far = h * math.sqrt(tau * (1 - tau)) * sigma
                total = total + 2 * w * a * h * h * A.slope(tau * g + far, tau * g - far)
    return total


def scores(
    step: Step,
    slope: str,
    gradient: str,
    efficient: bool = False,
    per_validation: bool = False,
    nodes: tuple[int, int] = (4, 4),
) -> Array:
    one = Taken(step)
    S = {name: _slope(slope, A, one.x[name], one.g[name], nodes) for name, A in one.maps.items()}
    path, weights = np.polynomial.legendre.leggauss(nodes[0])
    places = {"start": [(None, 1.0)], "midpoint": [(0.5, 1.0)]}.get(
        gradient, list(zip((path + 1) / 2, weights / 2, strict=True))
    )
    columns = []
    for j in range(step.n_val) if per_validation else [None]:
        valid = step.valid if j is None else step.valid.take([j])
        P = {name: 0 * array for name, array in S.items()}
        for place, w in places:
            there = step.params if place is None else one.after(one.g, float(place))
            for name, gamma in mean_gradient(one.net, there, valid).items():
                P[name] = P[name] + w * gamma * S[name]
        values = _dot(one.x, P)
        if efficient:
            ends = [one.after({name: by * g for name, g in one.g.items()}) for by in (0, 1)]
            gain = np.subtract(*(passes(one.net, end, valid, False)[0].mean() for end in ends))
            values = values + (gain - values.sum()) / step.n
        columns.append(values)
    return np.stack(columns, axis=1) if per_validation else columns[0]
