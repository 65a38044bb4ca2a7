"""Scores of a PyTorch loop against the oracle with materialised x_i, for layers, estimators and what loops do."""

from typing import Any

import numpy as np
import pytest
from torch_loops import MODELS, Loop, T, assert_oracle_agrees, cross_entropy, freeze_some

torch = pytest.importorskip("torch", reason="extra `torch`")
from adamshap.torch import scoring  # noqa: E402

nn = torch.nn


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("slope", "gradient"), [("random_order", "midpoint"), ("secant", "path")])
def test_the_scores_of_each_model_are_the_oracle_s(name: str, slope: str, gradient: str) -> None:
    assert_oracle_agrees(Loop(name, options={"slope": slope, "gradient": gradient}), steps=2)


def test_as_many_positions_as_samples() -> None:
    """Ids 0 … T − 1 with T = n are positions where the sequences are that long."""
    assert_oracle_agrees(Loop("gpt"), n=T)


ESTIMATORS: list[dict[str, Any]] = [
    *({"slope": slope, "gradient": "start"} for slope in ("sgd", "frozen", "linearized", "tangent")),
    {"slope": "sgd", "gradient": "midpoint"},
    {"slope": "random_order", "gradient": "path", "nodes": (2, 3)},
    {"slope": "secant", "gradient": "path", "efficient": True},
    *({"slope": "two_term", "kind": kind} for kind in ("first", "last", "shapley")),
]


@pytest.mark.parametrize("options", ESTIMATORS, ids=lambda options: "-".join(map(str, options.values())))
def test_the_scores_of_each_estimator_are_the_oracle_s(options: dict[str, Any]) -> None:
    assert_oracle_agrees(Loop(options=options, clip=0.5), steps=2)


def without_decay_for_vectors(model: Any) -> Any:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0, "betas": (0.8, 0.99), "lr": 0.03}]
    return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1, eps=1e-6)


def with_l2(model: Any) -> Any:
    return torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)


def switched(**options: Any) -> Any:
    return lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, **options)


LOOPS: dict[str, dict[str, Any]] = {
    "clipped": {"clip": 0.05},
    "accumulated": {"parts": 3},
    "accumulated and clipped": {"parts": 2, "clip": 0.05, "name": "gpt"},
    "class weights": {"each": cross_entropy(weight=torch.tensor([0.2, 1.0, 3.0]).double())},
    "label smoothing": {"each": cross_entropy(label_smoothing=0.2)},
    "ignored labels": {"each": cross_entropy(ignore_index=2), "name": "gpt"},
    "groups": {"optimizer": without_decay_for_vectors},
    "groups of a convnet": {"optimizer": without_decay_for_vectors, "name": "image"},
    "L2": {"optimizer": with_l2},
    "L2, clipped, accumulated": {"optimizer": with_l2, "clip": 0.05, "parts": 2, "name": "twice"},
    "foreach": {"optimizer": switched(foreach=True)},
    "fused": {"optimizer": switched(fused=True)},
    "lr as a tensor": {"optimizer": lambda model: torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.0078125))},
    "frozen": {"change": freeze_some},
    "one sample": {"count": 3},
}


@pytest.mark.parametrize("loop", LOOPS)
def test_the_scores_of_each_loop_are_the_oracle_s(loop: str) -> None:
    assert_oracle_agrees(Loop(**LOOPS[loop]), n=1 if loop == "one sample" else 5)


def test_a_schedule_is_followed() -> None:
    loop = Loop()
    scheduler = torch.optim.lr_scheduler.LambdaLR(loop.adam, lambda step: (step + 1) / 4)
    assert_oracle_agrees(loop, steps=4, scheduler=scheduler)


def test_rank_one_variance_of_several_backward_passes_is_that_of_one() -> None:
    """Its value is the engine's, whose own tests compare it with the oracle."""
    runs = []
    for parts in (1, 2):
        loop = Loop(parts=parts, options={"variance": "rank_one"})
        for index in loop.batches(2):
            loop.step(index)
        runs.append(loop.attribution.result().scores)
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-9)
    assert np.abs(runs[0]).max() > 0


def test_low_rank_scores_are_near_the_exact_ones_and_of_full_rank_they_are_those() -> None:
    scores = []
    for rank in (None, WIDE, 2):
        loop = Loop("gpt", options={"rank": rank})
        for index in loop.batches(3, n=8):
            loop.step(index)
        scores.append(loop.attribution.result().scores)
    exact, full, low = scores
    np.testing.assert_allclose(full, exact, rtol=1e-8)
    assert np.abs(low - exact).max() > 1e-6 * np.abs(exact).max()
    assert np.corrcoef(low, exact)[0, 1] > 0.9


def test_steps_up_to_the_sixteenth_are_exact_whatever_the_rank(exact_squares: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("adamshap.gpu.sketch.EXACT_SQUARES", exact_squares)
    scores = []
    for rank in (None, 2):
        loop = Loop("gpt", options={"rank": rank, "keep_step_scores": True})
        for index in loop.batches(18, n=8):
            loop.step(index)
        scores.append(loop.attribution.result().step_scores)
    assert [np.array_equal(*pair, equal_nan=True) for pair in zip(*scores, strict=True)] == [True] * 16 + [False] * 2


WIDE = 8
"""The smaller side of every matrix of the model."""


def test_a_dropout_mask_is_the_pass_s_own() -> None:
    loop = Loop(options={"slope": "sgd", "gradient": "start"})
    loop.model[1] = nn.Sequential(nn.Tanh(), nn.Dropout(0.5))
    loop.model.eval()
    index = next(loop.batches(1))
    names = loop.trained
    gamma = torch.autograd.grad(loop.validation(), list(names.values()))
    loop.model.train()
    state = torch.get_rng_state()
    each = loop.weights[index] * loop.each(loop.model(loop.x[index]), loop.y[index])
    expected = [
        0.01 * sum((one * two).sum() for one, two in zip(gamma, x, strict=True)).item()
        for x in (torch.autograd.grad(loss, list(names.values()), retain_graph=True) for loss in each)
    ]

    def validation() -> Any:
        loop.model.eval()
        torch.rand(3)
        return loop.validation.__func__(loop)

    object.__setattr__(loop.attribution._stack, "loss", validation)
    torch.set_rng_state(state)
    with loop.attribution.samples(index):
        loop.loss(index).backward()
    after = torch.get_rng_state()
    loop.adam.step()
    np.testing.assert_allclose(loop.attribution.result().scores[index], expected, rtol=1e-9)
    assert torch.equal(torch.get_rng_state(), after)
    assert all(module.training for module in loop.model.modules())


def test_auto_takes_the_norms_of_the_parameters_that_need_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in the first step, and none in some later one; the scores are the oracle's in each."""
    seen: list[set[str]] = []

    def noted(context: Any, norms: Any, captures: Any, variance: str) -> None:
        add_norms(context, norms, captures, variance)
        seen.append(set(norms))

    add_norms = scoring.add_norms
    monkeypatch.setattr(scoring, "add_norms", noted)
    loop = Loop(options={"slope": "auto"}, optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.001))
    assert_oracle_agrees(loop, steps=40)
    assert len(seen) == 40
    assert seen[0] == set(loop.trained)
    assert set() in seen
