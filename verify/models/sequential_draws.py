"""Hypothesis strategies for stacks of layers, their parameters and their batches."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from adamshap.reference.contract import (
    Activation,
    AdamState,
    Array,
    Attention,
    Batch,
    Conv2d,
    Embedding,
    Flatten,
    LayerNorm,
    Linear,
    MaxPool2d,
    MeanOverPositions,
    Params,
    Positions,
    RMSNorm,
    Sequential,
    Step,
    TiedLinear,
)
from adamshap.verify.models.kind import EDGES, PRIMES, Draw
from adamshap.verify.models.places import places_of
from adamshap.verify.models.random_stacks import Choices, random_stack
from adamshap.verify.models.sequential import input_shapes, input_size, largest_outputs, sequential_of, uncounted

__all__ = ["SequentialDraws", "stacks"]

LONG = tuple(size for size in EDGES if size <= 33)
"""Edges of sequences and heads: attention keeps their squares for each sample and head."""

LOGITS = 1e4
"""Largest limit on logits: far beyond it a label's probability rounds to 1, and whole gradients to 0."""


class _Drawn(Choices):
    """Choices by Hypothesis."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw

    def integer(self, low: int, high: int, label: str) -> int:
        return int(self.draw(st.integers(low, high), label=label))

    def one(self, options: Any, label: str) -> Any:
        return self.draw(st.sampled_from(options), label=label)


@st.composite
def _stacks(draw: Any, kinds: frozenset[str] | None) -> Sequential:
    return random_stack(_Drawn(draw), kinds, corners=True)


@cache
def stacks(kinds: frozenset[str] | None = None) -> st.SearchStrategy[Sequential]:
    """Return stacks of 1 to 6 layers of some kinds, by default of every kind."""
    return _stacks(kinds)


AT_EDGES = {
    "vocab": {"embedding", "tied_linear"},
    "positions": {"embedding", "positions", "attention", "tied_linear"},
    "norm": {"rms_norm", "layer_norm", "linear"},
    "heads": {"attention", "mean_over_positions"},
    "channels": {"conv2d", "flatten", "linear"},
}
"""Dimensions that may be at an edge, with the layers of their stacks."""


@dataclass(frozen=True)
class SequentialDraws:
    """The strategies for stacks of layers; the methods are described in `Draws`.

    Parameters
    ----------
    kinds : frozenset of str, optional
        The kinds of layers that are drawn; all by default.
    """

    kinds: frozenset[str] | None = None

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The names in `AT_EDGES` whose layers are drawn."""
        return tuple(name for name, needed in AT_EDGES.items() if self._has(needed))

    def _has(self, needed: set[str]) -> bool:
        return self.kinds is None or needed <= self.kinds

    def within(self, layers: frozenset[str]) -> "SequentialDraws":
        """Return the strategies for stacks of some kinds of layers only."""
        return SequentialDraws(layers)

    def models(self, **limits: int) -> st.SearchStrategy[Sequential]:
        """Return `stacks`, which has no limits."""
        return stacks(self.kinds)

    def at_edge(self, draw: Draw, model: Sequential, dimension: str) -> Sequential:
        """Return another stack, small but for one dimension from `EDGES`, or up to 33 for positions and heads."""
        few = dimension in ("positions", "heads")
        size = draw(st.sampled_from(LONG if few else EDGES), label=f"size of {dimension}")
        if dimension == "vocab":
            return Sequential((Embedding(size, 2), TiedLinear(2, size, "0.weight")))
        if dimension == "positions":
            return Sequential((Embedding(3, 2), Positions(size, 2), Attention(2), TiedLinear(2, 3, "0.weight")))
        if dimension == "norm":
            root = size == 1 or draw(st.booleans(), label="root mean square")  # LayerNorm over one number is 0
            norm = RMSNorm(size, 0.1) if root else LayerNorm(size, eps=0.1)
            return Sequential((norm, Linear(size, 2)), loss="mse")
        if dimension == "heads":
            return Sequential((Attention(size, size), MeanOverPositions()), loss="mse")
        return Sequential((Conv2d(size, 2, (1, 1)), Flatten(), Linear(4, 2)))

    def special(self, draw: Draw, model: Sequential) -> Sequential:
        """Return the stack, one in six times another one with windows of max pooling over several places."""
        if not self._has({"conv2d", "max_pool2d", "flatten", "linear"}):
            return model
        if not draw(st.sampled_from((False,) * 5 + (True,)), label="max pool"):
            return model
        stride, bias = draw(st.sampled_from((None, 1)), label="stride of the pool"), draw(st.booleans(), label="bias")
        loss = draw(st.sampled_from(("mse", "cross_entropy")), label="loss")
        pool = MaxPool2d((2, 2), stride)
        convolution = Conv2d(2, 2, (1, 1), bias=bias)
        width = Sequential((convolution, pool, Flatten()), loss="mse").out_shape("x", (2, 3, 3))[0]
        return Sequential((convolution, pool, Flatten(), Linear(width, 3)), loss=loss)

    def parameters(self, model: Sequential, seed: int) -> Params:
        """Return fresh parameters with random gains and biases, which start at 1 and 0, and larger embeddings."""
        params, generator = model.init(seed), np.random.default_rng(seed)
        for name, place in places_of(model).items():
            shape = params[name].shape
            if place.layer in ("layer_norm", "rms_norm") and place.field == "weight":
                params[name] = generator.choice((-1.0, 1.0), shape) * generator.uniform(0.5, 1.5, shape)
            elif place.layer in ("embedding", "positions") or not params[name].any():
                params[name] = 0.3 * generator.standard_normal(shape)
        return params

    def with_zeros(self, model: Sequential, params: Params, generator: np.random.Generator) -> Params:
        """Return the parameters with about a third of the units of each layer at 0: their sums are then exactly 0.

        Below max pooling the first channel always is: all of its windows' numbers are equal, and their inputs are not.
        """
        below = zip(model.names, model.layers, model.layers[1:], strict=False)
        pooled = {name for name, _, after in below if isinstance(after, MaxPool2d)}
        zero: dict[tuple[str, int], Array] = {}
        params = {name: p.copy() for name, p in params.items()}
        for name, p in params.items():
            unit = (name.rpartition(".")[0], len(p))
            zero.setdefault(unit, generator.random(len(p)) < 1 / 3)
            if unit[0] in pooled:
                zero[unit][0] = True
            p[zero[unit]] = 0.0
        return params

    def batch(self, draw: Draw, model: Sequential, n: int, label: str) -> Batch:
        """Return a batch of `n` samples; sometimes with equal and with zero samples, repeated tokens, and −100."""
        shape = draw(st.sampled_from(input_shapes(model, corners=True)), label=f"{label} sample's shape")
        generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label=f"{label} seed"))
        scale = draw(st.sampled_from([1.0, 0.01, 10.0]), label=f"{label} scale")
        special = draw(st.booleans(), label=f"{label} special samples")
        x = _inputs(model, (n, *shape), generator, scale)
        if special:
            x[generator.integers(n)] = x[generator.integers(n)]
            if model.takes_tokens:
                x[generator.integers(n)] = x[generator.integers(n), :1]  # one token, repeated
            else:
                x[generator.integers(n)] = 0
        return Batch(x, _labels(model, n, shape, generator, special))

    def ordinary_batch(self, model: Sequential, n: int, generator: np.random.Generator) -> Batch:
        """Return a batch of `n` of the longest samples, of standard normal numbers or random tokens."""
        shape = input_shapes(model)[-1]
        x = _inputs(model, (n, *shape), generator, 1.0)
        return Batch(x, _labels(model, n, shape, generator, False))

    def wide_models(self) -> st.SearchStrategy[Sequential]:
        """Return stacks with a vocabulary and a norm from `PRIMES`."""
        wide = st.sampled_from(PRIMES)
        return st.builds(
            lambda vocab, width: Sequential(
                (Embedding(vocab, 2), Linear(2, width), LayerNorm(width), Linear(width, 3))
            ),
            wide,
            wide,
        )

    def large_models(self) -> st.SearchStrategy[Sequential]:
        """Return stacks with a layer wider than 256."""
        return st.integers(257, 272).map(
            lambda width: Sequential((Linear(3, width), Activation("tanh"), RMSNorm(width), Linear(width, 3)))
        )

    def with_null_samples(self, draw: Draw, step: Step, null: Array, generator: np.random.Generator) -> Step:
        """Return the step changed so that the samples in the mask `null` have a gradient of exactly 0.

        The outputs pass through one more layer with weights of 0, linear or for images a convolution, and the loss is
        "mse". The targets of these samples are its bias, so that the gradient at the outputs is 0.
        """
        net = sequential_of(step)
        if isinstance(net.layers[-1], Flatten):  # its outputs grow with the sequence
            net = Sequential(net.layers[:-1], net.names[:-1], "mse")
        out, last = net.out_shape("x", step.train.x.shape[1:]), str(len(net.layers))
        layer: Any = Conv2d(out[0], 2, (1, 1)) if len(out) == 3 else Linear(out[-1], 2)
        net = Sequential((*net.layers, layer), (*net.names, last), "mse")
        bias = generator.standard_normal(2)
        added = {f"{last}.weight": np.zeros(layer.shapes["weight"]), f"{last}.bias": bias}
        moments = {name: np.full(p.shape, 0.01) for name, p in added.items()}
        state = AdamState(step.state.step, {**step.state.m, **moments}, {**step.state.v, **moments})
        shapes = [(b.n, *net.out_shape("x", b.x.shape[1:])) for b in (step.train, step.valid)]
        targets, validated = (generator.standard_normal(shape) for shape in shapes)
        targets[null] = _along_outputs(layer, bias)
        params = {**step.params, **added}
        train, valid = Batch(step.train.x, targets), Batch(step.valid.x, validated)
        return Step(net, params, step.adam, state, train, valid, step.reduction)

    def null_samples(self, step: Step) -> Array:
        """Return a mask of the samples whose gradient is 0 for the reason in `with_null_samples`."""
        net = sequential_of(step)
        bias, weight = (step.params.get(f"{net.names[-1]}.{name}") for name in ("bias", "weight"))
        if net.loss != "mse" or bias is None or weight is None or weight.any():
            return np.zeros(step.n, bool)
        same: Array = (step.train.y == _along_outputs(net.layers[-1], bias)).reshape(step.n, -1).all(axis=1)
        return same

    def reach(self, step: Step) -> float:
        """Return a bound on all results of layers before and after the step, for any coalition; ∞ beyond `LOGITS`.

        It follows from |A| ≤ η (|μ|/D(0) + k/√q), which holds for any gradient, with L2 decay or without.
        """
        net, t, far = sequential_of(step), step.state.next_step, {}
        for name, p in step.params.items():
            adam = step.settings(name)
            beta1, beta2 = adam.betas
            c1, c2 = 1 - beta1**t, 1 - beta2**t
            smallest = np.sqrt(beta2 * step.state.v[name] / c2 + adam.eps_root) + adam.eps
            moved = beta1 * np.abs(step.state.m[name]) / c1 / smallest
            far[name] = np.abs(p) + adam.lr * (moved + (1 - beta1) / c1 * np.sqrt(c2 / (1 - beta2)))
        size = largest_outputs(net, far, input_size(net, step.train, step.valid))
        return size if net.loss == "mse" or size <= LOGITS else float("inf")


def _along_outputs(layer: Any, bias: Array) -> Array:
    return bias[:, None, None] if isinstance(layer, Conv2d) else bias


def _inputs(model: Sequential, shape: tuple[int, ...], generator: np.random.Generator, scale: float) -> Array:
    if model.takes_tokens:
        vocab: int = model.layers[0].vocab  # type: ignore[attr-defined]
        return generator.integers(0, vocab, shape)
    return generator.standard_normal(shape) * scale


def _labels(model: Sequential, n: int, shape: tuple[int, ...], generator: np.random.Generator, drop: bool) -> Array:
    out = model.out_shape("x", shape)
    if model.loss == "mse":
        return generator.standard_normal((n, *out))
    labels = generator.integers(0, out[-1], (n, *out[:-1]))
    return uncounted(labels, generator.random(labels.shape) < 0.4) if drop and len(out) == 2 else labels
