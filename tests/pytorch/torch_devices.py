"""A loop's tensors in the memory of CuPy on the CPU, as if they were on a card."""

from contextlib import nullcontext
from ctypes import c_byte
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="extra `torch`")
from adamshap.torch import memory  # noqa: E402
from adamshap.torch.memory import MEMORIES, Memory  # noqa: E402


class Card:
    """What the loop asked of the card: the streams that it is on, in turn, and how often it waited."""

    def __init__(self) -> None:
        self.streams = [0]
        self.waits = 0

    def stream(self, device: Any) -> int:
        return self.streams[0] if len(self.streams) == 1 else self.streams.pop(0)

    def wait(self, device: Any) -> None:
        self.waits += 1


def shared(array: Any) -> Any:
    """Return a tensor of the same memory: that of CuPy on the CPU is the host's."""
    size, dtype = array.nbytes, getattr(torch, str(array.dtype))
    return torch.frombuffer((c_byte * size).from_address(array.data.ptr), dtype=dtype).reshape(array.shape)


def put_on_card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """Let PyTorch's tensors on the CPU become arrays of CuPy on the CPU, by copies, with CuPy's own contexts."""
    import cupy

    card = Card()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    emulated = Memory(
        lambda: cupy,
        lambda tensor: cupy.asarray(tensor.numpy()),
        shared,
        memory._on_stream,
        card.stream,
        card.wait,
    )
    monkeypatch.setitem(MEMORIES, "cpu", emulated)
    return card
