"""The engine's ``credit="carry"`` against the oracle's: the split, whole runs, windows, waiting, refusals."""

import dataclasses
from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np
import pytest
from engine_devices import in_each_dtype, on_each_device
from hypothesis import example, given, settings
from hypothesis import strategies as st

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.gpu import carry, splits
from adamshap.gpu.arrays import pick_space
from adamshap.gpu.layers import Workshop
from adamshap.gpu.rules import SPLIT_SLOPES, rates_of
from adamshap.gpu.step import Judged, Question, State
from adamshap.reference import Adam, Batch, Network
from adamshap.reference import carry as reference
from adamshap.reference.adam import coefficients
from adamshap.reference.ghost import SlopeInput
from adamshap.reference.problem import GRADIENTS, Array, Run, RunConfig
from adamshap.verify.strategies import adams, powers_of_ten, run_configs, step_numbers
from adamshap.verify.tolerance import DRAWS, SAFETY, account_bound, assert_within, rounding, unit_roundoff

# --- the split


@given(
    adam=adams(),
    t=step_numbers,
    g=powers_of_ten(-12, 2) | st.just(0.0),
    sign=st.sampled_from([-1.0, 1.0]),
    m=powers_of_ten(-8, 2) | st.just(0.0),
    v=powers_of_ten(-24, 4) | st.just(0.0),
)
@example(adam=Adam(eps=1e-8, eps_root=1e-16), t=1, g=1.0, sign=1.0, m=1.0, v=0.0).via("ε = √κ")
def test_the_even_split_is_the_oracles(adam: Adam, t: int, g: float, sign: float, m: float, v: float) -> None:
    """Closed forms here, quadrature there."""
    given_ = [np.array([[number]]) for number in (sign * g, m, v)]
    c = coefficients(adam, t, given_[1], given_[2])
    expected = reference.even(SlopeInput(c, given_[0][None], given_[0], (4, 4)))
    slope, inverse = splits.split_even(np, rates_of(adam, t), *given_)
    parts = c.lr * (c.k / reference.denominator(c, given_[0]) + abs(c.mu * reference.excess(c, given_[0])))
    terms = reference.PANEL_NODES * 60  # of the oracle's sum
    assert_within(slope, expected.slope, rounding(parts, terms), "S")
    assert_within(inverse, expected.inverse, rounding(expected.inverse, terms), "1/D")


# --- whole runs


def options_of(config: RunConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)} | {"credit": "carry"}


def spread(config: RunConfig, base: Run, dtype: Any, **options: Any) -> Array:
    """Return how far the oracle's scores and shares move with the samples, relatively by u, and products' rounding."""
    generator, moved = np.random.default_rng(1), []
    for _ in range(DRAWS):
        near = {
            name: Batch(*(_near(part, unit_roundoff(dtype), generator) for part in (batch.x, batch.y)))
            for name, batch in (("train", config.train), ("valid", config.valid))
        }
        run = oracle.attribute(**{**options_of(config), **near}, **options)
        moved.append([np.abs(a - b).max() for a, b in zip(of_run(run), of_run(base), strict=True)])
    longest = max(*config.network.sizes, config.train.n, config.valid.n)
    products = 2 * config.network.depth * longest * len(base.history["epoch"])
    return SAFETY * np.sqrt(products) * np.max(moved, axis=0)


def _near(array: Array, size: float, generator: np.random.Generator) -> Array:
    return array if array.dtype.kind == "i" else array * (1 + size * generator.choice((-1.0, 1.0), array.shape))


def of_run(run: Run) -> tuple[Any, ...]:
    return run.scores, run.sgd_scores, run.decay, run.closed


@on_each_device
@in_each_dtype
@given(config=run_configs(), slope=st.sampled_from(SPLIT_SLOPES), gradient=st.sampled_from(GRADIENTS))
@settings(max_examples=4)
def test_a_run_is_the_oracles(device: Any, dtype: Any, config: RunConfig, slope: Any, gradient: Any) -> None:
    # Without sharp corners that float32 would turn another way in one run than in the other.
    config = dataclasses.replace(config, adam=dataclasses.replace(config.adam, eps=max(config.adam.eps, 1e-3)))
    options: dict[str, Any] = {"slope": slope, "gradient": gradient}
    expected = oracle.attribute(**options_of(config), **options)
    got = engine.attribute(
        **options_of(config), **options, variance="exact", carry_window=100, device=device, dtype=dtype
    )
    bound = account_bound(config, slope, gradient, dtype=dtype)
    moved = spread(config, expected, dtype, **options)
    for name, ours, theirs, close in zip(
        ("scores", "sgd_scores", "decay", "closed"), of_run(got), of_run(expected), moved, strict=True
    ):
        sgd = rounding(np.abs(theirs).max(), len(expected.history["epoch"]), dtype)  # may exceed the account
        assert_within(ours, theirs, close + bound + sgd, name)
    np.testing.assert_array_equal(got.truncated, 0)
    np.testing.assert_array_equal(got.seen, expected.seen)
    assert (got.credit, got.state.step) == ("carry", expected.state.step)


def problem(beta1: float = 0.9, epochs: int = 5) -> RunConfig:
    """Return a run of four steps an epoch, the last of a single sample."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((15, 3))
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)
    net, adam = Network((3, 4, 3), "gelu"), Adam(0.01, (beta1, 0.99), weight_decay=0.1)
    return RunConfig(net, adam, Batch(x[:10], y[:10]), Batch(x[10:], y[10:]), epochs, 3, 1)


@cache
def answer(beta1: float) -> tuple[RunConfig, Run]:
    """Return such a run with the oracle's answer."""
    config = problem(beta1)
    return config, oracle.attribute(**options_of(config))


