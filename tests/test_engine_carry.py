"""The engine's ``credit="carry"`` against the oracle's: the split, whole runs, windows, waiting, refusals."""

import dataclasses
from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np
import pytest
from engine_devices import in_each_dtype, on_device, on_each_device
from hypothesis import example, given, settings
from hypothesis import strategies as st

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.gpu import carry
from adamshap.gpu.backend import Backend, pick_backend
from adamshap.gpu.context import EngineContext
from adamshap.gpu.data import Data
from adamshap.gpu.kernels import kernels_for
from adamshap.gpu.kernels import numpy as in_numpy
from adamshap.gpu.kernels.groups import NO_NORMS, GradientNorms, OwedSum, ParameterState
from adamshap.gpu.kernels.plan import SPLIT_SLOPES, adam_scalars, split_plan
from adamshap.gpu.layers import context_for
from adamshap.gpu.momentum import FORGOTTEN
from adamshap.gpu.state import State
from adamshap.reference import Adam, AdamGroups, Batch, Network
from adamshap.reference import carry as reference
from adamshap.reference.adam import bias_correction, coefficients
from adamshap.reference.contract import GRADIENTS, Array, Estimator, Run, RunConfig
from adamshap.reference.slopes import SlopeInput
from adamshap.verify.run_tolerance import account_bound, run_conditioning
from adamshap.verify.strategies import adams, powers_of_ten, run_configs, seeds, step_numbers
from adamshap.verify.tolerance import assert_within, rounding

# --- the split

each_implementation = pytest.mark.parametrize("implementation", ["arrays", "device"])


def split_of(implementation: str, backend: Backend) -> Any:
    """Return the split in NumPy, or the device's own: CUDA kernels or a Numba loop."""
    return (in_numpy if implementation == "arrays" and not backend.on_cuda else kernels_for(backend)).momentum_split


@dataclasses.dataclass(frozen=True)
class Point:
    """A matrix of coordinates, with the samples that its gradient is the sum of."""

    x: Array
    g: Array
    m: Array
    v: Array

    def split(self, adam: Adam, t: int, slope: str, nodes: tuple[int, int]) -> tuple[Array, Array]:
        """Return the oracle's S and M."""
        c = coefficients(adam, t, self.m, self.v)
        split = reference.SPLITS[slope](SlopeInput(c, self.x, self.g, nodes))
        return split.slope, c.lr * adam.betas[0] / bias_correction(adam.betas[0], t) * split.inverse

    def known(self, adam: Adam, t: int, slope: str, nodes: tuple[int, int]) -> tuple[Array, Array]:
        """Return S and M by absolute values of parts, plus their change with each relative change of an input."""
        S, M = self.split(adam, t, slope, nodes)
        of_k = dataclasses.replace(self, m=np.zeros_like(self.m)).split(adam, t, slope, nodes)[0]
        known = [np.abs(of_k) + np.abs(S - of_k), np.abs(M)]
        for name, value in vars(self).items():
            near = dataclasses.replace(self, **{name: value * (1 + STEP)}).split(adam, t, slope, nodes)
            known = [k + np.abs(a - b) / STEP for k, a, b in zip(known, near, (S, M), strict=True)]
        return known[0], known[1]


STEP = 1e-6
"""Relative change of an input, for the derivative in it."""


def engines_split(
    implementation: str,
    device: Any,
    dtype: Any,
    adam: Adam,
    t: int,
    slope: str,
    nodes: Any,
    exact: bool,
    p: Point,
    *more: Array,
) -> tuple[Array, ...]:
    """Return the engine's product, K and sums, for Γ, θ and K in `more`; Σ x² is of rank one, unless `exact`."""
    backend = pick_backend(device, dtype)
    squares = (p.x**2).sum(axis=0)
    row, col = np.sqrt(squares.sum(axis=1)), np.sqrt(squares.sum(axis=0) / squares.sum())
    norms = (None, None, np.sqrt(squares)) if exact else (row, col, None)
    arrays = (p.g, p.m, p.v, *norms, *more)
    given_ = (None if a is None else on_device(device, np.array(a, dtype)) for a in arrays)
    g, m, v, row, col, root, gamma, theta, owed = given_
    plan, state = split_plan(slope, nodes, len(p.x)), ParameterState(theta, m, v)
    held_norms, account = GradientNorms(len(p.x), row, col, root), OwedSum(owed, GROW, LESS)
    sums = split_of(implementation, backend)(adam_scalars(adam, t), plan, g, state, held_norms, gamma, account, g)
    return tuple(np.asarray(backend.host(a)) for a in (g, owed, sums))


GROW, LESS = 1.5, 0.25


