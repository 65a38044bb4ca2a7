"""Loops on a card, by CuPy on the CPU: the same scores as on the host, refusals, and how often a step waits."""

import re
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch_devices import Card, put_on_card
from torch_loops import CLOSE, GPT, Loop, cross_entropy

from adamshap.gpu.backend import Backend
from adamshap.reference.contract import Run

torch = pytest.importorskip("torch", reason="extra `torch`")
nn, F = torch.nn, torch.nn.functional
from adamshap.torch import Attribution, memory  # noqa: E402

LOOPS: dict[str, dict[str, Any]] = {
    "clipping and accumulation": {"name": "gpt", "clip": 0.05, "parts": 2},
    "low rank on the path": {"name": "gpt", "options": {"slope": "secant", "gradient": "path", "rank": 2}},
    "convolutions": {"name": "image"},
    "positions, variance of rank one": {"name": "patches", "options": {"variance": "rank_one"}},
    "two uses, gradient at θ": {"name": "twice", "options": {"gradient": "start"}},
    "two terms, efficient": {"options": {"slope": "two_term", "efficient": True}},
    "each validation sample": {"options": {"per_validation": True}},
    "forward mode": {"options": {"slope": "secant", "contraction": "forward"}},
    "both compared": {"name": "gpt", "options": {"verify_ghost": True}},
}


@pytest.fixture
def card(cupy_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> Card:
    return put_on_card(monkeypatch)


def run_of(loop: Loop, steps: int = 3) -> Run:
    for index in loop.batches(steps):
        loop.step(index)
    return loop.attribution.result()


def assert_same(got: Run, wanted: Run) -> None:
    """Assert that two runs differ by roundings alone."""
    for one, other in ((got.scores, wanted.scores), (got.sgd_scores, wanted.sgd_scores)):
        np.testing.assert_allclose(one, other, rtol=0, atol=CLOSE * np.abs(other).max())
    np.testing.assert_array_equal(got.seen, wanted.seen)
    assert got.history.keys() == wanted.history.keys()
    for name, values in wanted.history.items():
        np.testing.assert_allclose(got.history[name], values, rtol=CLOSE)
    for name, p in wanted.params.items():
        np.testing.assert_allclose(got.params[name], p, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("case", LOOPS)
def test_a_loop_on_a_card_has_the_scores_of_the_host(case: str, cupy_on_cpu: Any) -> None:
    wanted = run_of(Loop(**LOOPS[case]))
    with pytest.MonkeyPatch.context() as patched:
        put_on_card(patched)
        loop = Loop(**LOOPS[case])
        assert loop.attribution._scorer.context.backend.xp.__name__ == "cupy"
        assert_same(run_of(loop), wanted)


def test_a_step_waits_for_the_card_as_often_whatever_the_model(
    cupy_on_cpu: Any, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what it compares, once for all parameters; for its own results not at all: they are fetched a step later."""
    import cupyx

    fetched, own, each = list[int](), Backend.host, cross_entropy()

    def host(backend: Backend, array: Any) -> Any:
        fetched[-1] += 1
        with cupyx.allow_synchronize(True):
            return own(backend, array)

    monkeypatch.setattr(Backend, "host", host)
    for depth in (1, 3):
        torch.manual_seed(0)
        model = GPT(depth=depth)
        adam = torch.optim.AdamW(model.parameters())
        x = torch.randint(0, 7, (8, 4))
        attribution = Attribution(
            model, adam, validation=lambda m=model, x=x: each(m(x[6:]), x[6:]).mean(), n_samples=6
        )
        for step in range(4):
            fetched.append(0)
            with attribution.samples(range(6)):
                each(model(x[:6]), x[:6]).mean().backward()
            with cupyx.allow_synchronize(False) if step == 3 else nullcontext():  # the first two are checked in full
                adam.step()
            adam.zero_grad()
        assert adam.state[model.norm.weight]["step"] == 4
    assert fetched[3] == fetched[7] == 8  # scores, SGD's, loss; finite gradients, sums, distances from two f; SGD's sum


def test_numbers_that_are_not_finite_are_refused_a_step_later(card: Card) -> None:
    loop = Loop()
    loop.attribution._stack.__dict__["loss"] = lambda: loop.model(loop.valid_x).mean() * float("nan")
    loop.step(torch.arange(5))
    with pytest.raises(FloatingPointError, match=re.escape("validation(): got nan; needs a finite loss")):
        loop.step(torch.arange(5))
    with pytest.raises(ValueError, match="got a loop that was refused before"):
        loop.attribution.result()


def test_a_mistake_is_refused_on_a_card_too(card: Card) -> None:
    loop = Loop()
    loop.passes(torch.arange(5))
    loop.model[0].weight.grad[0] *= 2
    with pytest.raises(ValueError, match=r"gradient of '0.weight': got a gradient of norm .* \(1 of 7 compared"):
        loop.adam.step()


@pytest.mark.parametrize("rank", [None, 2])
def test_a_state_of_a_card_continues_on_the_host(rank: int | None, cupy_on_cpu: Any) -> None:
    options = {"rank": rank}
    whole = Loop("gpt", options=options)
    indices = list(whole.batches(4, n=8))
    for index in indices:
        whole.step(index)
    with pytest.MonkeyPatch.context() as patched:
        put_on_card(patched)
        first = Loop("gpt", options=options)
        for index in indices[:2]:
            first.step(index)
        state = first.attribution.state_dict()
    second = Loop("gpt", options=options)
    second.model.load_state_dict(first.model.state_dict())
    second.adam.load_state_dict(first.adam.state_dict())
    second.attribution.load_state_dict(state)
    for index in indices[2:]:
        second.step(index)
    assert_same(second.attribution.result(), whole.attribution.result())


def test_captures_of_another_stream_are_kept_until_the_step_is_done(card: Card) -> None:
    """PyTorch would use their memory again for that stream as soon as they are free."""
    loop = Loop()
    loop.step(torch.arange(5))
    assert card.waits == 0
    loop.passes(torch.arange(5))
    card.streams = [1]
    loop.adam.step()
    assert card.waits == 1


def test_two_devices_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3, device="meta"))
    message = "model parameter '1.weight': got a tensor on meta, where '0.weight' is on cpu; needs all trainable"
    with pytest.raises(ValueError, match=re.escape(message)):
        attribution_of(model)


def test_another_kind_of_device_is_refused() -> None:
    message = (
        "model parameter 'weight': got a tensor on meta; needs a model on the CPU or on a CUDA device: model.cpu()"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        attribution_of(nn.Linear(4, 3, device="meta"))


def test_a_card_without_cupy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "cuda_is_usable", lambda: False)
    on_card: Any = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    message = "model parameter 'w': got a tensor on cuda:0, where CuPy is not installed or finds no device; needs CuPy"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        memory.backend_of({"w": on_card})


def test_a_graph_of_a_card_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    loop = Loop()
    loop.attribution._device = torch.device("cuda", 0)
    message = "attribution.samples: got a call while a CUDA graph is captured; needs a loop without CUDA graphs"
    with pytest.raises(ValueError, match=re.escape(message)), loop.attribution.samples([0]):
        pass


def attribution_of(model: Any) -> Attribution:
    adam = torch.optim.AdamW(model.parameters())
    return Attribution(model, adam, validation=lambda: model(torch.ones(2, 4)).mean(), n_samples=4)
