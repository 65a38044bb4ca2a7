"""Models of torchvision in a loop with clipping and groups: each step's scores are the oracle's."""

from collections.abc import Callable
from typing import Any

import pytest
from torch_loops import MODELS, Loop, assert_oracle_agrees, labels
from torchvision_models import models

torch = pytest.importorskip("torch", reason="extra `torch`")


def images(size: int) -> Callable[[int], Any]:
    return lambda count: torch.randn(count, 3, size, size).double()


OTHERS: dict[str, tuple[Callable[[], Any], int]] = {
    "resnet": (lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3), 16),
    "mobilenet": (lambda: models.mobilenet_v2(num_classes=3, width_mult=0.1, dropout=0.0), 16),
    "vit": (lambda: models.VisionTransformer(8, 4, 2, 2, 8, 8, num_classes=3), 8),
}


def decay_for_matrices_alone(model: Any) -> Any:
    """The groups that most recipes have."""
    some, none = [], []
    for p in model.parameters():
        (some if p.ndim > 1 else none).append(p)
    return torch.optim.AdamW([{"params": some, "weight_decay": 0.1}, {"params": none, "weight_decay": 0.0}], lr=1e-3)


@pytest.mark.parametrize("name", OTHERS)
def test_the_scores_are_the_oracle_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, size = OTHERS[name]
    monkeypatch.setitem(MODELS, f"torchvision's {name}", (lambda: build().eval(), images(size), labels))
    loop = Loop(
        f"torchvision's {name}",
        decay_for_matrices_alone,
        clip=1.0,
        count=4,
        options={"slope": "secant"},
        one_by_one=name == "vit",
    )
    assert_oracle_agrees(loop, steps=2, n=2)