@each_implementation
@on_each_device
@in_each_dtype
@pytest.mark.parametrize("slope", SPLIT_SLOPES)
@given(
    seed=seeds,
    shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 7, 300])),
    n=st.sampled_from([1, 6]),
    nodes=st.sampled_from([(1, 3), (2, 4)]),
    exact=st.booleans(),
    t=st.sampled_from([1, 3, 50]),
    adam=st.sampled_from([Adam(0.01, (0.75, 0.5), 0.0625, weight_decay=0.5), Adam(0.01, (0.9, 0.99), 1e-3, 0.01)]),
)
@settings(max_examples=5)
def test_what_a_step_owes_is_the_oracles(
    implementation: Any,
    device: Any,
    dtype: Any,
    slope: str,
    seed: int,
    shape: Any,
    n: int,
    nodes: Any,
    exact: bool,
    t: int,
    adam: Adam,
) -> None:
    """Γ ⊙ S less the credit owed already, K, and the sums, over blocks and their ends, for momentum of both signs."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((n, *shape))
    if not exact:
        x = np.sign(x) * np.abs(x[:, :1, :1] * x[:1, :, :1] * x[:1, :1, :])
    x, m, gamma, theta, before = (
        np.asarray(a, dtype).astype(float) for a in (x, *generator.standard_normal((4, *shape)))
    )
    v = np.asarray(generator.standard_normal(shape) ** 2, dtype).astype(float)
    point = Point(x, np.asarray(x.sum(axis=0), dtype).astype(float), m, v)
    S, M = point.split(adam, t, slope, nodes)
    about_S, about_M = point.known(adam, t, slope, nodes)
    got = engines_split(implementation, device, dtype, adam, t, slope, nodes, exact, point, gamma, theta, before)
    owed = before + GROW * gamma * M
    about_owed = np.abs(before) + GROW * np.abs(gamma) * about_M
    terms = 4 * nodes[0] * nodes[1]
    assert_within(got[1], owed, rounding(about_owed, terms, dtype), "K")
    about = np.abs(gamma) * about_S + LESS * about_owed
    assert_within(got[0], gamma * S - LESS * owed, rounding(about, terms, dtype), "product")
    due, about_due = gamma * M, np.abs(gamma) * about_M
    sums = [
        (gamma * S * point.g).sum(),
        (due * m).sum(),
        (due * due).sum(),
        (gamma * theta).sum() if adam.weight_decay else 0.0,
    ]
    parts = [
        np.abs(gamma) * about_S * np.abs(point.g),
        about_due * np.abs(m),
        2 * np.abs(due) * about_due,
        np.abs(gamma * theta),
    ]
    for name, ours, theirs, size in zip(("⟨ΓS, g⟩", "⟨O, m⟩", "‖O‖²", "⟨Γ, θ⟩"), got[2], sums, parts, strict=True):
        assert_within(ours, theirs, rounding(size.sum(), terms, dtype), name)


@each_implementation
@on_each_device
@in_each_dtype
@given(
    adam=adams(),
    t=step_numbers,
    g=powers_of_ten(-12, 2) | st.just(0.0),
    sign=st.sampled_from([-1.0, 1.0]),
    m=powers_of_ten(-8, 2) | st.just(0.0),
    v=powers_of_ten(-24, 4) | st.just(0.0),
)
@example(adam=Adam(eps=1e-8, eps_root=1e-16), t=1, g=1.0, sign=1.0, m=1.0, v=0.0).via("ε = √κ")
def test_the_even_split_is_the_oracles(
    implementation: Any, device: Any, dtype: Any, adam: Adam, t: int, g: float, sign: float, m: float, v: float
) -> None:
    """Closed forms here, quadrature there; in float32 as well, where nothing but the result is rounded."""
    backend = pick_backend(device, dtype)
    given_ = [np.array([[number]], dtype) for number in (sign * g, m, v)]
    wide = [a.astype(float) for a in given_]
    c = coefficients(adam, t, wide[1], wide[2])
    expected = reference.even(SlopeInput(c, wide[0][None], wide[0], (4, 4)))
    zero, one = (np.full((1, 1), number, dtype) for number in (0, 1))
    g_, m_, v_, gamma, owed = (on_device(device, a) for a in (*given_, one, zero))
    scalars, plan = adam_scalars(adam, t), split_plan("secant", (4, 4), 2)
    state = ParameterState(gamma, m_, v_)
    split_of(implementation, backend)(scalars, plan, g_, state, NO_NORMS, gamma, OwedSum(owed, 1.0, 0.0), g_)
    parts = c.lr * (c.k / reference.denominator(c, wide[0]) + abs(c.mu * reference.excess(c, wide[0])))
    terms = reference.PANEL_NODES * 60  # of the oracle's sum
    assert_within(backend.host(g_), expected.slope, rounding(parts, terms) + rounding(parts, 1, dtype), "S")
    of_m = adam.lr * scalars.mu * expected.inverse
    assert_within(backend.host(owed), of_m, rounding(of_m, terms) + rounding(of_m, 1, dtype), "M")


@each_implementation
@on_each_device
def test_a_gradient_whose_square_beside_eps_is_nothing_keeps_the_split_finite(implementation: Any, device: Any) -> None:
    """There M is μ's part alone, and S k's but for the kink of 1/D at 0."""
    backend, adam = pick_backend(device, "float64"), Adam(eps=1.0)
    g, m, v, gamma, owed = (on_device(device, np.full((1, 1), a)) for a in (1e-310, 1.0, 0.0, 1.0, 0.0))
    scalars, plan = adam_scalars(adam, 2), split_plan("secant", (4, 4), 2)
    state = ParameterState(gamma, m, v)
    split_of(implementation, backend)(scalars, plan, g, state, NO_NORMS, gamma, OwedSum(owed, 1.0, 0.0), g)
    of_k, of_mu = scalars.lr * scalars.k, scalars.lr * scalars.mu
    assert_within(backend.host(owed)[0, 0], of_mu, rounding(of_mu, 1), "M")
    assert_within(backend.host(g)[0, 0], of_k, rounding(of_k, 1) + of_mu * scalars.root_q / 2, "S")


# --- whole runs


def options_of(config: RunConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)} | {"credit": "carry"}


def of_run(run: Run) -> tuple[Any, ...]:
    return run.scores, run.sgd_scores, run.decay, run.closed


@on_each_device
@in_each_dtype
@given(config=run_configs(), slope=st.sampled_from(SPLIT_SLOPES), gradient=st.sampled_from(GRADIENTS))
@settings(max_examples=4)
def test_a_run_is_the_oracles(device: Any, dtype: Any, config: RunConfig, slope: Any, gradient: Any) -> None:
    # Without kinks, on different sides of which the two runs might fall in float32.
    config = dataclasses.replace(config, adam=dataclasses.replace(config.adam, eps=max(config.adam.eps, 1e-3)))
    options: dict[str, Any] = {"slope": slope, "gradient": gradient}
    expected = oracle.attribute(**options_of(config), **options)
    got = engine.attribute(
        **options_of(config), **options, variance="exact", carry_window=100, device=device, dtype=dtype
    )
    bound = account_bound(config, slope, gradient, dtype=dtype)
    moved = run_conditioning(lambda near: of_run(oracle.attribute(**options_of(near), **options)), config, dtype)
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
    """Return the error of the scores of `answer` in `dtype`."""
    return scores_bound(answer(beta1)[0], dtype)


def scores_bound(config: RunConfig, dtype: Any) -> Any:
    """Return the largest change of a carrying run's scores by rounding in `dtype`."""
    moved = run_conditioning(lambda near: of_run(oracle.attribute(**options_of(near))), config, dtype)
    return account_bound(config, dtype=dtype) + moved[0]


