"""The scores of others that ``adamshap bench --model gpt --against`` times are those that it says they are."""

import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="extra `peers`: torch")

from adamshap.torch.bench.against import step_of_peer  # noqa: E402
from adamshap.torch.bench.loop import Loop  # noqa: E402
from adamshap.torch.bench.model import Sizes, build, loss_of  # noqa: E402

SIZES = Sizes(layers=1, heads=2, width=8, vocabulary=16, context=6, n=4, tied=False)
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # as tokens have no gradient


def scores_of(peer: str, n_val: int, preconditioned: bool) -> tuple[Any, Any]:
    """Return its scores of a second step, and ⟨∇L, x_i⟩ or ⟨∇L ⊙ η/(√v̂ + ε), x_i⟩ by one backward pass a sample."""
    plain, checkout = Loop.of(SIZES, n_val, None, 1), os.environ.get("ADAMSHAP_GHOSTSUITE", "")
    model, optimiser = build(SIZES, "cpu")
    step = step_of_peer(peer, Path(checkout), model, optimiser, plain.train, plain.valid)
    step()
    plain.step()
    own, (x, y), loss = list(plain.model.parameters()), plain.train, loss_of(plain.model)
    gamma = torch.autograd.grad(loss(*plain.valid), own)
    if preconditioned:
        (group,) = plain.optimiser.param_groups
        v = [plain.optimiser.state[p]["exp_avg_sq"] / (1 - group["betas"][1]) for p in own]
        gamma = [g * group["lr"] / (one.sqrt() + group["eps"]) for g, one in zip(gamma, v, strict=True)]
    expected = []
    for i in range(SIZES.n):
        of_sample = torch.autograd.grad(loss(x[i : i + 1], y[i : i + 1]) / SIZES.n, own)
        expected.append(sum((g * one).sum() for g, one in zip(gamma, of_sample, strict=True)))
    scores = step()
    plain.step()
    for p, q in zip(model.parameters(), own, strict=True):
        torch.testing.assert_close(p, q)
    return scores, torch.stack(expected).detach()


def test_opacus() -> None:
    pytest.importorskip("opacus", reason="not installed: opacus")
    torch.testing.assert_close(*scores_of("opacus", 2, preconditioned=True))


def test_dattri_llm() -> None:
    pytest.importorskip("dattri_llm", reason="extra `others`: dattri-llm")
    torch.testing.assert_close(*scores_of("dattri-llm", 2, preconditioned=False))


def test_ghostsuite() -> None:
    """Up to a factor, that of the mean over all samples; some parts in a hundred are bfloat16's."""
    if "ADAMSHAP_GHOSTSUITE" not in os.environ:
        pytest.skip("ADAMSHAP_GHOSTSUITE names no checkout")
    ours, expected = scores_of("ghostsuite", 1, preconditioned=False)
    assert torch.corrcoef(torch.stack([ours, expected]))[0, 1] > 0.99