@cache
def known_to(beta1: float, dtype: Any) -> Any:
    """Return how far the scores of `answer` are known in `dtype`."""
    config, expected = answer(beta1)
    return account_bound(config, dtype=dtype) + spread(config, expected, dtype)[0]


@on_each_device
@in_each_dtype
@pytest.mark.parametrize(("beta1", "window"), [(0.9, 7), (0.5, 3), (0.01, 1), (0.5, None), (0.0, None)])
def test_what_a_window_loses_is_bounded_and_closed(device: Any, dtype: Any, beta1: float, window: Any) -> None:
    config, expected = answer(beta1)
    got = engine.attribute(**options_of(config), variance="exact", carry_window=window, device=device, dtype=dtype)
    rounded = known_to(beta1, dtype)
    # A score lacks what came after the window, and holds a share of what all lack.
    shared = got.truncated.sum() * got.seen / got.seen.sum()
    assert_within(got.scores, expected.scores, got.truncated + shared + rounded, "score")
    account = got.scores.sum() + got.decay.sum()
    assert_within(account, expected.scores.sum() + expected.decay.sum(), rounded, "account")
    assert (got.truncated.max() > 0) == (beta1 > 0)
    if window is None:
        assert got.truncated.max() < carry.FORGOTTEN * np.abs(expected.scores).sum()


def test_a_windows_memory_does_not_grow_with_the_run() -> None:
    config = problem(0.5, epochs=30)
    shop = Workshop.on(config.network, pick_space("cpu", "float64"))
    order = list(config.order())
    carrier = carry.Carrier.of(shop, config, len(order), 4)
    held = []
    run_through(carrier, lambda: held.append(sum(len(block.batches) for block in carrier.blocks)))
    assert len(order) > 100
    assert max(held[10:]) == carrier.length * carrier.later  # what is paid at its end has left
    assert carrier.length * carrier.later >= 4


def run_through(carrier: carry.Carrier, after_each: Any, around: Any = nullcontext) -> None:
    """Take a carrier's steps with the default question."""
    config, space = carrier.config, carrier.shop.space
    zeros = [{name: space.xp.zeros(shape, space.dtype) for name, shape in config.network.shapes.items()} for _ in "mv"]
    state = State(space.reals(config.network.init(config.seed)), *zeros, 1)
    valid = space.real(config.valid.x), space.labels(config.valid.y)
    x, y = space.real(config.train.x), space.labels(config.train.y)
    for number, (_, index) in enumerate(config.order()):
        where = space.labels(index)
        new = State(*({k: a.copy() for k, a in group.items()} for group in (state.theta, state.m, state.v)), 0)
        batch = Judged(x[where], y[where], *valid)
        with around() if number > 6 else nullcontext():  # by then all buffers and kernels are made
            carrier.take(number, where, state, batch, Question(variance="rank_one"), new)
        state = State(new.theta, new.m, new.v, state.t + 1)
        after_each()


@on_each_device
def test_no_step_waits_for_the_device(device: Any) -> None:
    config = dataclasses.replace(problem(0.5), batch_size=5)
    shop = Workshop.on(config.network, pick_space(device, "float32"))
    carrier = carry.Carrier.of(shop, config, len(list(config.order())), 2)
    waiting: Any = nullcontext
    if device != "cpu":
        import cupyx

        def waiting() -> Any:
            return cupyx.allow_synchronize(False)

    run_through(carrier, lambda: None, waiting)


def test_progress_is_told_step_by_step() -> None:
    config, told = problem(epochs=1), []
    run = engine.attribute(**options_of(config), device="cpu", on_step=told.append)
    assert [(p.step, p.steps, p.epoch) for p in told] == [(i + 1, 4, 0) for i in range(4)]
    assert [p.valid_loss for p in told] == run.history["valid_loss"].tolist()


# --- refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"slope": "sgd"}, ValueError, "slope: got 'sgd' with credit 'carry'; needs one of frozen"),
        ({"per_validation": True}, ValueError, "per_validation: got True with credit 'carry'; needs False"),
        ({"rank": 4}, ValueError, "rank: got 4 with credit 'carry'; needs None"),
        ({"micro_batch": 4}, ValueError, "micro_batch: got 4 with credit 'carry'; needs None"),
        ({"carry_window": 0}, ValueError, "carry_window: got 0; needs an integer of at least 1"),
        ({"credit": "step", "carry_window": 3}, ValueError, "carry_window: got 3 with credit 'step'"),
        ({"credit": "loan"}, ValueError, "credit: got 'loan'; needs one of step, carry"),
    ],
)
def test_what_has_no_meaning_is_refused(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        engine.attribute(**{**options_of(problem()), **options}, device="cpu")


@on_each_device
@pytest.mark.parametrize("slope", SPLIT_SLOPES)
def test_a_zero_denominator_is_refused(device: Any, slope: Any) -> None:
    batch = Batch(np.zeros((4, 3)), np.array([0, 1, 0, 1]))
    config = dataclasses.replace(problem(), train=batch, adam=Adam(eps=0.0))
    for implementation, options in ((oracle, {}), (engine, {"device": device})):
        with pytest.raises(ValueError, match=r"Adam.eps: got 0, with a denominator of 0 at \d+ coordinates"):
            implementation.attribute(**options_of(config), slope=slope, **options)
