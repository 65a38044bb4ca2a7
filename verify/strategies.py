"""Every Hypothesis strategy of the project: random networks, optimisers, states, batches and steps.

What shapes a problem (sizes, names, exponents, t) is drawn by Hypothesis, so that a failure shrinks to the smallest
network and batch; the numbers in the arrays come from a generator whose seed is drawn.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from adamshap.reference.contract import (
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

EDGES = (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)
"""Sizes at which tiles, blocks and small integers end, and their neighbours."""

DIMENSIONS = ("input", "hidden", "outputs", "depth", "n_val", "n")
"""What a step may have at an edge: a width, the number of layers, or of samples."""

PRIMES = (257, 263, 269, 271)
"""Sizes that no tile of 2 to 256 divides: each leaves a remainder."""

seeds = st.integers(0, 2**32 - 1)


@cache
def networks(max_depth: int = 4, max_width: int = 17) -> st.SearchStrategy[Network]:
    """Return networks of every activation and loss, with and without bias; a depth is a number of linear layers."""
    widths = st.integers(1, max_width)
    sizes = st.lists(widths, min_size=2, max_size=max_depth + 1).map(tuple)
    return st.builds(
        Network, sizes, activation=st.sampled_from(ACTIVATIONS), loss=st.sampled_from(LOSSES), bias=st.booleans()
    )


@cache
def powers_of_ten(low: float, high: float) -> st.SearchStrategy[float]:
    """Return numbers from 10^low to 10^high, even in the exponent."""
    return st.floats(low, high).map(lambda exponent: float(10**exponent))


@cache
def adams() -> st.SearchStrategy[Adam]:
    """Return Adam's settings: β1 in [0, 0.999], β2 in [0, 0.9999], ε in [1e-12, 0.1], or 0 beside an ε_root."""
    positive = st.just(1e-8) | powers_of_ten(-12, -1)
    return st.builds(
        lambda epsilons, **others: Adam(eps=epsilons[0], eps_root=epsilons[1], **others),
        st.tuples(positive, st.just(0.0)) | st.tuples(positive | st.just(0.0), powers_of_ten(-16, -4)),
        lr=powers_of_ten(-5, -1),
        betas=st.tuples(
            st.sampled_from([0.9, 0.0, 0.5, 0.999]) | st.floats(0, 0.999),
            st.sampled_from([0.999, 0.0, 0.5, 0.9, 0.9999]) | st.floats(0, 0.9999),
        ),
        weight_decay=st.sampled_from([0.0, 0.01, 0.3]),
    )


step_numbers = powers_of_ten(0, 6).map(int)
"""Completed steps, 1 to 10⁶, even in the exponent."""


@st.composite
def batches(draw: Any, net: Network, max_n: int, label: str, n: int | None = None) -> Batch:
    """Return a batch for `net`, of `n` or of 1 to `max_n` samples; now and then with equal and with zero rows."""
    if n is None:  # every other time a small batch: n/(n − 1) and the like differ most at 2 and 3
        few = st.sampled_from([size for size in (2, 3) if size <= max_n] or [1])
        n = draw(st.integers(1, max_n) | few, label=f"{label} n")
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
    at_edges: tuple[str, ...] = (),
) -> Step:
    """Return whole training steps in float64: the random problem on which implementations are compared.

    One in three is at an edge: one of `at_edges`, some of `DIMENSIONS`, is beyond the limits, one of `EDGES`, or of
    more than ten layers. Of the others with squared errors, one in three has one output, whose axis is easily lost. In
    one of four some units have weights and biases of 0, and so a pre-activation of exactly 0.
    Steps whose outputs could exceed `FARTHEST` are left out: float32 could not hold what is computed from them.
    """
    net = draw(networks(max_depth, max_width), label="network")
    places = ("",) * max(2 * len(at_edges), 1) + at_edges
    edge, size = draw(st.sampled_from(places), label="edge"), None
    if edge == "depth":
        depth = draw(st.integers(11, 13), label="depth")
        net = replace(net, sizes=tuple(1 + size % 4 for size in (net.sizes * depth)[: depth + 1]))
    elif edge:
        size = draw(st.sampled_from(EDGES), label=f"size of {edge}")
        net = replace(net, sizes=_with_width(net.sizes, edge, size))
    elif net.loss == "mse" and draw(st.sampled_from((False, False, True)), label="one output"):
        net = replace(net, sizes=_with_width(net.sizes, "outputs", 1))
    params = net.init(draw(seeds, label="parameter seed"))
    if draw(st.sampled_from((False, False, False, True)), label="units at 0"):
        params = _with_units_at_zero(net, params, np.random.default_rng(draw(seeds, label="unit seed")))
    step = Step(
        net,
        params,
        draw(adams(), label="adam"),
        draw(states(params, kinds)),
        draw(batches(net, max_n, "train", size if edge == "n" else None)),
        draw(batches(net, max_n_val, "valid", size if edge == "n_val" else None)),
        draw(st.sampled_from(REDUCTIONS), label="reduction"),
    )
    assume(_reach(step) <= FARTHEST)
    return step


def _with_width(sizes: tuple[int, ...], edge: str, size: int) -> tuple[int, ...]:
    """Return the network's sizes with one width of `size`; as they are where `edge` is no width."""
    if edge == "input":
        return (size, *sizes[1:])
    if edge == "outputs":
        return (*sizes[:-1], size)
    if edge == "hidden":
        return (sizes[0], size, *sizes[2:]) if len(sizes) > 2 else (sizes[0], size, sizes[1])
    return sizes


