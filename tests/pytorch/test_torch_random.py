"""Random small models of all layers in random loops: each step's scores are the oracle's, by captures and forward mode.

The oracle has each sample's own backward pass. `verify_ghost` compares both contractions sample by sample, too.
"""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_loops import MODELS, Loop, assert_oracle_agrees, cross_entropy, mean_of_each
from torch_random_models import INPUTS, LEAVES, Draw, Drawn, draws

torch = pytest.importorskip("torch", reason="extra `torch`")
nn, F = torch.nn, torch.nn.functional


def one_hot(outputs: Any, y: Any) -> Any:
    return F.one_hot(y, outputs.shape[-1]).to(outputs)


def binary(outputs: Any, y: Any) -> Any:
    weights = torch.linspace(0.5, 2, outputs.shape[-1], dtype=outputs.dtype)
    losses = F.binary_cross_entropy_with_logits(outputs, one_hot(outputs, y), reduction="none", pos_weight=weights)
    return losses.mean(1)


def squares(outputs: Any, y: Any) -> Any:
    return F.mse_loss(outputs, one_hot(outputs, y), reduction="none").mean(1)


def weighted(outputs: Any, y: Any) -> Any:
    weights = torch.linspace(0.2, 3, outputs.shape[-1], dtype=outputs.dtype)
    return F.cross_entropy(outputs, y, weights, reduction="none", label_smoothing=0.1)


LOSSES = {
    "cross-entropy": cross_entropy(),
    "label smoothing": cross_entropy(label_smoothing=0.3),
    "class weights": mean_of_each(weighted),
    "ignored labels": cross_entropy(ignore_index=0),
    "binary": mean_of_each(binary),
    "squares": mean_of_each(squares),
}
OPTIMIZERS = {
    "adamw": lambda model: torch.optim.AdamW(trained(model), lr=0.01, weight_decay=0.1),
    "adam with l2": lambda model: torch.optim.Adam(trained(model), lr=0.01, betas=(0.7, 0.9), weight_decay=0.1),
    "groups": lambda model: torch.optim.AdamW(
        [{"params": [p], "lr": 0.01 * (1 + i), "eps": 10.0 ** -(i % 4 + 3)} for i, p in enumerate(trained(model))]
    ),
}


def trained(model: Any) -> list[Any]:
    return [p for p in model.parameters() if p.requires_grad]


def frozen(start: int | None) -> Callable[[Any], None]:
    """Return the function that freezes every third parameter but those of the ends."""

    def change(model: Any) -> None:
        if start is not None:
            for p in list(model.parameters())[1 + start : -1 : 3]:
                p.requires_grad_(False)

    return change


def loop_of(draw: Draw, options: dict[str, Any], **loop: Any) -> Loop:
    MODELS["random"] = (lambda: Drawn(draw), draw.x, draw.y)
    try:
        return Loop("random", options=options, one_by_one=True, **loop)
    finally:
        del MODELS["random"]


def captured(draw: Draw, options: dict[str, Any], verify: bool, **loop: Any) -> Loop:
    """Return a loop by captures; with `verify`, each sample's score is compared with that of forward mode."""
    return loop_of(draw, options | {"samples_axis": draw.axes(), "verify_ghost": verify}, **loop)


@given(
    draw=draws,
    slope=st.sampled_from(["frozen", "linearized", "tangent", "secant", "random_order", "auto"]),
    gradient=st.sampled_from(["start", "midpoint"]),
    loss=st.sampled_from(sorted(LOSSES)),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    freezing=st.none() | st.integers(0, 2),
    clip=st.none() | st.just(0.1),
    parts=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=12)
def test_scores_of_random_models_in_random_loops(
    draw: Draw,
    slope: str,
    gradient: str,
    loss: str,
    optimizer: str,
    freezing: int | None,
    clip: float | None,
    parts: int,
    seed: int,
) -> None:
    options = {"slope": slope, "gradient": gradient}
    loop = {
        "optimizer": OPTIMIZERS[optimizer],
        "each": LOSSES[loss],
        "change": frozen(freezing),
        "clip": clip,
        "parts": parts,
        "seed": seed,
    }
    # Bags of embeddings have no forward derivative, and differences no digit along some random models' P.
    derivatives = draw.inputs != "bags"
    assert_oracle_agrees(captured(draw, options, derivatives, **loop), steps=2)
    if derivatives and slope not in ("random_order", "auto"):  # forward mode has no σ²
        forward = loop_of(draw, options | {"contraction": "forward"}, **loop)
        assert_oracle_agrees(forward, steps=2)
        assert forward.attribution.differences is None


@pytest.mark.parametrize("leaf", LEAVES)
def test_both_contractions_of_each_layer(leaf: str) -> None:
    """Each layer at least once, called twice, whatever Hypothesis draws."""
    inputs = INPUTS[list(LEAVES).index(leaf) % len(INPUTS)]
    draw = Draw([[leaf]], inputs, 0, pooled=False)
    assert_oracle_agrees(captured(draw, {"slope": "secant", "gradient": "start"}, True, clip=0.1), steps=1, n=3)
