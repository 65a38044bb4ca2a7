"""The tolerance lets rounding pass and nothing else: it is small where the problem is well conditioned."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings

from adamshap.reference import Adam, AdamState, Batch, Network, Step, scores
from adamshap.verify.strategies import steps
from adamshap.verify.tolerance import assert_within, rounding, score_bound, score_magnitude, unit_roundoff


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
        # A few hundred roundings' worth: √100 parameters, times SAFETY, twice.
        assert (relative < 1000 * unit_roundoff(dtype)).all()


def test_the_bound_grows_where_the_method_is_steep() -> None:
    """v = 0 and ε far below the gradient's own rounding: the sign of a cancelling gradient decides."""
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
    """Rounding the inputs to float32 is the least that a float32 implementation does."""

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
def test_assert_within_is_not_fooled(got: list, expected: list, bound: float) -> None:
    with pytest.raises(AssertionError):
        assert_within(got, expected, bound)


def test_rounding_refuses_a_dtype_without_roundoff() -> None:
    with pytest.raises(ValueError, match="int64"):
        rounding(1.0, 1, np.int64)
