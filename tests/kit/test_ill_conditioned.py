"""Where the method is steep the bounds are wide, but not so wide that they accept a relevant mistake.

Four constructed steps: no second moment and a tiny ε, so that Adam's update is nearly a sign; a batch whose gradients
cancel; confident samples and saturated units, whose derivatives are differences of numbers near 1; and bias corrections
that are such differences.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from adamshap import gpu
from adamshap.gpu.captures import outer_product
from adamshap.reference import Adam, AdamState, Batch, Network, Step, adam, models, scoring, slopes
from adamshap.reference.contract import Array
from adamshap.verify import slope_rounding
from adamshap.verify.faults import FAULTS, Fault
from adamshap.verify.implementation import Answer, Misbehaviour, Query, answer, implementation
from adamshap.verify.oracle import ORACLE, bounds, expected
from adamshap.verify.properties import PROPERTIES, Case, Disagreement, asker, in_dtype
from adamshap.verify.replacing import replaced
from adamshap.verify.steps import perturbed
from adamshap.verify.tolerance import (
    DRAWN,
    DRAWS,
    SAFETY,
    conditioning,
    parameter_count,
    rounding,
    score_magnitude,
    unit_roundoff,
)
from adamshap.verify.usual_rounding import usual_rounding

QUERIES = (
    Query("update"),
    Query("influence"),
    Query("marginals", {"kind": "shapley", "loss": "exact"}),
    *(
        Query("scores", {"slope": slope, "gradient": gradient})
        for slope in ("frozen", "linearized", "secant", "random_order")
        for gradient in ("start", "midpoint")
    ),
)


def ordinary(adam: Adam, state: Callable[[dict[str, Array]], AdamState], scale: float = 1.0) -> Step:
    generator = np.random.default_rng(3)
    net = Network((4, 4, 3), "tanh")
    params = {name: scale * p for name, p in net.init(5).items()}
    batches = [Batch(generator.standard_normal((n, 4)), generator.integers(0, 3, n)) for n in (5, 3)]
    return Step(net, params, adam, state(params), *batches)


def second_step(params: dict[str, Array]) -> AdamState:
    generator = np.random.default_rng(4)
    m = {name: 0.01 * generator.standard_normal(p.shape) for name, p in params.items()}
    return AdamState(1, m, {name: 1e-8 * generator.chisquare(3, p.shape) for name, p in params.items()})


def cancelling() -> Step:
    """Return a step with pairs of samples that nearly cancel in the batch's gradient."""
    step = ordinary(Adam(eps=1e-10, weight_decay=0.1), AdamState.zeros)
    x = np.repeat(step.train.x[:2], 3, axis=0) * (1 + 1e-7 * np.arange(6)[:, None])
    zeros = {name: p * (1e-3 if name.startswith("1.") else 1.0) for name, p in step.params.items()}
    return dataclasses.replace(step, params=zeros, train=Batch(x, np.array([0, 1, 2, 0, 1, 2])))


STEPS = {
    "no second moment": ordinary(Adam(eps=1e-12, weight_decay=0.1), AdamState.zeros),
    "cancelling": cancelling(),
    "confident and saturated": ordinary(Adam(eps=1e-10, weight_decay=0.1), second_step, scale=8.0),
    "bias correction": ordinary(Adam(betas=(0.999, 0.9999), weight_decay=0.1), second_step),
}


@cache
def right(name: str, place: int) -> tuple[Answer, Answer]:
    return expected(STEPS[name], QUERIES[place]), bounds(STEPS[name], QUERIES[place], np.float64)


@pytest.mark.parametrize("name", STEPS)
def test_a_mistake_of_a_part_in_a_million_shows(name: str) -> None:
    """Every known mistake that changes an answer by that much is seen in some answer."""
    unseen = {fault.name: change for fault in FAULTS if (change := unseen_change(fault, name)) is not None}
    assert all(change < 1e-6 for change in unseen.values()), unseen
    assert len(unseen) < len(FAULTS) / 2  # or the test would check too few faults


