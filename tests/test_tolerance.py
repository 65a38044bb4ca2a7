"""The tolerance accepts rounding errors and nothing else: it is small for well-conditioned problems."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings

from adamshap.reference import Adam, AdamState, Batch, Network, Step, scores
from adamshap.reference.contract import Array
from adamshap.verify.steps import perturbed
from adamshap.verify.strategies import steps
from adamshap.verify.tolerance import (
    DRAWS,
    SAFETY,
    assert_within,
    rounding,
    score_bound,
    score_magnitude,
    unit_roundoff,
)


def ordinary_step() -> Step:
    generator = np.random.default_rng(0)
    net = Network((6, 8, 4))
    params = net.init(1)
    state = AdamState(
        20,
        {name: 0.01 * generator.standard_normal(p.shape) for name, p in params.items()},
        {name: 1e-4 * (1 + generator.chisquare(3, p.shape)) for name, p in params.items()},
    )
    train = Batch(generator.standard_normal((8, 6)), generator.integers(0, 4, 8))
    valid = Batch(generator.standard_normal((5, 6)), generator.integers(0, 4, 5))
    return Step(net, params, Adam(), state, train, valid)


def test_a_well_conditioned_score_has_a_tight_bound() -> None:
    step = ordinary_step()
    for dtype in (np.float64, np.float32):
        relative = score_bound(step, dtype=dtype) / score_magnitude(step, "random_order", "midpoint")
        # A few hundred roundings: √100 for the parameters, times SAFETY, twice.
        assert (relative < 1000 * unit_roundoff(dtype)).all()


def test_the_bound_grows_where_the_method_is_steep() -> None:
    """With v = 0 and ε far below the gradient's own rounding, the result is the sign of a cancelling gradient."""
    step = ordinary_step()
    x = np.concatenate([step.train.x[:1], step.train.x[:1]])
    opposite = Batch(x, np.array([[1.0], [1.0 + 1e-9]]))
    net = Network((6, 1), "identity", "mse", bias=False)
    params = {"0.weight": np.zeros((1, 6))}
    centred = Batch(x, opposite.y - opposite.y.mean())
    steep = Step(net, params, Adam(eps=1e-12), AdamState.zeros(params), centred, Batch(x, np.ones((2, 1))))
    gentle = dataclasses.replace(steep, adam=Adam(eps=0.1))
    tight, loose = (score_bound(s, "tangent") / score_magnitude(s, "tangent", "midpoint") for s in (gentle, steep))
    assert (loose > 10 * tight).all()


@given(steps(max_n=8))
@settings(max_examples=30)
def test_float32_inputs_stay_within_the_float32_bound(step: Step) -> None:
    """A float32 implementation at least rounds the inputs to float32."""

    def rounded(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: array.astype(np.float32) for name, array in arrays.items()}

    def rounded_batch(batch: Batch) -> Batch:
        return Batch(batch.x.astype(np.float32), batch.y.astype(np.float32) if batch.y.ndim == 2 else batch.y)

    state = AdamState(step.state.step, rounded(step.state.m), rounded(step.state.v))
    single = dataclasses.replace(
        step,
        params=rounded(step.params),
        state=state,
        train=rounded_batch(step.train),
        valid=rounded_batch(step.valid),
    )
    assert_within(scores(single), scores(step), score_bound(step, dtype=np.float32), "score")


def test_assert_within_names_the_worst_element() -> None:
    with pytest.raises(AssertionError, match=r"score\[1\]: got .*3\.0.*expected .*2\.0.*the error 1 exceeds the bound"):
        assert_within([1.0, 3.0], [1.0, 2.0], 0.5, "score")


@pytest.mark.parametrize(
    ("got", "expected", "bound"),
    [
        ([np.nan], [1.0], 1.0),
        ([1.0], [np.nan], 1.0),
        ([1.0], [1.0], np.nan),
        ([np.inf], [1.0], 1.0),
        ([1.0, 1.0], [1.0], 1.0),
        ([[1.0]], [1.0], 1.0),
        ([1.0 + 1e-15], [1.0], 0.0),
    ],
)
def test_assert_within_refuses_nan_and_wrong_shapes(got: list, expected: list, bound: float) -> None:
    with pytest.raises(AssertionError):
        assert_within(got, expected, bound)


def test_rounding_refuses_a_dtype_without_roundoff() -> None:
    with pytest.raises(ValueError, match="int64"):
        rounding(1.0, 1, np.int64)


