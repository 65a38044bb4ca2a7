"""recompute=True: captures are not kept, the passes run again for the scores, which are those of the kept captures."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch_loops import CLOSE, MODELS, Loop

from adamshap.reference import Run

torch = pytest.importorskip("torch", reason="extra `torch`")
nn, F = torch.nn, torch.nn.functional
from adamshap.torch import Attribution  # noqa: E402
from adamshap.torch.captures import recompute  # noqa: E402


class Again(Loop):
    """A loop whose passes run again."""

    def passes(self, index: Any, captured: bool = True) -> None:
        for part in index.tensor_split(self.parts):

            def again(part: Any = part) -> None:
                self.loss(part).backward()

            with self.attribution.samples(part, again=again):
                again()


class AgainInParts(Loop):
    """A loop whose passes run again, a few rows at a time."""

    def passes(self, index: Any, captured: bool = True) -> None:
        for part in index.tensor_split(self.parts):

            def again(rows: Any, part: Any = part) -> None:
                self.loss(part[rows]).backward()

            with self.attribution.samples(part, again=again):
                again(slice(None))


def results(loop: Loop, steps: int = 4, n: int = 5) -> Run:
    for index in loop.batches(steps, n):
        loop.step(index)
    return loop.attribution.result()


def both(name: str = "perceptron", steps: int = 4, micro_batch: int | None = None, **settings: Any) -> tuple[Run, Run]:
    options = settings.pop("options", {})
    kept = results(Loop(name, options=options, **settings), steps)
    kind: type[Loop] = Again if micro_batch is None else AgainInParts
    again = {**options, "recompute": True, "micro_batch": micro_batch}
    return kept, results(kind(name, options=again, **settings), steps)


def assert_same(one: Run, other: Run, *, bits: bool = True) -> None:
    assert np.abs(one.scores).max() > 0
    for name, values in one.params.items():
        np.testing.assert_array_equal(values, other.params[name])
    for wanted, got in ((one.scores, other.scores), (one.sgd_scores, other.sgd_scores)):
        if bits:
            np.testing.assert_array_equal(got, wanted)
        else:
            np.testing.assert_allclose(got, wanted, rtol=0, atol=CLOSE * np.abs(wanted).max())


OPTIONS: dict[str, dict[str, Any]] = {
    "random_order": {},
    "auto": {"slope": "auto"},
    "of rank one": {"variance": "rank_one", "gradient": "start"},
    "secant": {"slope": "secant", "gradient": "path"},
    "low rank": {"rank": 2},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", OPTIONS)
def test_scores_are_those_of_the_kept_captures_bit_for_bit(name: str, options: str) -> None:
    assert_same(*both(name, options=OPTIONS[options]))


@pytest.mark.parametrize("name", ["gpt", "twice"])
def test_so_are_those_of_accumulated_and_clipped_steps(name: str) -> None:
    """Up to rounding: f is found from sums over a block in place of each use."""
    assert_same(*both(name, parts=3, clip=0.05), bits=False)


@pytest.mark.parametrize("micro_batch", [1, 2, 9])
@pytest.mark.parametrize("name", MODELS)
def test_so_are_those_of_passes_of_a_few_samples(name: str, micro_batch: int) -> None:
    """Up to rounding; the last of them, and the only one, may have fewer samples."""
    assert_same(*both(name, micro_batch=micro_batch), bits=False)


def test_a_few_samples_at_a_time_accumulate_and_are_clipped() -> None:
    assert_same(*both("gpt", parts=2, clip=0.05, micro_batch=2, options={"rank": 2}), bits=False)


def test_two_terms_of_uses_at_one_position() -> None:
    """Up to rounding: each use adds both of its terms, in place of all first terms before all second ones."""
    assert_same(*both(options={"slope": "two_term", "kind": "first"}), bits=False)


def with_dropout(model: Any) -> None:
    model[1] = nn.Sequential(nn.Tanh(), nn.Dropout(0.5))


class InEval(Again):
    """Validation without dropout."""

    def validation(self) -> Any:
        self.model.eval()
        return super().validation()


def test_the_second_pass_draws_the_random_numbers_of_the_first() -> None:
    class Kept(InEval):
        passes = Loop.passes

    runs = []
    for kind, options in ((Kept, {}), (InEval, {"recompute": True})):
        loop = kind(change=with_dropout, options={"slope": "sgd", "gradient": "start", **options})
        runs.append((results(loop), torch.get_rng_state()))
    assert_same(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


def test_a_checkpointed_layer_is_scored_once() -> None:
    class Checkpointed(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Any) -> Any:
            inside = torch.utils.checkpoint.checkpoint(lambda x: self.inside(x).tanh(), x, use_reentrant=False)
            return self.head(inside)

    MODELS["checkpointed"] = (Checkpointed, *MODELS["perceptron"][1:])
    try:
        assert_same(*both("checkpointed"))
    finally:
        del MODELS["checkpointed"]


def test_another_attribution_of_the_loop_does_not_see_the_second_pass() -> None:
    alone = results(Loop())
    loop = Again(options={"recompute": True})
    other = Attribution(loop.model, loop.adam, validation=loop.validation, n_samples=loop.count)
    for index in loop.batches(4):

        def again(index: Any = index) -> None:
            loop.loss(index).backward()

        with loop.attribution.samples(index, again=again), other.samples(index):
            again()
        given = {name: (p.grad, p.grad.clone()) for name, p in loop.trained.items()}
        loop.adam.step()
        for name, p in loop.trained.items():
            assert p.grad is given[name][0]
            assert torch.equal(p.grad, given[name][1])
        loop.adam.zero_grad()
    for run in (loop.attribution.result(), other.result()):
        assert_same(alone, run)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"slope": "secant"}])
def test_no_more_than_one_use_is_kept_at_a_time(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, most = [], [0]
    add = recompute.Reduction.add

    def counted(self: Any, use: Any) -> None:
        most[0] = max(most[0], sum(one() is not None for one in seen))
        seen.append(weakref.ref(use))
        add(self, use)

    monkeypatch.setattr(recompute.Reduction, "add", counted)
    loop = Again(options={"recompute": True, **options})
    index = next(loop.batches(1))
    loop.passes(index)
    uses = len(seen)
    assert uses > 4
    assert not any(one() is not None for one in seen)
    loop.adam.step()
    assert len(seen) == 2 * uses
    assert not any(one() is not None for one in seen)
    assert most[0] <= 1
    assert not loop.attribution._scorer.context.buffers.kept


def test_no_more_than_a_micro_batch_goes_through_the_model_again() -> None:
    loop = AgainInParts(options={"recompute": True, "micro_batch": 2})
    rows: list[int] = []
    loop.loss = lambda index: (rows.append(len(index)), loop.losses(index).sum())[1]  # type: ignore[method-assign]
    loop.step(next(loop.batches(1, n=5)))
    assert rows == [5, 2, 2, 1]


# --- the self-check --------------------------------------------------------------------------------------------------


class Shifted(nn.Module):  # type: ignore[name-defined,misc]
    """A bias that shifts all logits: its gradient is 0 but for rounding, and says nothing about f."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 1)

    def forward(self, x: Any) -> Any:
        return self.one(torch.stack([x, x.flip(1), x.roll(1, 1)], 1))[..., 0]