def unseen_change(fault: Fault, name: str) -> float | None:
    """Return the largest relative change of an answer; None if an answer is beyond its bound."""
    largest = 0.0
    for place, query in enumerate(QUERIES):
        wanted, bound = right(name, place)
        try:
            got = answer(fault.implementation(), STEPS[name], query)
        except Misbehaviour:
            return None
        for key, array in wanted.items():
            off = np.abs(got[key] - array)
            if (off > bound[key]).any():
                return None
            largest = max(largest, float(off.max() / max(np.abs(array).max(), 1e-300)))
    return largest


def naive_bias_correction(step: Step) -> Array:
    """Return `linearized` for an ε that dwarfs κ, with 1 − β^t evaluated directly."""
    beta1, t = step.adam.betas[0], step.state.step + 1
    sgd = answer(ORACLE, step, Query("scores", {"slope": "sgd", "gradient": "start"}))["values"]
    return sgd * ((1 - beta1) / (1 - beta1**t)) / step.adam.eps


def test_the_usual_bias_correction_counts_as_rounding() -> None:
    adam = Adam(betas=(0.99999, 0.9), eps=1e20)
    step, query = ordinary(adam, second_step), Query("scores", {"slope": "linearized", "gradient": "start"})
    (wanted, bound), got = (expected(step, query), bounds(step, query, np.float64)), naive_bias_correction(step)
    off = np.abs(got - wanted["values"])
    assert (off <= bound["values"]).all()
    # The sum of terms does not explain the lost digits: the bound has a separate part for them.
    assert (off > 4 * unit_roundoff(np.float64) * np.abs(wanted["values"])).any()


def test_underflow_counts_as_rounding() -> None:
    smallest = float(np.finfo(np.float32).smallest_subnormal)
    assert smallest / 2 < rounding(0.0, 1, np.float32) < 1e-30
    assert rounding(0.0, 1, np.float64) < 1e-300


