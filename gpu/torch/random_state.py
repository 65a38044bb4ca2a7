"""PyTorch's random state on the CPU and on CUDA devices, saved and replayed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["RandomState", "put_back", "random_state", "replayed"]

RandomState = tuple[torch.Tensor, list[torch.Tensor]]
"""The states of the CPU's generator and of each CUDA device's; none before CUDA is used."""


def random_state() -> RandomState:
    """Return the present states."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


@contextmanager
def replayed(state: RandomState) -> Iterator[None]:
    """Draw the numbers that followed `state` for a while; the present states are put back afterwards."""
    now = random_state()
    _set(state)
    try:
        yield
    finally:
        _set(now)


@contextmanager
def put_back() -> Iterator[None]:
    """Put the present states back afterwards."""
    with replayed(random_state()):
        yield


def _set(state: RandomState) -> None:
    on_cpu, on_cuda = state
    torch.set_rng_state(on_cpu)
    if on_cuda:
        torch.cuda.set_rng_state_all(on_cuda)
