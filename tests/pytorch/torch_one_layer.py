"""A small model around one layer, in a loop whose scores are compared with the oracle's."""

from collections.abc import Callable
from typing import Any

import pytest
from torch_loops import MODELS, Loop, assert_oracle_agrees, labels

torch = pytest.importorskip("torch", reason="extra `torch`")
nn = torch.nn

WIDTH, HEADS, POSITIONS = 4, 2, 3
Call = Callable[[Any, Any], Any]
"""Function of a layer and x (n, T, d), or of another shape, with an output (n, d)."""


class Around(nn.Module):  # type: ignore[name-defined,misc]
    """A linear layer, the layer of a case, the mean over positions or pixels, and an output layer."""

    def __init__(self, layer: Any, call: Call, width: int) -> None:
        super().__init__()
        self.call, self.before, self.layer = call, nn.Linear(WIDTH, WIDTH), layer
        self.head = nn.Linear(width, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.call(self.layer, self.before(x).tanh()).tanh())


def check(
    layer: Callable[[], Any], call: Call, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, **loop: Any
) -> None:
    """Compare the scores of steps with a layer, whose output has as many columns or channels as `call` returns."""

    def build() -> Any:
        made = layer()
        with torch.no_grad():
            width = call(made.double(), torch.zeros(2, *shape).double()).shape[1]
        return Around(made, call, width)

    monkeypatch.setitem(MODELS, "case", (build, lambda count: torch.randn(count, *shape).double(), labels))
    assert_oracle_agrees(Loop("case", one_by_one=True, **loop), steps=1)


def freeze(names: tuple[str, ...]) -> Callable[[Any], None]:
    """Return the function that freezes parameters of the layer, by the beginnings of their names."""

    def change(model: Any) -> None:
        for name, p in model.named_parameters():
            p.requires_grad_(not name.startswith(tuple(f"layer.{one}" for one in names)))

    return change
