"""Hypothesis strategies for perceptrons, their parameters and their batches."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from adamshap.reference.contract import ACTIVATIONS, LOSSES, AdamState, Array, Batch, Network, Params, Step
from adamshap.verify.models.kind import EDGES, PRIMES, Draw
from adamshap.verify.models.perceptron import network_of

__all__ = ["PerceptronDraws", "networks"]


@cache
def networks(max_depth: int = 4, max_width: int = 17) -> st.SearchStrategy[Network]:
    """Return networks of every activation and loss, with and without bias; the depth counts linear layers."""
    widths = st.integers(1, max_width)
    sizes = st.lists(widths, min_size=2, max_size=max_depth + 1).map(tuple)
    return st.builds(
        Network, sizes, activation=st.sampled_from(ACTIVATIONS), loss=st.sampled_from(LOSSES), bias=st.booleans()
    )


class PerceptronDraws:
    """The strategies for perceptrons; the methods are described in `Draws`."""

    dimensions = ("input", "hidden", "outputs", "depth")

    def within(self, layers: frozenset[str]) -> "PerceptronDraws":
        """Return the same: a perceptron has no kinds of layers."""
        return self

    def models(self, **limits: int) -> st.SearchStrategy[Network]:
        """Return `networks`, with its ``max_depth`` and ``max_width`` as limits."""
        return networks(**limits)

    def at_edge(self, draw: Draw, model: Network, dimension: str) -> Network:
        """Return the network with one width from `EDGES`, or with more than ten layers."""
        if dimension == "depth":
            depth = draw(st.integers(11, 13), label="depth")
            return replace(model, sizes=tuple(1 + size % 4 for size in (model.sizes * depth)[: depth + 1]))
        return _with_width(model, dimension, draw(st.sampled_from(EDGES), label=f"size of {dimension}"))

    def special(self, draw: Draw, model: Network) -> Network:
        """Return the network, one in three of those with squared errors with one output, whose axis is easily lost."""
        if model.loss == "mse" and draw(st.sampled_from((False, False, True)), label="one output"):
            return _with_width(model, "outputs", 1)
        return model

    def parameters(self, model: Network, seed: int) -> Params:
        """Return the network's fresh parameters: its biases are random."""
        return model.init(seed)

    def with_zeros(self, model: Network, params: Params, generator: np.random.Generator) -> Params:
        """Return the parameters with those of about a third of the units at 0: their sums are then exactly 0."""
        zero = [generator.random(size) < 1 / 3 for size in model.sizes[1:]]
        params = {name: p.copy() for name, p in params.items()}
        for name, p in params.items():
            p[zero[int(name.split(".")[0])]] = 0.0
        return params

    def batch(self, draw: Draw, model: Network, n: int, label: str) -> Batch:
        """Return a batch of `n` samples; sometimes with equal and with zero rows."""
        generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label=f"{label} seed"))
        scale = draw(st.sampled_from([1.0, 0.01, 10.0]), label=f"{label} scale")
        x = generator.standard_normal((n, model.sizes[0])) * scale
        if draw(st.booleans(), label=f"{label} special rows"):
            x[generator.integers(n)] = x[generator.integers(n)]
            x[generator.integers(n)] = 0.0
        return Batch(x, _labels(model, n, generator))

    def ordinary_batch(self, model: Network, n: int, generator: np.random.Generator) -> Batch:
        """Return a batch of `n` samples of standard normal numbers."""
        x = generator.standard_normal((n, model.sizes[0]))
        return Batch(x, _labels(model, n, generator))

    def wide_models(self) -> st.SearchStrategy[Network]:
        """Return networks with biases whose inputs, a hidden layer and outputs have sizes from `PRIMES`.

        A narrow layer lies between any two wide ones, for about 2000 parameters.
        """
        narrow, wide = st.integers(2, 3), st.sampled_from(PRIMES)
        return _networks_of(st.tuples(wide, narrow, wide, narrow, wide), st.just(True))

    def large_models(self) -> st.SearchStrategy[Network]:
        """Return networks with a layer wider than 256, of at most 3600 parameters."""
        wide, narrow = st.integers(257, 272), st.integers(2, 6)
        return _networks_of(st.tuples(narrow, wide, narrow) | st.tuples(wide, narrow), st.booleans())

    def with_null_samples(self, draw: Draw, step: Step, null: Array, generator: np.random.Generator) -> Step:
        """Return the step changed so that the samples in the mask `null` have a gradient of exactly 0.

        Either the network has no bias and an activation with φ(0) = 0, and the sample's input is zero: then every
        layer's input is zero, and so is the gradient. Or the loss is "mse", the last layer's weights are zero, and the
        sample's target is the last bias: then the outputs equal that bias, and the gradient at the outputs is zero.
        """
        net = network_of(step)
        if draw(st.booleans(), label="zero input"):
            net = replace(net, bias=False, activation="relu" if net.activation == "sigmoid" else net.activation)
            params, m, v = ({name: a[name] for name in net.shapes} for a in (step.params, step.state.m, step.state.v))
            train = Batch(np.where(null[:, None], 0.0, step.train.x), step.train.y)
            return replace(step, net=net, params=params, state=AdamState(step.state.step, m, v), train=train)
        net, last = replace(net, loss="mse"), net.depth - 1
        params = dict(step.params) | {f"{last}.weight": np.zeros(net.shapes[f"{last}.weight"])}
        exact = params.get(f"{last}.bias", np.zeros(net.sizes[-1]))
        targets, validated = (generator.standard_normal((batch.n, net.sizes[-1])) for batch in (step.train, step.valid))
        train = Batch(step.train.x, np.where(null[:, None], exact, targets))
        return replace(step, net=net, params=params, train=train, valid=Batch(step.valid.x, validated))

    def null_samples(self, step: Step) -> Array:
        """Return a mask of the samples whose gradient is 0 for one of the reasons in `with_null_samples`."""
        net, null = network_of(step), np.zeros(step.n, bool)
        if not net.bias and net.activation != "sigmoid":
            null |= (step.train.x == 0).all(axis=1)
        last = net.depth - 1
        if net.loss == "mse" and not step.params[f"{last}.weight"].any():
            null |= (step.train.y == step.params.get(f"{last}.bias", 0.0)).all(axis=1)
        return null

    def reach(self, step: Step) -> float:
        """Return a bound on the outputs before and after the step, for any coalition.

        It follows from |A| ≤ η (|μ|/D(0) + k/√q), which holds for any gradient, with L2 decay or without.
        """
        net, t = network_of(step), step.state.next_step
        size = float(max(np.abs(step.train.x).max(), np.abs(step.valid.x).max()))
        for layer in range(net.depth):
            bias = 0.0
            for kind in ("weight", "bias") if net.bias else ("weight",):
                name = f"{layer}.{kind}"
                adam = step.settings(name)
                beta1, beta2 = adam.betas
                c1, c2 = 1 - beta1**t, 1 - beta2**t
                smallest = np.sqrt(beta2 * step.state.v[name] / c2 + adam.eps_root) + adam.eps
                moved = beta1 * np.abs(step.state.m[name]) / c1 / smallest
                moved = moved + (1 - beta1) / c1 * np.sqrt(c2 / (1 - beta2))
                far = np.abs(step.params[name]) + adam.lr * moved
                if kind == "weight":
                    size *= float(far.sum(axis=1).max())
                else:
                    bias = float(far.max())
            size += bias
        return size


def _with_width(model: Network, dimension: str, size: int) -> Network:
    """Return the network with `size` as the width of one dimension."""
    sizes = model.sizes
    if dimension == "input":
        sizes = (size, *sizes[1:])
    elif dimension == "outputs":
        sizes = (*sizes[:-1], size)
    else:
        sizes = (sizes[0], size, *sizes[2:]) if len(sizes) > 2 else (sizes[0], size, sizes[1])
    return replace(model, sizes=sizes)


def _labels(model: Network, n: int, generator: np.random.Generator) -> Array:
    if model.loss == "cross_entropy":
        return generator.integers(0, model.sizes[-1], n)
    return generator.standard_normal((n, model.sizes[-1]))


@st.composite
def _networks_of(draw: Any, sizes: st.SearchStrategy[tuple[int, ...]], bias: st.SearchStrategy[bool]) -> Network:
    """Return networks of `sizes`."""
    return Network(
        draw(sizes, label="sizes"),
        draw(st.sampled_from(ACTIVATIONS), label="activation"),
        draw(st.sampled_from(LOSSES), label="loss"),
        draw(bias, label="bias"),
    )