def _with_units_at_zero(net: Network, params: Params, generator: np.random.Generator) -> Params:
    """Return the parameters with those of about a third of the units at 0: what those units add up is exactly 0."""
    zero = [generator.random(size) < 1 / 3 for size in net.sizes[1:]]
    params = {name: p.copy() for name, p in params.items()}
    for name, p in params.items():
        p[zero[int(name.split(".")[0])]] = 0.0
    return params


@st.composite
def wide_steps(draw: Any) -> Step:
    """Return steps in which everything is beyond 256: the input, a hidden layer, the outputs, n and n_val.

    Each is one of `PRIMES`, so that whatever an implementation cuts it into leaves a remainder. Between two wide layers
    is a narrow one, which keeps a case at about a tenth of a second: 2000 parameters. Every layer has a bias. Size is
    what these are about: the state is one that a run leaves, ε common.
    """
    narrow, wide = st.integers(2, 3), st.sampled_from(PRIMES)
    sizes = draw(st.tuples(wide, narrow, wide, narrow, wide), label="sizes")
    step: Step = draw(_roomy_steps(sizes, wide, wide, st.just(True)))
    return step


@st.composite
def large_steps(draw: Any) -> Step:
    """Return steps with more than 256 samples and a layer wider than 256, so that blocks of 256 are overrun.

    256 is what buffers, tiles and small integers are usually made for; n times the width is beyond 2¹⁶. Not larger: an
    implementation that forms every sample's gradient needs 300 times 3600 numbers for them, 9 MB, and a program in
    another language reads them as JSON. Size is what these are about: the state is one that a run leaves, ε common.
    """
    wide, narrow = st.integers(257, 272), st.integers(2, 6)
    sizes = draw(st.tuples(narrow, wide, narrow) | st.tuples(wide, narrow), label="sizes")
    step: Step = draw(_roomy_steps(sizes, st.integers(257, 300), st.integers(1, 4), st.booleans()))
    return step


@st.composite
def _roomy_steps(
    draw: Any,
    sizes: tuple[int, ...],
    n: st.SearchStrategy[int],
    n_val: st.SearchStrategy[int],
    bias: st.SearchStrategy[bool],
) -> Step:
    """Return steps of a network of `sizes` with a state that a run leaves and a common ε."""
    net = Network(
        sizes,
        draw(st.sampled_from(ACTIVATIONS), label="activation"),
        draw(st.sampled_from(LOSSES), label="loss"),
        draw(bias, label="bias"),
    )
    params, generator = net.init(draw(seeds, label="parameter seed")), np.random.default_rng(draw(seeds, label="seed"))
    state = AdamState(
        draw(step_numbers, label="completed steps"),
        {name: 0.01 * generator.standard_normal(p.shape) for name, p in params.items()},
        {name: 1e-4 * generator.chisquare(3, p.shape) for name, p in params.items()},
    )
    train, valid = (
        _plain_batch(net, draw(limits, label=label), generator) for label, limits in (("n", n), ("n_val", n_val))
    )
    adam = Adam(weight_decay=draw(st.sampled_from([0.0, 0.01]), label="weight decay"))
    return Step(net, params, adam, state, train, valid, draw(st.sampled_from(REDUCTIONS), label="reduction"))


def _plain_batch(net: Network, n: int, generator: np.random.Generator) -> Batch:
    x = generator.standard_normal((n, net.sizes[0]))
    if net.loss == "cross_entropy":
        return Batch(x, generator.integers(0, net.sizes[-1], n))
    return Batch(x, generator.standard_normal((n, net.sizes[-1])))


@st.composite
def steps_with_null_samples(draw: Any, of: st.SearchStrategy[Step]) -> Step:
    """Return steps of `of`, changed so that `null_samples` are some of their samples.

    Either the network has no bias and an activation with φ(0) = 0, and the sample's input is zero: every layer's input
    is, and with it the gradient. Or the loss is "mse", the last layer's weights are zero, and the sample's target is
    the last bias: the outputs are that bias, and the gradient at the outputs is zero. In both, each product that the
    gradient is made of has a factor of exactly zero, in any arithmetic.
    """
    step: Step = draw(of)
    generator = np.random.default_rng(draw(seeds, label="null seed"))
    null = generator.random(step.n) < 0.5
    null[generator.integers(step.n)] = True
    if draw(st.booleans(), label="zero input"):
        net = replace(
            step.net, bias=False, activation="relu" if step.net.activation == "sigmoid" else step.net.activation
        )
        params, m, v = ({name: a[name] for name in net.shapes} for a in (step.params, step.state.m, step.state.v))
        x = np.where(null[:, None], 0.0, step.train.x)
        return replace(
            step, net=net, params=params, state=AdamState(step.state.step, m, v), train=Batch(x, step.train.y)
        )
    net, last = replace(step.net, loss="mse"), step.net.depth - 1
    params = dict(step.params) | {f"{last}.weight": np.zeros(net.shapes[f"{last}.weight"])}
    exact = params.get(f"{last}.bias", np.zeros(net.sizes[-1]))
    others, judges = (generator.standard_normal((batch.n, net.sizes[-1])) for batch in (step.train, step.valid))
    train, valid = Batch(step.train.x, np.where(null[:, None], exact, others)), Batch(step.valid.x, judges)
    return replace(step, net=net, params=params, train=train, valid=valid)


def null_samples(step: Step) -> Array:
    """Return a mask of the samples whose gradient is zero for one of the reasons in `steps_with_null_samples`."""
    null = np.zeros(step.n, bool)
    if not step.net.bias and step.net.activation != "sigmoid":
        null |= (step.train.x == 0).all(axis=1)
    last = step.net.depth - 1
    if step.net.loss == "mse" and not step.params[f"{last}.weight"].any():
        null |= (step.train.y == step.params.get(f"{last}.bias", 0.0)).all(axis=1)
    return null


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