def confident_step(gap: float) -> Step:
    """Return a step of softmax regression whose samples have 1 − p_y of about exp(−gap)."""
    net = Network((2, 2), loss="cross_entropy", bias=False)
    params = {"0.weight": np.array([[gap, 0.3], [0.1, 0.7]])}
    batch = Batch(np.array([[1.0, 0.5], [1.1, 0.2]]), np.array([0, 0]))
    return Step(net, params, Adam(), AdamState.zeros(params), batch, batch)


def saturated_step(depth: float) -> Step:
    """Return a step with one tanh unit with 1 − tanh² of about 4 exp(−2 depth), and a large weight behind it."""
    net = Network((1, 1, 1), "tanh", "mse", bias=False)
    params = {"0.weight": np.array([[depth]]), "1.weight": np.array([[np.exp(2 * depth)]])}
    batch = Batch(np.array([[1.0], [1.1]]), np.array([[0.2], [0.1]]))
    return Step(net, params, Adam(), AdamState.zeros(params), batch, batch)


def usual_softmax_scores(step: Step) -> Array:
    """Return SGD's scores of softmax regression, with softmax − onehot as in every library."""
    x, weight = step.train.x, step.params["0.weight"]
    p = np.exp(x @ weight.T - (x @ weight.T).max(axis=1, keepdims=True))
    gradients = np.einsum("no,ni->noi", p / p.sum(axis=1, keepdims=True) - np.eye(2)[step.train.y], x)
    return step.adam.lr / step.n * np.einsum("noi,oi->n", gradients, gradients.mean(axis=0))


def usual_tanh_scores(step: Step) -> Array:
    """Return SGD's scores of one tanh unit, with 1 − tanh² as in every library."""
    x, y, (w,), (v,) = step.train.x[:, 0], step.train.y[:, 0], *(p[0] for p in step.params.values())
    a = np.tanh(w * x)
    b = 2 * (v * a - y)
    gradients = np.stack([b * v * (1 - a * a) * x, b * a], axis=1)
    return step.adam.lr / step.n * (gradients @ gradients.mean(axis=0))


def silent_step(depth: float) -> Step:
    """Return a step with one GELU unit with 1 + erf of about exp(−depth²/2), and a tiny weight: only values matter."""
    net = Network((1, 1, 1), "gelu", "mse", bias=False)
    params = {"0.weight": np.array([[-depth]]), "1.weight": np.array([[1e-9]])}
    batch = Batch(np.array([[1.0], [1.1]]), np.array([[0.2], [0.1]]))
    return Step(net, params, Adam(), AdamState.zeros(params), batch, batch)


def usual_gelu_scores(step: Step) -> Array:
    """Return SGD's scores of the weight behind one GELU unit, with 1 + erf as in PyTorch."""
    x, y, (w,), (v,) = step.train.x[:, 0], step.train.y[:, 0], *(p[0] for p in step.params.values())
    a = w * x * 0.5 * (1 + np.array([math.erf(z / math.sqrt(2)) for z in w * x]))
    gradients = 2 * (v * a - y) * a
    return step.adam.lr / step.n * gradients * gradients.mean()


USUAL = [
    (confident_step(18.0), usual_softmax_scores),
    (saturated_step(9.0), usual_tanh_scores),
    (silent_step(5.0), usual_gelu_scores),
]


@pytest.mark.parametrize(("step", "usual"), USUAL)
def test_the_usual_derivatives_count_as_rounding(step: Step, usual: Callable[[Step], Array]) -> None:
    got, expected = usual(step), scores(step, "sgd", "start")
    assert_within(got, expected, score_bound(step, "sgd", "start"))


@pytest.mark.parametrize(("step", "usual"), USUAL)
def test_without_its_own_term_the_usual_derivative_would_be_a_mistake(
    step: Step, usual: Callable[[Step], Array]
) -> None:
    """Perturbed inputs do not explain the error."""
    generator, base = np.random.default_rng(0), scores(step, "sgd", "start")
    moved = [scores(perturbed(step, unit_roundoff(np.float64), generator), "sgd", "start") - base for _ in range(DRAWS)]
    explained = SAFETY * np.max(np.abs(moved), axis=0) + rounding(score_magnitude(step, "sgd", "start"), 4)
    assert (np.abs(usual(step) - base) > explained).any()


def test_a_small_mistake_beside_a_confident_sample_still_shows() -> None:
    """The term is absolute, of size u: an error of a millionth of 1 − p_y is seen."""
    step = confident_step(18.0)
    right = scores(step, "sgd", "start")
    with pytest.raises(AssertionError, match="exceeds the bound"):
        assert_within(right * (1 + 1e-6), right, score_bound(step, "sgd", "start"))
