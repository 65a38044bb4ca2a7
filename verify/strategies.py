"""Every Hypothesis strategy of the project: random models, optimisers, states, batches and steps.

Hypothesis draws the structure of a problem (sizes, names, exponents, t), so that a failure shrinks to the smallest
model and batch; the numbers in the arrays come from a generator whose seed is drawn. The strategies of each kind of
model are in `verify.models`.
"""

from functools import cache
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from adamshap.reference.contract import REDUCTIONS, Adam, AdamState, Array, Batch, Model, Params, RunConfig, Step
from adamshap.verify.models import PERCEPTRON, kind_named, kind_of
from adamshap.verify.models.kind import EDGES, PRIMES, Draws
from adamshap.verify.models.perceptron_draws import networks

__all__ = [
    "FARTHEST",
    "SAMPLES",
    "STATES",
    "adams",
    "batches",
    "dimensions",
    "large_steps",
    "networks",
    "null_samples",
    "powers_of_ten",
    "run_configs",
    "seeds",
    "states",
    "step_numbers",
    "steps",
    "steps_with_null_samples",
    "wide_steps",
]

FARTHEST = 1e9
"""Largest output of a model, before or after the step, in random steps."""

STATES = ("fresh", "ordinary", "adversarial")
"""Kinds of optimiser state: before the first step; typical of a run; mixtures that no run produces."""

SAMPLES = ("n_val", "n")
"""Numbers of samples that may be at an edge."""

seeds = st.integers(0, 2**32 - 1)


def dimensions(model: str = PERCEPTRON, layers: frozenset[str] | None = None) -> tuple[str, ...]:
    """Return the dimensions of a step that may be at an edge, for a kind of model; of some kinds of `layers` only."""
    return (*_draws(model, layers).dimensions, *SAMPLES)


def _draws(model: str, layers: frozenset[str] | None) -> Draws:
    """Return the strategies of a kind of model; for stacks, those with some kinds of `layers` only."""
    of = kind_named(model).draws
    return of if layers is None else of.within(layers)


@cache
def powers_of_ten(low: float, high: float) -> st.SearchStrategy[float]:
    """Return numbers from 10^low to 10^high, uniform in the exponent."""
    return st.floats(low, high).map(lambda exponent: float(10**exponent))


@cache
def adams() -> st.SearchStrategy[Adam]:
    """Return Adam's settings: β1 in [0, 0.999], β2 in [0, 0.9999], ε in [1e-12, 0.1], or 0 with an ε_root."""
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
"""Completed steps, 1 to 10⁶, uniform in the exponent."""


@st.composite
def batches(draw: Any, net: Model, max_n: int, label: str, n: int | None = None) -> Batch:
    """Return a batch for `net`, of `n` or of 1 to `max_n` samples; sometimes with equal and with zero samples."""
    if n is None:  # in half of the cases a small batch: n/(n − 1) and the like differ most at 2 and 3
        few = st.sampled_from([size for size in (2, 3) if size <= max_n] or [1])
        n = draw(st.integers(1, max_n) | few, label=f"{label} n")
    return kind_of(net).draws.batch(draw, net, n, label)


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
    /,
    max_n: int = 32,
    max_n_val: int = 8,
    kinds: tuple[str, ...] = STATES,
    at_edges: tuple[str, ...] = (),
    model: str = PERCEPTRON,
    layers: frozenset[str] | None = None,
    **limits: int,
) -> Step:
    """Return whole training steps in float64: the random problem on which implementations are compared.

    `limits` are those of the kind of `model`: ``max_depth`` and ``max_width`` of a perceptron. `layers` are the kinds
    of layers in a stack, all by default. One step in three is at
    an edge: one of `at_edges`, some of the model's dimensions or of `SAMPLES`, is beyond the limits, such as one of
    `EDGES`. In one of four some parameters are 0, so that intermediate results are exactly 0. Steps whose outputs could
    exceed `FARTHEST` are excluded: results computed from them could overflow float32.
    """
    of = _draws(model, layers)
    net = draw(of.models(**limits), label="network")
    places = ("",) * max(2 * len(at_edges), 1) + at_edges
    edge, size = draw(st.sampled_from(places), label="edge"), None
    if edge in SAMPLES:
        size = draw(st.sampled_from(EDGES), label=f"size of {edge}")
    else:
        net = of.at_edge(draw, net, edge) if edge else of.special(draw, net)
    params = of.parameters(net, draw(seeds, label="parameter seed"))
    if draw(st.sampled_from((False, False, False, True)), label="parameters at 0"):
        params = of.with_zeros(net, params, np.random.default_rng(draw(seeds, label="zeros seed")))
    step = Step(
        net,
        params,
        draw(adams(), label="adam"),
        draw(states(params, kinds)),
        draw(batches(net, max_n, "train", size if edge == "n" else None)),
        draw(batches(net, max_n_val, "valid", size if edge == "n_val" else None)),
        draw(st.sampled_from(REDUCTIONS), label="reduction"),
    )
    assume(of.reach(step) <= FARTHEST)
    return step


