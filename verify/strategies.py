"""Every Hypothesis strategy of the project: random networks, optimisers, states, batches and steps.

What shapes a problem (sizes, names, exponents, t) is drawn by Hypothesis, so that a failure shrinks to the smallest
network and batch; the numbers in the arrays come from a generator whose seed is drawn.
"""

from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from adamshap.reference.problem import (
    ACTIVATIONS,
    LOSSES,
    REDUCTIONS,
    Adam,
    AdamState,
    Array,
    Batch,
    Network,
    Params,
    RunConfig,
    Step,
)

FARTHEST = 1e9
"""Largest output of a network, before or after the step, in the steps that are drawn."""

STATES = ("fresh", "ordinary", "adversarial")
"""Kinds of optimiser state: before the first step; as a run leaves it; mixtures that no run would leave."""

seeds = st.integers(0, 2**32 - 1)


def networks(max_depth: int = 4, max_width: int = 17) -> st.SearchStrategy[Network]:
    """Return networks of every activation and loss, with and without bias; a depth is a number of linear layers."""
    widths = st.integers(1, max_width)
    sizes = st.lists(widths, min_size=2, max_size=max_depth + 1).map(tuple)
    return st.builds(
        Network, sizes, activation=st.sampled_from(ACTIVATIONS), loss=st.sampled_from(LOSSES), bias=st.booleans()
    )


def powers_of_ten(low: float, high: float) -> st.SearchStrategy[float]:
    """Return numbers from 10^low to 10^high, even in the exponent."""
    return st.floats(low, high).map(lambda exponent: float(10**exponent))


def adams() -> st.SearchStrategy[Adam]:
    """Return Adam's settings: β1 in [0, 0.999], β2 in [0, 0.9999], ε in [1e-12, 0.1]."""
    return st.builds(
        Adam,
        lr=powers_of_ten(-5, -1),
        betas=st.tuples(
            st.sampled_from([0.9, 0.0, 0.5, 0.999]) | st.floats(0, 0.999),
            st.sampled_from([0.999, 0.0, 0.5, 0.9, 0.9999]) | st.floats(0, 0.9999),
        ),
        eps=st.just(1e-8) | powers_of_ten(-12, -1),
        eps_root=st.just(0.0) | powers_of_ten(-16, -4),
        weight_decay=st.sampled_from([0.0, 0.01, 0.3]),
    )


step_numbers = powers_of_ten(0, 4).map(int)
"""Completed steps, 1 to 10⁴, even in the exponent."""


@st.composite
def batches(draw: Any, net: Network, max_n: int, label: str) -> Batch:
    """Return a batch for `net`, of 1 to `max_n` samples; now and then with equal and with zero rows."""
    n = draw(st.integers(1, max_n), label=f"{label} n")
    generator = np.random.default_rng(draw(seeds, label=f"{label} seed"))
    x = generator.standard_normal((n, net.sizes[0])) * draw(st.sampled_from([1.0, 0.01, 10.0]), label=f"{label} scale")
    if draw(st.booleans(), label=f"{label} special rows"):
        x[generator.integers(n)] = x[generator.integers(n)]
        x[generator.integers(n)] = 0.0
    if net.loss == "cross_entropy":
        return Batch(x, generator.integers(0, net.sizes[-1], n))
    return Batch(x, generator.standard_normal((n, net.sizes[-1])))


@st.composite
def states(draw: Any, params: Params, kinds: tuple[str, ...] = STATES) -> AdamState:
    """Return an optimiser state of one of `kinds`."""
    kind = draw(st.sampled_from(kinds), label="state")
    if kind == "fresh":
        return AdamState.zeros(params)
    generator = np.random.default_rng(draw(seeds, label="state seed"))
    scale = draw(powers_of_ten(-6, 0), label="state scale")
    m = {name: scale * generator.standard_normal(p.shape) for name, p in params.items()}
    v = {name: scale**2 * generator.chisquare(3, p.shape) for name, p in params.items()}
    if kind == "adversarial":
        m = {name: _some_zero(generator, m_) for name, m_ in m.items()}
        v = {name: _some_zero(generator, v_ * 10 ** generator.uniform(-12, 6, v_.shape)) for name, v_ in v.items()}
    return AdamState(draw(step_numbers, label="completed steps"), m, v)


def _some_zero(generator: np.random.Generator, array: Array) -> Array:
    return np.where(generator.random(array.shape) < 0.3, 0.0, array)


@st.composite
def steps(
    draw: Any,
    max_depth: int = 4,
    max_width: int = 17,
    max_n: int = 32,
    max_n_val: int = 8,
    kinds: tuple[str, ...] = STATES,
) -> Step:
    """Return whole training steps in float64: the random problem on which implementations are compared.

    Steps whose outputs could exceed `FARTHEST` are left out: float32 could not hold what is computed from them.
    """
    net = draw(networks(max_depth, max_width), label="network")
    params = net.init(draw(seeds, label="parameter seed"))
    step = Step(
        net,
        params,
        draw(adams(), label="adam"),
        draw(states(params, kinds)),
        draw(batches(net, max_n, "train")),
        draw(batches(net, max_n_val, "valid")),
        draw(st.sampled_from(REDUCTIONS), label="reduction"),
    )
    assume(_reach(step) <= FARTHEST)
    return step


@st.composite
def run_configs(draw: Any) -> RunConfig:
    """Return training runs of a few small steps."""
    net = draw(networks(max_depth=3, max_width=6), label="network")
    return RunConfig(
        net,
        draw(adams(), label="adam"),
        draw(batches(net, 7, "train")),
        draw(batches(net, 4, "valid")),
        epochs=draw(st.integers(1, 3), label="epochs"),
        batch_size=draw(st.integers(1, 4), label="batch size"),
        seed=draw(seeds, label="seed"),
        reduction=draw(st.sampled_from(REDUCTIONS), label="reduction"),
    )


def _reach(step: Step) -> float:
    """Return a bound on the outputs before and after the step, whatever the coalition: |A| ≤ η (|μ|/D(0) + k/√q)."""
    (beta1, beta2), t = step.adam.betas, step.state.step + 1
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    size = float(max(np.abs(step.train.x).max(), np.abs(step.valid.x).max()))
    for layer in range(step.net.depth):
        bias = 0.0
        for kind in ("weight", "bias") if step.net.bias else ("weight",):
            name = f"{layer}.{kind}"
            smallest = np.sqrt(beta2 * step.state.v[name] / c2 + step.adam.eps_root) + step.adam.eps
            moved = beta1 * np.abs(step.state.m[name]) / c1 / smallest + (1 - beta1) / c1 * np.sqrt(c2 / (1 - beta2))
            far = np.abs(step.params[name]) + step.adam.lr * moved
            if kind == "weight":
                size *= float(far.sum(axis=1).max())
            else:
                bias = float(far.max())
        size += bias
    return size