def test_a_factor_that_vectors_do_not_determine_comes_from_one_more_pass() -> None:
    MODELS["shifted"] = (Shifted, *MODELS["perceptron"][1:])
    try:
        kept, found = both("shifted", clip=0.01)
        assert_same(kept, found)
        loop, calls = Again("shifted", clip=0.01, options={"recompute": True}), []
        loss = loop.loss
        loop.loss = lambda index: (calls.append(1), loss(index))[1]  # type: ignore[method-assign]
        for index in loop.batches(4):
            calls.clear()
            loop.step(index)
        assert len(calls) == 3
        assert loop.attribution.result().history["factor"].max() < 1
    finally:
        del MODELS["shifted"]


def test_a_use_that_no_hook_sees_is_refused() -> None:
    class Escaping(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Any) -> Any:
            return self.head(F.linear(self.mix(x).tanh(), self.mix.weight))

    MODELS["escaping"] = (Escaping, *MODELS["perceptron"][1:])
    try:
        with pytest.raises(ValueError, match=r"gradient of 'mix.weight': got a gradient of norm"):
            results(Again("escaping", options={"recompute": True}), 1)
    finally:
        del MODELS["escaping"]


# --- what is refused -------------------------------------------------------------------------------------------------


def stepped(loop: Loop, again: Callable[..., Any], inside: Callable[[], Any] | None = None) -> None:
    index = torch.arange(5)
    with loop.attribution.samples(index, again=again):
        (inside or (lambda: loop.loss(index).backward()))()
    loop.adam.step()


def fresh(name: str = "perceptron", **options: Any) -> Loop:
    return Again(name, options={"recompute": True, **options})


OTHER_PASSES: dict[str, tuple[Callable[[Loop], Any], str]] = {
    "none": (lambda loop: None, "again: got a function with no backward pass, unlike in `samples`"),
    "other samples": (
        lambda loop: loop.loss(torch.arange(5, 10)).backward(),
        "again: got a gradient of '.*' that is off by",
    ),
    "another scale": (
        lambda loop: (2 * loop.loss(torch.arange(5))).backward(),
        "again: got a gradient of '.*' that is off",
    ),
    "another order of magnitude": (
        lambda loop: ((1 + 1e-9) * loop.loss(torch.arange(5))).backward(),
        "again: got a gradient of '.*' that is off",
    ),
    "a part of the model": (
        lambda loop: loop.model[4](torch.ones(5, 5).double()).sum().backward(),
        "again: got a function with no gradient of '0.bias', unlike in `samples`",
    ),
}


@pytest.mark.parametrize("other", OTHER_PASSES)
def test_a_second_pass_that_is_not_the_first_is_refused(other: str) -> None:
    again, message = OTHER_PASSES[other]
    loop = fresh()
    before = {name: p.clone() for name, p in loop.trained.items()}
    with pytest.raises(ValueError, match=message):
        stepped(loop, lambda: again(loop))
    assert all(torch.equal(before[name], p) for name, p in loop.trained.items())
    with pytest.raises(ValueError, match="a loop that was refused before"):
        loop.attribution.result()