@st.composite
def wide_steps(draw: Any, model: str = PERCEPTRON) -> Step:
    """Return steps in which every size is beyond 256: the model's, n and n_val.

    Each is one of `PRIMES`, so that any blocks of an implementation leave a remainder. A case takes about a tenth of a
    second. These steps test sizes only: the state is typical of a run, and ε is common.
    """
    wide = st.sampled_from(PRIMES)
    step: Step = draw(_roomy_steps(kind_named(model).draws.wide_models(), wide, wide))
    return step


@st.composite
def large_steps(draw: Any, model: str = PERCEPTRON) -> Step:
    """Return steps with more than 256 samples and a layer wider than 256, which exceed blocks of 256.

    256 is a usual size of buffers, tiles and small integers; n times the width is beyond 2¹⁶. They are not larger: an
    implementation that forms every sample's gradient needs 300 times 3600 numbers for them, 9 MB, and a program in
    another language reads them as JSON. These steps test sizes only: the state is typical of a run, and ε is common.
    """
    models = kind_named(model).draws.large_models()
    step: Step = draw(_roomy_steps(models, st.integers(257, 300), st.integers(1, 4)))
    return step


@st.composite
def _roomy_steps(
    draw: Any, models: st.SearchStrategy[Any], n: st.SearchStrategy[int], n_val: st.SearchStrategy[int]
) -> Step:
    """Return steps of one of `models` with a state typical of a run and a common ε."""
    net = draw(models)
    params, generator = net.init(draw(seeds, label="parameter seed")), np.random.default_rng(draw(seeds, label="seed"))
    state = AdamState(
        draw(step_numbers, label="completed steps"),
        {name: 0.01 * generator.standard_normal(p.shape) for name, p in params.items()},
        {name: 1e-4 * generator.chisquare(3, p.shape) for name, p in params.items()},
    )
    train, valid = (
        kind_of(net).draws.ordinary_batch(net, draw(limits, label=label), generator)
        for label, limits in (("n", n), ("n_val", n_val))
    )
    adam = Adam(weight_decay=draw(st.sampled_from([0.0, 0.01]), label="weight decay"))
    return Step(net, params, adam, state, train, valid, draw(st.sampled_from(REDUCTIONS), label="reduction"))


@st.composite
def steps_with_null_samples(draw: Any, of: st.SearchStrategy[Step]) -> Step:
    """Return steps of `of`, changed so that `null_samples` are some of their samples.

    Each product in such a sample's gradient has a factor of exactly zero, in any arithmetic.
    """
    step: Step = draw(of)
    generator = np.random.default_rng(draw(seeds, label="null seed"))
    null = generator.random(step.n) < 0.5
    null[generator.integers(step.n)] = True
    return kind_of(step.net).draws.with_null_samples(draw, step, null, generator)


def null_samples(step: Step) -> Array:
    """Return a mask of the samples whose gradient is zero for one of the reasons in `steps_with_null_samples`."""
    return kind_of(step.net).draws.null_samples(step)


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
