"""The memory of PyTorch's tensors, as arrays of NumPy or CuPy: the only place that knows on which device they are.

On a card nothing is copied (DLPack), and CuPy works on PyTorch's current stream: its kernels come after PyTorch's and
before those that PyTorch launches next, without waiting.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from adamshap.gpu.backend import Backend, cuda_is_usable
from adamshap.reference.contract import Array, refuse

__all__ = [
    "HALVES",
    "array_of",
    "at_work",
    "backend_of",
    "memory_of",
    "refuse_graph_capture",
    "tensor_of",
]

HALVES = (torch.bfloat16, torch.float16)
"""The dtypes of autocast, which the engine computes with in float32."""


@dataclass(frozen=True)
class Memory:
    """How the tensors of one kind of device become arrays.

    Parameters
    ----------
    library : callable
        Function that returns NumPy or CuPy.
    array_of : callable
        Function from a contiguous tensor to an array of the same memory.
    tensor_of : callable
        Function from an array to a tensor of the same memory.
    at_work : callable
        Function of a device that returns a context manager, in which the library works on PyTorch's stream.
    stream : callable
        Function of a device that returns a number for PyTorch's current stream.
    wait : callable
        Function of a device that waits for everything on it.
    """

    library: Callable[[], Any]
    array_of: Callable[[torch.Tensor], Array]
    tensor_of: Callable[[Array], torch.Tensor]
    at_work: Callable[[torch.device], AbstractContextManager[Any]] = lambda device: nullcontext()
    stream: Callable[[torch.device], int] = lambda device: 0
    wait: Callable[[torch.device], None] = lambda device: None


@cache
def _cupy() -> Any:
    import cupy

    return cupy


@dataclass(frozen=True)
class _Stream:
    """A stream by its address, in the protocol that CuPy reads."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


@contextmanager
def _on_stream(device: torch.device) -> Iterator[None]:
    cuda, stream = _cupy().cuda, _Stream(_address_of_stream(device))
    with torch.cuda.device(device), cuda.Device(device.index), cuda.Stream.from_external(stream):
        yield


def _address_of_stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


def _from_card(tensor: torch.Tensor) -> Array:
    with _on_stream(tensor.device):
        array: Array = _cupy().from_dlpack(tensor)
    return array


MEMORIES: dict[str, Memory] = {
    "cpu": Memory(lambda: np, lambda tensor: tensor.numpy(), torch.from_numpy),
    "cuda": Memory(
        _cupy,
        _from_card,
        from_dlpack,
        _on_stream,
        _address_of_stream,
        torch.cuda.synchronize,
    ),
}
"""By PyTorch's type of device."""


def memory_of(device: torch.device) -> Memory:
    """Return how the tensors of a device become arrays.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    Memory
        Of its type.
    """
    return MEMORIES[device.type]


def array_of(tensor: torch.Tensor) -> Array:
    """Return a tensor as a C-contiguous array, of the same memory if it is so already.

    Parameters
    ----------
    tensor : tensor
        On the CPU or on a card; its gradient is ignored.

    Returns
    -------
    array
        NumPy's or CuPy's, of its shape and dtype; of float32 for the halves, which NumPy has in part only.
    """
    own = tensor.detach()
    if own.dtype in HALVES:
        own = own.float()
    return memory_of(tensor.device).array_of(own.contiguous())


def tensor_of(array: Array, device: torch.device) -> torch.Tensor:
    """Return an array as a tensor of the same memory.

    Parameters
    ----------
    array : array
        NumPy's or CuPy's, as `array_of` gives it for the device.
    device : torch.device

    Returns
    -------
    tensor
        On that device.
    """
    return memory_of(device).tensor_of(array)


def at_work(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context manager in which the array library works on PyTorch's current stream of a device."""
    return memory_of(device).at_work(device)


def backend_of(named: Mapping[str, torch.Tensor]) -> Backend:
    """Return the engine's backend for parameters, after a refusal of devices that it has no backend for.

    Parameters
    ----------
    named : dict of tensors
        Of one dtype.

    Returns
    -------
    Backend
        NumPy on the CPU, CuPy on a card.

    Raises
    ------
    ValueError, RuntimeError
        Parameters on two devices, on a device of another type, or on a card without CuPy.
    """
    (first, one), *others = named.items()
    for name, p in others:
        if p.device != one.device:
            got = f"a tensor on {p.device}, where {first!r} is on {one.device}"
            refuse(f"model parameter {name!r}", got, "all trainable parameters on one device")
    if one.device.type not in MEMORIES:
        needs = "a model on the CPU or on a CUDA device: model.cpu() or model.cuda()"
        refuse(f"model parameter {first!r}", f"a tensor on {one.device}", needs)
    if one.device.type == "cuda" and not cuda_is_usable():
        got = f"a tensor on {one.device}, where CuPy is not installed or finds no device"
        refuse(f"model parameter {first!r}", got, "CuPy (the extra `gpu`), or model.cpu()", RuntimeError)
    return Backend(memory_of(one.device).library(), np.dtype(str(one.dtype).removeprefix("torch.")))


def refuse_graph_capture(device: torch.device) -> None:
    """Refuse to score inside a CUDA graph: what the hooks do on the host would not happen when it is replayed."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        needs = "a loop without CUDA graphs, or a graph of other parts of it"
        refuse("attribution.samples", "a call while a CUDA graph is captured", needs)
