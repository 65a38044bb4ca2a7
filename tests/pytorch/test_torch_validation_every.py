"""PyTorch loops with validation gradients kept for some steps: against the oracle, resumed, with other parameters."""

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="extra `torch`")
from torch_loops import CLOSE, Loop  # noqa: E402

from adamshap.reference import scoring  # noqa: E402
from adamshap.reference.contract import Estimator, Step  # noqa: E402
from adamshap.verify.tolerance import estimator_magnitude  # noqa: E402

EVERY, STEPS = 3, 7
BATCHES = [torch.tensor([(5 * step + 2 * place) % 12 for place in range(5)]) for step in range(STEPS)]


def calls_of(loop: Loop) -> list[int]:
    """Have the calls of the loop's validation function noted, with the number of completed steps."""
    stack, calls = loop.attribution._stack, list[int]()

    def noting() -> Any:
        calls.append(loop.attribution._totals.steps)
        return loss()

    loss = stack.loss
    object.__setattr__(stack, "loss", noting)
    return calls


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, {"clip": 0.1, "parts": 2}),
        ({"gradient": "start", "slope": "secant"}, {}),
        ({"with_sgd": False}, {}),
        ({"per_validation": True}, {"clip": 0.1}),
        ({"slope": "two_term", "kind": "last"}, {}),
        ({"slope": "secant", "contraction": "forward"}, {}),
        ({"slope": "secant", "verify_ghost": True, "check_every": 2}, {"parts": 2}),
    ],
    ids=str,
)
def test_scores_have_the_gradient_of_the_first_step_of_the_interval(options: dict[str, Any], how: Any) -> None:
    loop = Loop(options=options | {"validation_every": EVERY, "keep_step_scores": True}, **how)
    names = ("slope", "gradient", "per_validation", "kind", "contraction")
    own = {name: value for name, value in options.items() if name in names and value != "forward"}
    each = bool(options.get("per_validation"))
    estimators = [("step_scores", Estimator(**own))]
    if "with_sgd" not in options:
        estimators.append(("step_sgd_scores", Estimator("sgd", "start", per_validation=each)))
    validated: Step | None = None
    for number, index in enumerate(BATCHES):
        step = loop.oracle_step(index)
        validated = step if number % EVERY == 0 else validated
        loop.step(index)
        run = loop.attribution.result()
        for name, estimator in estimators:
            wanted = scoring.unchecked_scores(step, estimator, validated)
            size = estimator_magnitude(step, estimator) + np.abs(wanted).max()
            assert np.all(np.abs(getattr(run, name)[-1] - wanted) <= CLOSE * size), (number, name)
    if "with_sgd" in options:
        assert "valid_loss" not in run.history
    else:
        assert [math.isnan(loss) for loss in run.history["valid_loss"]] == [t % EVERY > 0 for t in range(STEPS)]


@pytest.mark.parametrize("gradient", ["midpoint", "start"])
def test_validation_is_called_once_in_an_interval(gradient: str) -> None:
    loop = Loop(options={"validation_every": EVERY, "gradient": gradient})
    calls = calls_of(loop)
    for index in BATCHES:
        loop.step(index)
    times = 2 if gradient == "midpoint" else 1  # and at θ, for SGD's scores
    assert calls == [step for step in range(STEPS) if step % EVERY == 0 for _ in range(times)]


def test_a_parameter_that_the_kept_gradient_lacks_has_it_taken_again() -> None:
    loop = Loop(options={"validation_every": STEPS, "with_sgd": False})
    calls = calls_of(loop)
    bias = next(p for name, p in loop.model.named_parameters() if name.endswith("bias"))
    for number, index in enumerate(BATCHES):
        bias.requires_grad_(number >= 2)  # without a gradient it takes no part
        bias.grad = None
        loop.step(index)
    assert calls == [0, 2]


@pytest.mark.parametrize("options", [{}, {"per_validation": True}, {"rank": 2, "with_sgd": False}], ids=str)
def test_a_loop_resumes_bit_by_bit(options: dict[str, Any], tmp_path: Any) -> None:
    options = {"options": options | {"validation_every": EVERY, "keep_step_scores": True}}
    whole = Loop(**options)
    for index in BATCHES:
        whole.step(index)
    expected = whole.attribution.result()
    for stop in (EVERY - 1, EVERY, EVERY + 1):
        first, second = Loop(**options), Loop(**options)
        for index in BATCHES[:stop]:
            first.step(index)
        parts = ([loop.model, loop.adam, loop.attribution] for loop in (first, second))
        torch.save([part.state_dict() for part in next(parts)], tmp_path / "state.pt")
        for part, state in zip(next(parts), torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
            part.load_state_dict(state)
        for index in BATCHES[stop:]:
            second.step(index)
        run = second.attribution.result()
        np.testing.assert_array_equal(run.step_scores, expected.step_scores)
        np.testing.assert_array_equal(run.step_sgd_scores, expected.step_sgd_scores)
        np.testing.assert_array_equal(run.history.get("valid_loss"), expected.history.get("valid_loss"))


def test_a_state_of_another_interval_is_refused() -> None:
    loop = Loop(options={"validation_every": 2})
    with pytest.raises(ValueError, match=r"state: got one of .*, validation_every=2; needs one of"):
        Loop().attribution.load_state_dict(loop.attribution.state_dict())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"validation_every": 0}, "validation_every: got 0; needs an integer of at least 1"),
        ({"validation_every": 2, "efficient": True}, "validation_every: got 2 with efficient=True; needs 1, or"),
        ({"validation_every": 2, "gradient": "path"}, "validation_every: got 2 with gradient 'path'; needs 1, or"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Loop(options=options)