@on_each_device
@in_each_dtype
@pytest.mark.parametrize(("beta1", "window"), [(0.9, 7), (0.5, 3), (0.01, 1), (0.5, None), (0.0, None)])
def test_what_a_window_loses_is_bounded_and_closed(device: Any, dtype: Any, beta1: float, window: Any) -> None:
    config, expected = answer(beta1)
    got = engine.attribute(**options_of(config), variance="exact", carry_window=window, device=device, dtype=dtype)
    rounded = known_to(beta1, dtype)
    # A score lacks the credit from after the window, and includes its share of all lost credit.
    shared = got.truncated.sum() * got.seen / got.seen.sum()
    assert_within(got.scores, expected.scores, got.truncated + shared + rounded, "score")
    account = got.scores.sum() + got.decay.sum()
    assert_within(account, expected.scores.sum() + expected.decay.sum(), rounded, "account")
    assert (got.truncated.max() > 0) == (beta1 > 0)
    if window is None:
        assert got.truncated.max() < FORGOTTEN * np.abs(expected.scores).sum()


@on_each_device
@in_each_dtype
@pytest.mark.parametrize("window", [1, None])
def test_one_large_entry_leaves_the_other_scores_and_the_bound_right(device: Any, dtype: Any, window: Any) -> None:
    """One entry whose square is beyond the dtype, of a sample whose units saturate."""
    config = problem(0.5)
    x = config.train.x.copy()
    x[3, 1] = {"float32": 1e22, "float64": 1e200}[dtype]
    config = dataclasses.replace(
        config, network=Network((3, 4, 3), "tanh"), adam=Adam(0.01, (0.5, 0.99)), train=Batch(x, config.train.y)
    )
    expected = oracle.attribute(**options_of(config))
    got = engine.attribute(**options_of(config), variance="exact", carry_window=window, device=device, dtype=dtype)
    rounded = scores_bound(config, dtype)
    assert np.isfinite(got.truncated).all()
    shared = got.truncated.sum() * got.seen / got.seen.sum()
    assert_within(got.scores, expected.scores, got.truncated + shared + rounded, "score")


