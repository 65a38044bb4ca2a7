"""The derivative of each sample's loss along a direction of the parameters: forward-mode AD, or central differences.

Both edit the parameters where they lie and put them back, so that any use of a parameter is seen, by whatever function.
PyTorch's count of edits in place is kept, as θ does not change.

======  ===============  ==================================================
paper   name             meaning
======  ===============  ==================================================
D       ``direction``    direction, by parameter
ℓ_i     ``losses_of``    loss of sample i
h       ``h``            step of a difference
======  ===============  ==================================================
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.attention import SDPBackend, sdpa_kernel

from adamshap.gpu.forward_mode import best_move, central_difference
from adamshap.reference.contract import Array, refuse
from adamshap.torch.captures.block import Block
from adamshap.torch.checks.factor import UNITS
from adamshap.torch.forward_mode.closures import losses_of
from adamshap.torch.memory import tensor_of

__all__ = ["Along", "Derivatives"]

MOST_ERROR = 0.5
"""Error of the differences, over the largest of them, from which on they are refused."""


@dataclass(frozen=True)
class Along:
    """The derivatives of the losses along a direction.

    Parameters
    ----------
    values : array (n,)
        d/dh ℓ_i(θ + h D) at h = 0, in double.
    error : float
        Estimated largest error of the differences; 0 with forward-mode AD, which errs by rounding alone.
    """

    values: Array
    error: float


class Derivatives:
    """Differentiates by forward-mode AD, and by differences from the first operation on that has no forward derivative.

    Parameters
    ----------
    model : torch.nn.Module

    Attributes
    ----------
    calls : int
        Number of forward passes so far, each over all blocks of a step.
    differences : str or None
        PyTorch's reason why differences are taken; None while forward-mode AD works.
    with_mkldnn : bool
        Whether forward-mode AD may use oneDNN, as long as its operations have forward derivatives.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.calls = 0
        self.differences: str | None = None
        self.with_mkldnn = True

    def along(
        self, blocks: Sequence[Block], named: Mapping[str, torch.nn.Parameter], direction: Mapping[str, Any]
    ) -> Along:
        """Return the derivatives of the losses of all blocks along `direction`, at the present parameters.

        Parameters
        ----------
        blocks : sequence of Block
        named : dict of parameters
            Those that have a direction; the others do not move.
        direction : dict of arrays
            Of the parameters' shapes and dtype.

        Raises
        ------
        ValueError, TypeError, FloatingPointError
            Losses of a wrong shape, or differences without a correct digit.
        """
        tangents = {name: tensor_of(direction[name], p.device) for name, p in named.items()}
        if self.differences is None:
            try:
                return Along(self._by_tangents(blocks, named, tangents), 0.0)
            except RuntimeError as error:  # PyTorch's NotImplementedError is one, too
                if "mkldnn" in str(error) and self.with_mkldnn:  # of recurrent layers in float32 on the processor
                    self.with_mkldnn = False
                    return self.along(blocks, named, direction)
                self.differences = str(error).partition("\n")[0]
        return self._by_differences(blocks, named, tangents)

    def _by_tangents(
        self,
        blocks: Sequence[Block],
        named: Mapping[str, torch.nn.Parameter],
        tangents: Mapping[str, torch.Tensor],
    ) -> Array:
        self.calls += 1
        found = []
        for block in blocks:
            plain = nullcontext() if self.with_mkldnn else torch.backends.mkldnn.flags(enabled=False, allow_tf32=None)
            with plain, forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):  # others have no forward derivative
                _give_tangents(named, tangents)
                tangent = forward_ad.unpack_dual(losses_of(block, self.model)).tangent
                if tangent is None:
                    raise NotImplementedError("the losses have no tangent")
                found.append(_double(tangent))
        return np.concatenate(found)

    def _by_differences(
        self,
        blocks: Sequence[Block],
        named: Mapping[str, torch.nn.Parameter],
        tangents: Mapping[str, torch.Tensor],
    ) -> Along:
        """Return differences with an estimate of their error, from half the step and from the rounding of losses."""
        length = _norm(tangents)
        if length == 0:
            return Along(np.zeros(sum(block.n for block in blocks)), 0.0)
        dtype = np.dtype(str(next(iter(named.values())).dtype).removeprefix("torch."))
        with _kept(named) as kept:
            losses_at = self._losses_on_line(blocks, named, kept, tangents)
            longest = (_norm(kept) or 1.0) / length
            values, h = central_difference(losses_at, longest, best_move(dtype))
            ahead, behind = losses_at(h / 2), losses_at(-h / 2)
        unit = float(np.finfo(dtype).eps) * float(abs(ahead).max()) / h
        apart = float(abs(values - (ahead - behind) / h).max())
        largest = float(abs(values).max())
        if apart > MOST_ERROR * largest and apart > UNITS * unit:  # else the losses hardly depend on h
            got = f"losses whose differences are {largest:.2g} and err by {apart:.2g}, {self.differences}"
            needs = "losses in the parameters' own dtype, without autocast, or operations with a forward derivative"
            refuse("losses()", got, needs, FloatingPointError)
        error = 4 / 3 * apart + 4 * unit
        return Along(values, error)

    def _losses_on_line(
        self,
        blocks: Sequence[Block],
        named: Mapping[str, torch.nn.Parameter],
        kept: Mapping[str, torch.Tensor],
        tangents: Mapping[str, torch.Tensor],
    ) -> Callable[[float], Array]:
        def losses_at(h: float) -> Array:
            self.calls += 1
            for name, p in named.items():
                p.data.copy_(torch.add(kept[name], tangents[name], alpha=h))
            return np.concatenate([_double(losses_of(block, self.model)) for block in blocks])

        return losses_at


def _give_tangents(named: Mapping[str, torch.nn.Parameter], tangents: Mapping[str, torch.Tensor]) -> None:
    """Give the parameters themselves tangents, as edits in place do, until the dual level ends."""
    with warnings.catch_warnings(), torch.no_grad(), _unsafe_preserve_version_counter(tuple(named.values())):
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's own, of its rules of differentiation
        for name, p in named.items():
            p.copy_(forward_ad.make_dual(p.detach(), tangents[name]))


@contextmanager
def _kept(named: Mapping[str, torch.nn.Parameter]) -> Iterator[dict[str, torch.Tensor]]:
    """Return a context manager that gives a copy of the parameters, and puts them back bit for bit."""
    kept = {name: p.detach().clone() for name, p in named.items()}
    try:
        yield kept
    finally:
        for name, p in named.items():
            p.data.copy_(kept[name])


def _norm(tensors: Mapping[str, torch.Tensor]) -> float:
    squares = [float(one.double().square().sum()) for one in tensors.values()]
    return float(np.sqrt(np.sum(squares)))


def _double(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().double().cpu().numpy()
    return array