def one_of_two_is_nothing() -> Step:
    """Return a step with two samples, one without gradient: τ g and h s are equal at τ = ½, h = 1, and v = 0."""
    net = Network((1, 1, 1), "relu", "mse", bias=False)
    params = {"0.weight": np.array([[0.27]]), "1.weight": np.array([[-0.46]])}
    train = Batch(np.array([[0.12], [-0.13]]), np.array([[0.64], [0.1]]))
    return Step(
        net, params, Adam(lr=0.1), AdamState.zeros(params), train, Batch(np.array([[0.12]]), np.array([[-0.13]]))
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_rounding_of_a_variance_is_no_mistake(dtype: str) -> None:
    """It dominates here: another order of Σ (x − g/n)² is as right, and so is Σ x² − g²/n."""
    step, query = (
        one_of_two_is_nothing(),
        Query("scores", {"slope": "random_order", "gradient": "start", "nodes": (1, 2)}),
    )
    wanted, bound = expected(step, query)["values"], bounds(step, query, dtype)["values"]
    right = slopes.partial_sum_deviation
    u = unit_roundoff(dtype)
    moved = []
    for factor in (1 - u, 1 + u, 1 + 2 * u):
        with replaced("partial_sum_deviation", right, lambda x, g, by=factor: right(x, g) * np.sqrt(by)):
            moved.append(np.abs(expected(step, query)["values"] - wanted))
    assert (np.max(moved, axis=0) <= bound).all()
    # The sum of terms and perturbed inputs do not explain it.
    magnitude = score_magnitude(step, "random_order", "start", (1, 2))
    assert (np.max(moved, axis=0) > rounding(magnitude, parameter_count(step), dtype)).any()
    if dtype == "float64":  # float32 has no digit left here
        with replaced("partial_sum_deviation", right, lambda x, g: right(x, g) / np.sqrt(2)):  # n/(n − 1) forgotten
            assert (np.abs(expected(step, query)["values"] - wanted) > bound).any()


def test_errors_with_the_same_effect_for_either_sign_have_random_sizes() -> None:
    """Adam's map falls to both sides of a node near 0: errors of equal size would give equal answers."""
    step = one_of_two_is_nothing()
    m, v = ({name: np.full_like(p, size) for name, p in step.params.items()} for size in (0.1, 0.0))
    step = dataclasses.replace(step, adam=Adam(betas=(0.9, 0.0)), state=AdamState(10, m, v))
    base, moved = scoring.scores(step, "random_order", "start", nodes=(1, 2)), []
    generator = np.random.default_rng(0)
    for _ in range(DRAWS):
        with usual_rounding(unit_roundoff(np.float32), generator):
            moved.append(np.abs(scoring.scores(step, "random_order", "start", nodes=(1, 2)) - base).max())
    assert min(moved) > 0
    assert max(moved) > 2 * min(moved)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_no_draw_is_rounded_away(dtype: str) -> None:
    """The oracle computes in float64, where an error of one u may not change a number."""
    step, query = (
        dataclasses.replace(one_of_two_is_nothing(), adam=Adam(betas=(0.9, 0.0))),
        Query("scores", {"slope": "random_order", "gradient": "start", "nodes": (1, 2)}),
    )
    least = rounding(score_magnitude(step, "random_order", "start", (1, 2)), parameter_count(step), dtype)
    for seed in range(20):
        spread = conditioning(lambda given: expected(given, query)["values"], step, dtype, seed=seed, draws=1)
        assert (spread > least)[0]


def cancelling_twice() -> Step:
    """Return a step whose hidden unit's gradient cancels to a thousandth per sample, and again between samples."""
    net, size = Network((1, 1, 2, 1), "identity", "mse", bias=False), 1e-3
    params = {
        "0.weight": np.array([[1e-9]]),  # negligible, so that only the last layer matters
        "1.weight": np.array([[0.61], [0.83]]),
        "2.weight": np.array([[0.83 * (1 + size), -0.61]]),
    }
    x = np.array([[0.37], [0.91]])
    y = models.outputs(net, params, x) - np.array([[0.91 * (1 + size)], [-0.37]])
    valid = Batch(np.array([[1.3]]), np.array([[0.4]]))
    return in_dtype(Step(net, params, Adam(eps=1e-30), AdamState.zeros(params), Batch(x, y), valid), np.float32)


def test_rounding_in_each_sample_separately_is_no_mistake() -> None:
    """Two losses of digits multiply; with perturbed weights, which the samples share, they would only add up."""
    step, query = cancelling_twice(), Query("scores", {"slope": "frozen", "gradient": "start"})
    wanted, bound = expected(step, query)["values"], bounds(step, query, np.float32)["values"]
    off = np.abs(gpu.scores(step, "frozen", "start", device="cpu", dtype="float32") - wanted)
    assert (off <= bound).all()
    generator, size = np.random.default_rng(0), DRAWN * unit_roundoff(np.float32)
    shared = [expected(perturbed(step.as_float64(), size, generator), query)["values"] for _ in range(DRAWS)]
    assert (off > SAFETY / DRAWN * np.max(np.abs(np.array(shared) - wanted), axis=0)).any()


def cancelling_over_the_batch() -> Step:
    """Return a step of 601 samples in which the sum over the first class nearly cancels that over the second."""
    x = np.random.default_rng(0).choice([0.7, 1.1, 1.3], (601, 2))
    net, y = Network((2, 2)), np.repeat([0, 1], [301, 300])
    params = {name: 0.01 * p for name, p in net.init(0).items()}
    adam, batch = Adam(betas=(0.0, 0.5), eps=1e-8), Batch(x, y)
    return Step(net, params, adam, AdamState.zeros(params), batch, batch.take(np.array([0, 400])))


def one_after_another(count: int) -> type:
    """Return a candidate that adds the first `count` samples' contributions one by one in float32, the last first."""

    class Candidate:
        @staticmethod
        def scores(step: Step, slope: str, gradient: str) -> Array:
            assert (slope, gradient) == ("tangent", "start")
            step = step.as_float64()
            x, c = models.sample_gradients(step), adam.step_coefficients(step)
            g = {name: x_i[:count][::-1].astype(np.float32).cumsum(axis=0)[-1].astype(float) for name, x_i in x.items()}
            gamma = models.loss_gradient(step.net, step.params, step.valid)
            P = {name: (gamma[name] * adam.divided_difference(c[name], g[name], g[name]))[None] for name in x}
            return scoring.dot_products(x, P)[:, 0]

    return Candidate


def test_the_rounding_of_the_sum_over_the_batch_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its partial sums are far larger than g; the draws change each sample's contribution only."""
    (one,) = (one for one in PROPERTIES if one.name == "scores-tangent-start")
    query = Query("scores", {"slope": "tangent", "gradient": "start"})
    case = Case(in_dtype(cancelling_over_the_batch(), np.float32), query)
    right, wrong = (asker(implementation(one_after_another(count), "sum")) for count in (601, 600))
    one.check(right, case, np.float32)
    with pytest.raises(Disagreement):
        one.check(wrong, case, np.float32)
    monkeypatch.setattr(slope_rounding, "rounding", lambda *_: 0.0)
    with pytest.raises(Disagreement):
        one.check(right, case, np.float32)


def saturated(large: float) -> Step:
    """Return a step with an input entry so large that its sample's hidden units saturate, with gradient 0."""
    x = np.random.default_rng(0).normal(size=(5, 3))
    x[2, 1] = large
    network = Network((3, 4, 2), "tanh")
    params, batch = network.init(0), Batch(x, np.array([0, 1, 0, 1, 1]))
    return in_dtype(Step(network, params, Adam(), AdamState.zeros(params), batch, batch), np.float32)


class InFloat32:
    """The engine on the CPU in float32."""

    @staticmethod
    def scores(step: Step, **options: Any) -> Array:
        return gpu.scores(step, **options, variance="exact", device="cpu", dtype="float32")  # type: ignore[no-any-return]


def squares_in_units_of_norms(_: Any, a: Array, b: Array, out: Array) -> Array:
    """Return √Σ x² from squares that underflow if another sample's entry dominates the norm of its column."""
    squares = []
    for x in (b, a):
        norm = np.sqrt((x.astype(np.float64) ** 2).sum(axis=0)).astype(x.dtype)
        squares.append((norm, (x / np.where(norm > 0, norm, x.dtype.type(1))) ** 2))
    (row, of_b), (col, of_a) = squares
    out[...] = row[:, None] * col * np.sqrt(of_b.T @ of_a)
    return out


@pytest.mark.parametrize(
    "name", ["scores-random_order-start", "scores-random_order-midpoint", "scores-two_term-shapley"]
)
@pytest.mark.parametrize("large", [1e22, 1e30, 1e36])
def test_squares_that_underflow_are_seen(monkeypatch: pytest.MonkeyPatch, large: float, name: str) -> None:
    """The other samples' scores are then off by some percent, within a bound with errors of u times that entry."""
    slope, last = name.split("-")[1:]
    options = {"slope": slope, "gradient": "midpoint" if slope == "two_term" else last}
    (one,) = (one for one in PROPERTIES if one.name == name)
    ask, case = asker(implementation(InFloat32, "engine")), Case(saturated(large), Query("scores", options))
    one.check(ask, case, np.float32)
    monkeypatch.setattr(outer_product, "outer_root_squares", squares_in_units_of_norms)
    with pytest.raises(Disagreement):
        one.check(ask, case, np.float32)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "silu", "gelu"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_derivative_errors_are_drawn_where_libraries_have_them(activation: str, dtype: str) -> None:
    """A nearly saturated unit has one, a fully saturated unit has none."""
    net, size = Network((1, 1, 1), activation, "mse", bias=False), DRAWN * unit_roundoff(dtype)
    params = {name: np.ones(shape) for name, shape in net.shapes.items()}

    def moved(z: float) -> float:
        batch = Batch(np.array([[-z]]), np.array([[0.5]]))
        step = Step(net, params, Adam(), AdamState.zeros(params), batch, batch)
        right = models.batch_gradient(step)["0.weight"]
        with usual_rounding(size, np.random.default_rng(0)):
            off = models.batch_gradient(step)["0.weight"] - right
        return float(np.abs(off).max())

    nearly = -0.5 * np.log(unit_roundoff(dtype))  # where 1 − tanh² is about 4 u
    assert moved(nearly / 2 if activation == "gelu" else nearly) > size / 10
    assert moved(1e22) == 0