def test_a_windows_memory_does_not_grow_with_the_run() -> None:
    config = problem(0.5, epochs=30)
    context = context_for(config.network, pick_backend("cpu", "float64"))
    order = list(config.order())
    carrier = carry.Carrier.of(context, config, data_of(context, config), len(order), 4)
    held = []
    run_through(carrier, lambda: held.append(len(carrier.pending)))
    (momentum,) = carrier.momenta
    assert len(order) > 100
    assert max(held[10:]) == momentum.length * momentum.later  # batches paid at its end have left
    assert momentum.length * momentum.later >= 4


def test_each_beta1_has_a_window_of_its_own() -> None:
    """Batches stay for the longest window, sums of each β1 for its own: a β1 of 0 keeps none."""
    adams = [Adam(0.01, (beta1, 0.99)) for beta1 in (0.5, 0.0, 0.8)]
    groups = AdamGroups((("0.bias", adams[0]), ("1.weight", adams[1])), adams[2])
    config = dataclasses.replace(problem(epochs=30), adam=groups)
    context = context_for(config.network, pick_backend("cpu", "float64"))
    carrier = carry.Carrier.of(context, config, data_of(context, config), len(list(config.order())), 4)
    short, long = sorted(carrier.momenta, key=lambda momentum: momentum.beta1)
    assert (short.names, long.names) == (("0.bias",), ("0.weight", "1.bias"))
    assert ((short.length, short.later), (long.length, long.later)) == ((1, 4), (3, 2))
    held: list[tuple[int, ...]] = []
    run_through(carrier, lambda: held.append((len(carrier.pending), *(len(one.blocks) for one in (short, long)))))
    assert tuple(max(column) for column in zip(*held, strict=True)) == (long.steps - 1, short.later, long.later + 1)
    size = {name: np.prod(shape) for name, shape in config.network.shapes.items()}
    sums = 5 * size["0.bias"] + 3 * (size["0.weight"] + size["1.bias"])
    assert carrier.kept_bytes(3) == 8 * sums + long.steps * carrier.kept.bytes(3)


def data_of(context: EngineContext, config: RunConfig) -> Data:
    return Data.of(context, config.train, config.valid, min(config.batch_size, config.train.n))


def run_through(carrier: carry.Carrier, after_each: Any, around: Any = nullcontext) -> None:
    """Take a carrier's steps with the default estimator."""
    config, backend = carrier.config, carrier.context.backend
    zeros = [
        {name: backend.xp.zeros(shape, backend.dtype) for name, shape in config.network.shapes.items()} for _ in "mv"
    ]
    state = State(backend.reals(config.network.init(config.seed)), *zeros, 1)
    for number, (_, index) in enumerate(config.order()):
        where = backend.labels(index)
        new = State(*({k: a.copy() for k, a in group.items()} for group in (state.theta, state.m, state.v)), 0)
        batch = carrier.data.batch(index, where)
        with around() if number > 6 else nullcontext():  # all buffers and kernels exist by then
            carrier.take(number, index, where, state, batch, Estimator(variance="rank_one"), new)
        state = State(new.theta, new.m, new.v, state.t + 1)
        after_each()


@on_each_device
def test_no_step_waits_for_the_device(device: Any) -> None:
    config = dataclasses.replace(problem(0.5), batch_size=5)
    context = context_for(config.network, pick_backend(device, "float32"))
    carrier = carry.Carrier.of(context, config, data_of(context, config), len(list(config.order())), 2)
    waiting: Any = nullcontext
    if device != "cpu":
        import cupyx

        def waiting() -> Any:
            return cupyx.allow_synchronize(False)

    run_through(carrier, lambda: None, waiting)


def test_progress_is_reported_step_by_step() -> None:
    config, reported = problem(epochs=1), []
    run = engine.attribute(**options_of(config), device="cpu", on_step=reported.append)
    assert [(p.step, p.steps, p.epoch) for p in reported] == [(i + 1, 4, 0) for i in range(4)]
    assert [p.valid_loss for p in reported] == run.history["valid_loss"].tolist()


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
        with pytest.raises(
            ValueError,
            match=r"Adam.eps: got 0, or less than the dtype holds, with a denominator of 0 at \d+ coordinates",
        ):
            implementation.attribute(**options_of(config), slope=slope, **options)