def test_a_second_pass_with_effects_on_buffers_is_refused() -> None:
    loop = fresh()
    loop.model.register_buffer("count", torch.zeros(1))

    def again() -> None:
        loop.model.count.add_(1)
        loop.loss(torch.arange(5)).backward()

    with pytest.raises(ValueError, match="again: got a pass that edits the buffer 'count'"):
        stepped(loop, again)


def test_a_function_is_needed_where_passes_run_again_and_only_there() -> None:
    with pytest.raises(TypeError, match="again: got None; needs a function that runs the forward and backward pass"):
        stepped(fresh(), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"again: got .*; needs None, or an Attribution with recompute=True"):
        stepped(Loop(), lambda: None)
    with pytest.raises(TypeError, match="recompute: got 1; needs True or False"):
        fresh(recompute=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro_batch": 4}, "micro_batch: got 4; needs recompute=True beside it"),
        ({"recompute": True, "micro_batch": 0}, "micro_batch: got 0; needs"),
    ],
)
def test_a_micro_batch_is_of_a_second_pass(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loop(options=options)


def test_a_function_takes_the_rows_of_a_micro_batch_and_no_others() -> None:
    message = "again: got a function of 0 arguments without a default; needs one argument without a default, a slice"
    for again in (lambda: None, lambda x=None: None):
        with pytest.raises(TypeError, match=message):
            stepped(fresh(micro_batch=2), again)
    with pytest.raises(TypeError, match="got a function of 1 arguments without a default; needs no argument"):
        stepped(fresh(), lambda rows: None)


def test_a_mean_over_the_rows_of_a_micro_batch_is_refused() -> None:
    loop = fresh(micro_batch=2)
    index = torch.arange(5)
    message = "a gradient of '.*' that is off by .* in parts: a sum over the rows of a part, divided by what the whole"
    with pytest.raises(ValueError, match=message):
        stepped(
            loop,
            lambda rows: loop.losses(index[rows]).mean().backward(),
            lambda: loop.losses(index).mean().backward(),
        )


def test_dropout_in_a_micro_batch_is_refused() -> None:
    options = {"slope": "sgd", "gradient": "start", "recompute": True, "micro_batch": 2}
    with pytest.raises(ValueError, match=r"a gradient of '.*' that is off by .*; without dropout"):
        results(AgainInParts(change=with_dropout, options=options))


def test_two_backward_passes_in_one_block_are_refused_where_squares_need_their_sum() -> None:
    def twice(loop: Loop) -> None:
        for _ in range(2):
            loop.loss(torch.arange(5)).backward()

    with pytest.raises(
        ValueError, match=r"got a use of '.*' after the backward pass of another; needs one backward pass"
    ):
        stepped(loop := fresh(), lambda: twice(loop), lambda: twice(loop))
    linear = {"slope": "secant", "with_sgd": False}
    kept, again = Loop(options=linear), fresh(**linear)
    with kept.attribution.samples(torch.arange(5)):
        twice(kept)
    kept.adam.step()
    stepped(again, lambda: twice(again), lambda: twice(again))
    assert_same(kept.attribution.result(), again.attribution.result(), bits=False)


def test_two_terms_of_a_parameter_with_two_uses_are_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(one := nn.Linear(4, 4), nn.Tanh(), one, nn.Linear(4, 3)).double()
    adam, x = torch.optim.AdamW(model.parameters()), torch.randn(5, 4).double()
    attribution = Attribution(
        model, adam, validation=lambda: model(x).mean(), n_samples=12, slope="two_term", recompute=True
    )

    def again() -> None:
        model(x).square().mean().backward()

    message = "'two_term' for parameters that are used more than once, 0.weight"
    with pytest.raises(ValueError, match=message), attribution.samples(torch.arange(5), again=again):
        again()


def test_a_pass_that_fails_leaves_nothing_behind_but_between_others() -> None:
    loop, kept = fresh(), Loop()

    def fails(loop: Loop) -> None:
        loop.loss(torch.arange(5)).backward()
        loop.adam.zero_grad()
        raise KeyError("out of luck")

    for one in (kept, loop):
        with pytest.raises(KeyError, match="out of luck"):
            stepped(one, (lambda: None) if one is loop else None, lambda one=one: fails(one))  # type: ignore[arg-type]
    runs = []
    for one in (kept, loop):
        torch.manual_seed(1)
        runs.append(results(one))
    assert_same(*runs)
    loop.passes(torch.arange(5, 9))
    with pytest.raises(KeyError, match="out of luck"):
        stepped(loop, lambda: None, lambda: fails(loop))
    with pytest.raises(ValueError, match=r"refused before \(a pass failed between others of a step"):
        loop.adam.step()


@pytest.mark.parametrize("options", [{"contraction": "forward", "slope": "secant"}, {"verify_ghost": True}])
def test_passes_without_captures_to_reduce_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=r"recompute: got True with .*; needs False"):
        Loop(options={"recompute": True, **options})
