"""Between full checks, an edit of one matrix's gradient shows in the sum of SGD's scores."""

from typing import Any

import pytest
from torch_loops import Loop

torch = pytest.importorskip("torch", reason="extra `torch`")
from adamshap.torch import scoring  # noqa: E402

STEPS, EDITED = 8, 7


class Edited(Loop):
    """A loop that edits the gradient of one matrix in one step, which is not checked in full."""

    count_of_steps = 0

    def passes(self, index: Any, captured: bool = True) -> None:
        super().passes(index, captured)
        self.count_of_steps += 1
        if self.count_of_steps == EDITED:
            self.edit(next(p for p in self.trained.values() if p.ndim > 1))

    def edit(self, p: Any) -> None:
        p.grad.mul_(1.01)


class AgainAndEdited(Edited):
    """The same, whose passes run again."""

    def passes(self, index: Any, captured: bool = True) -> None:
        def again() -> None:
            self.loss(index).backward()

        with self.attribution.samples(index, again=again):
            again()
        self.count_of_steps += 1
        if self.count_of_steps == EDITED:
            self.edit(next(p for p in self.trained.values() if p.ndim > 1))


def run(loop: Loop) -> None:
    for index in loop.batches(STEPS):
        loop.step(index)


MESSAGE = rf"gradient of '.*weight': got a gradient of norm .* at step {EDITED}, in .* \(1 of \d+ compared"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["perceptron", "gpt", "image"])
def test_an_edit_of_one_matrix_is_a_sentence_that_names_it(name: str, dtype: Any) -> None:
    loop = Edited(name, dtype=dtype)
    with pytest.raises(ValueError, match=MESSAGE):
        run(loop)
    with pytest.raises(ValueError, match="a loop that was refused before"):
        loop.attribution.result()


@pytest.mark.parametrize("options", [{"per_validation": True}, {"slope": "sgd", "gradient": "start"}, {"rank": 2}])
def test_so_is_one_with_other_estimators(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=MESSAGE):
        run(Edited(options=options))


def test_so_is_one_where_captures_are_not_kept() -> None:
    with pytest.raises(ValueError, match=MESSAGE):
        run(AgainAndEdited(options={"recompute": True}))


def test_without_sgd_scores_there_is_no_sum_to_compare() -> None:
    run(Edited(options={"with_sgd": False}))


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["gpt", "twice", "image"])
def test_a_right_loop_is_not_compared_in_full(
    name: str, dtype: Any, clip: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be right all the same, and slower."""
    found, adds_up = [], scoring.adds_up

    def noted(*given: Any) -> bool:
        found.append(adds_up(*given))
        return found[-1]

    monkeypatch.setattr(scoring, "adds_up", noted)
    run(Loop(name, dtype=dtype, parts=2, clip=clip))
    assert found == [True] * (STEPS - 2)
