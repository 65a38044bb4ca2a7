"""The scores of each step of a PyTorch loop: their samples, their sums, and a loop that is resumed."""

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="extra `torch`")
from torch_loops import Loop  # noqa: E402

from adamshap.reference import Run, weighted  # noqa: E402

BATCHES = [torch.tensor(index) for index in ([3, 1, 0, 7, 9], [2, 3], [5, 4, 8])]


def run_of(loop: Loop, batches: Any = BATCHES) -> Run:
    for index in batches:
        loop.step(index)
    return loop.attribution.result()


@pytest.mark.parametrize(
    "options",
    [{}, {"per_validation": True}, {"with_sgd": False}, {"slope": "secant", "contraction": "forward"}],
    ids=str,
)
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_s_scores_are_what_it_adds(options: dict[str, Any], parts: int) -> None:
    loop = Loop(options=options | {"keep_step_scores": True}, parts=parts)
    before: Any = 0
    for number, index in enumerate(BATCHES, start=1):
        loop.step(index)
        run = loop.attribution.result()
        assert run.step_index.shape == run.step_scores.shape[:2] == run.step_sgd_scores.shape[:2] == (number, 5)
        here = run.step_index[-1] >= 0
        np.testing.assert_array_equal(run.step_index[-1][here], index)
        assert np.isnan(run.step_scores[-1][~here]).all()
        added = np.zeros_like(run.scores)
        added[run.step_index[-1][here]] = run.step_scores[-1][here]
        np.testing.assert_array_equal(run.scores, before + added)
        before = run.scores
        assert np.isnan(run.step_sgd_scores[-1][here]).all() == ("with_sgd" in options)


def test_each_step_counts_alike_with_unit_weighting() -> None:
    run = run_of(Loop(options={"keep_step_scores": True}))
    first = run.step_scores[0]
    np.testing.assert_allclose(weighted(run, "unit")[0], first[2] / np.sqrt(np.mean(first**2)), rtol=1e-12)
    np.testing.assert_array_equal(weighted(run, "sum"), run.scores)


def test_a_resumed_loop_has_the_steps_before() -> None:
    options = {"options": {"keep_step_scores": True}}
    whole, first, second = (Loop(**options) for _ in range(3))
    expected = run_of(whole)
    run_of(first, BATCHES[:2])
    state = first.attribution.state_dict()
    saved = copy.deepcopy(state)
    second.model.load_state_dict(first.model.state_dict())
    second.adam.load_state_dict(first.adam.state_dict())
    second.attribution.load_state_dict(state)
    run = run_of(second, BATCHES[2:])
    for name in ("step_index", "step_scores", "step_sgd_scores"):
        np.testing.assert_array_equal(getattr(run, name), getattr(expected, name))
        assert torch.equal(state["totals"]["record"][name].nan_to_num(), saved["totals"]["record"][name].nan_to_num())
    with pytest.raises(ValueError, match=r"state: got one of .*, keep_step_scores=True; needs one of"):
        Loop().attribution.load_state_dict(state)


def test_steps_are_kept_on_demand_only() -> None:
    run = run_of(Loop())
    assert run.step_scores is None
    with pytest.raises(ValueError, match="needs one with keep_step_scores=True, or weighting 'sum'"):
        weighted(run)
    with pytest.raises(TypeError, match="keep_step_scores: got 'all'"):
        Loop(options={"keep_step_scores": "all"})


def test_a_loop_without_steps_has_none() -> None:
    run = Loop(options={"keep_step_scores": True}).attribution.result()
    assert run.step_scores.shape == (0, 0)
    np.testing.assert_array_equal(weighted(run), np.zeros(12))
