"""A PyTorch model as the oracle's: losses and each sample's gradient in double precision, by torch.func.

======  ==================  ==================================================
paper   name                meaning
======  ==================  ==================================================
θ       ``params``          parameters that are trained
ℓ       ``losses``          losses of the samples, (n,)
n       ``Samples.count``   number of samples
======  ==================  ==================================================
"""

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch.func import functional_call, grad, vmap

from adamshap.reference.contract import Array, Batch, Function, Params, refuse, shown
from adamshap.torch.random_state import put_back

__all__ = ["Losses", "OwnModel", "Samples", "in_double", "numbers"]

Losses = Callable[[Any, Any], torch.Tensor]
"""Function of a model and a batch that returns each sample's loss, (n,)."""

SAME = 1e-6
"""Largest rounding difference between two computations of a loss, relative to the largest in the batch."""

TOGETHER = 16
"""Number of samples whose gradients are computed in one pass, each with its own copy of what the model computes."""


@dataclass(frozen=True)
class Samples:
    """Samples and the function that gives their losses.

    Parameters
    ----------
    name : str
        For messages: "batch" or "validation".
    losses : callable
    data : tensor, or tuple, list or mapping of tensors
        In double precision. The samples are the first axis of each tensor of that length.
    count : int
        Number of samples.
    """

    name: str
    losses: Losses
    data: Any
    count: int


class Call(torch.nn.Module):
    """A module that calls a function of the model, so that `functional_call` replaces the model's parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, losses: Losses, data: Any) -> torch.Tensor:
        """Return the losses of `data`."""
        return losses(self.model, data)


class OwnModel:
    """A copy of a PyTorch model in double precision, with its training and validation samples.

    Parameters
    ----------
    model : torch.nn.Module
    names : iterable of str
        The parameters that are trained.
    training, validation : tuple of (callable, data)
        The functions that give losses, and the samples.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        names: list[str],
        training: tuple[Losses, Any],
        validation: tuple[Losses, Any],
    ) -> None:
        self._call = Call(_copy_in_double(model))
        own = dict(self._call.model.named_parameters())
        self._device = next(iter(own.values())).device
        self._call.requires_grad_(False)
        params = {name: own[name].detach() for name in names}
        self.training, self.validation = (
            self._samples(name, params, *given) for name, given in (("batch", training), ("validation", validation))
        )
        self._one_at_a_time = False
        self.params = {name: _on_host(p).copy() for name, p in params.items() if name in self._reached(params)}

    def as_function(self) -> Function:
        """Return the model for the oracle; batches hold `numbers` of samples."""
        shapes = {name: p.shape for name, p in self.params.items()}
        return Function(shapes, self.losses, self.params, self.gradients)

    def losses(self, params: Params, batch: Batch) -> Array:
        """Return the losses of the samples in `batch`, (n,)."""
        samples, index = self._which(batch)
        return self._host_losses(self._tensors(params), samples, index)

    def gradients(self, params: Params, batch: Batch) -> Params:
        """Return the gradient of each sample's loss, (n, …) by parameter."""
        samples, index = self._which(batch)
        tensors = self._tensors(params)
        with put_back():
            found = self._each_gradient(tensors, samples, index)
            self._refuse_other_sum(tensors, samples, index, found)
        return found

    # --- one pass ----------------------------------------------------------------------------------------------------

    def _losses(self, tensors: Mapping[str, torch.Tensor], samples: Samples, index: Array | None = None) -> Any:
        """Return the losses of some samples by the parameters in `tensors`; all if there is no `index`."""
        data, count = samples.data, samples.count
        if index is not None and len(index) < count:
            rows = torch.as_tensor(index, device=self._device)
            data, count = _mapped(data, lambda one: one[rows] if _has_samples(one, samples.count) else one), len(index)
        return self._checked(samples, self._run(tensors, samples, data), count)

    def _run(self, tensors: Mapping[str, torch.Tensor], samples: Samples, data: Any) -> Any:
        given = {f"model.{name}": tensor for name, tensor in tensors.items()}
        try:
            return functional_call(self._call, given, (samples.losses, data))
        except RuntimeError as error:
            error.add_note("(adamshap runs losses(model, batch) with a copy of the model and the batch in float64)")
            raise

    def _checked(self, samples: Samples, losses: Any, count: int) -> torch.Tensor:
        needs = "losses(model, batch) that returns one loss for each sample, a tensor (n,)"
        if not isinstance(losses, torch.Tensor) or losses.ndim != 1:
            shape = f"a tensor of shape {tuple(losses.shape)}" if isinstance(losses, torch.Tensor) else shown(losses)
            refuse(f"losses of {samples.name}", shape, needs, TypeError)
        if len(losses) != count:
            got = f"{len(losses)} losses for {count} samples"
            refuse(f"losses of {samples.name}", got, needs + ", with samples along the first axis of each tensor")
        if losses.dtype != torch.float64:
            got = f"losses of {losses.dtype}"
            refuse(f"losses of {samples.name}", got, "float64, as the model and the batch are: no cast, no autocast")
        return losses

    def _each_gradient(self, tensors: Mapping[str, torch.Tensor], samples: Samples, index: Array) -> Params:
        """Return each sample's gradient: by vmap, or by a pass for each where vmap cannot."""
        if not self._one_at_a_time:
            try:
                return self._by_vmap(tensors, samples, index)
            except Exception:  # an operation that vmap does not know; the passes below show any other error again
                self._one_at_a_time = True
        found = [self._gradient(tensors, samples, index[i : i + 1]) for i in range(len(index))]
        return {name: np.stack([_on_host(one[name]) for one in found]) for name in tensors}

    def _by_vmap(self, tensors: Mapping[str, torch.Tensor], samples: Samples, index: Array) -> Params:
        rows = torch.as_tensor(index, device=self._device)
        leaves: list[torch.Tensor] = []
        _mapped(samples.data, lambda one: leaves.append(one[rows]) if _has_samples(one, samples.count) else None)

        def loss(params: Mapping[str, torch.Tensor], *own: torch.Tensor) -> torch.Tensor:
            left = iter(own)
            data = _mapped(samples.data, lambda one: next(left)[None] if _has_samples(one, samples.count) else one)
            return self._checked(samples, self._run(params, samples, data), 1)[0]

        axes = (None, *(0 for _ in leaves))
        each = vmap(grad(loss), in_dims=axes, randomness="same", chunk_size=TOGETHER)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # an operation that vmap calls n times
            return {name: _on_host(x) for name, x in each(dict(tensors), *leaves).items()}

    def _gradient(
        self, tensors: Mapping[str, torch.Tensor], samples: Samples, index: Array | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the gradient of the sum of some losses; without the parameters that they do not reach."""
        own = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
        total = self._losses(own, samples, index).sum()
        if not total.requires_grad:
            return {}
        gradients = torch.autograd.grad(total, list(own.values()), allow_unused=True)
        return {name: x for name, x in zip(own, gradients, strict=True) if x is not None}

    # --- checks ------------------------------------------------------------------------------------------------------

    def _samples(self, name: str, params: Mapping[str, torch.Tensor], losses: Losses, data: Any) -> Samples:
        """Return the samples, whose losses must be the same from call to call, and in any part of the batch."""
        data = in_double(data)
        with torch.no_grad(), put_back():
            found = self._run(params, Samples(name, losses, data, 0), data)
        count = len(found) if isinstance(found, torch.Tensor) and found.ndim == 1 else 0
        samples = Samples(name, losses, data, count)
        if not (whole := self._host_losses(params, samples)).size:
            refuse(name, "no sample", "at least one")
        if not np.isfinite(whole).all():
            refuse(f"losses of {name}", "a loss that is not finite", "finite losses", FloatingPointError)
        with put_back():
            torch.manual_seed(int(torch.randint(2**31, ())))
            again = self._host_losses(params, samples)
        if (i := _first_off(whole, again)) is not None:
            got = f"a loss of sample {i} of {whole[i]} and, with other random numbers, {again[i]}"
            refuse(f"losses of {name}", got, "losses without random numbers: model.eval() switches dropout off")
        for half in np.array_split(np.arange(count), 2) if count > 1 else ():
            alone = self._host_losses(params, samples, half)
            if (i := _first_off(whole[half], alone, np.abs(whole).max())) is not None:
                self._refuse_interaction(name, half[i], whole[half[i]], alone[i])
        return samples

    def _host_losses(self, params: Mapping[str, torch.Tensor], samples: Samples, index: Array | None = None) -> Array:
        with torch.no_grad(), put_back():
            return _on_host(self._losses(params, samples, index))

    def _refuse_interaction(self, name: str, i: int, whole: float, half: float) -> NoReturn:
        training = [
            path
            for path, module in self._call.model.named_modules()
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.training
        ]
        where = f", in a model with {training[0]!r}, a batch norm in training mode" if training else ""
        needs = "losses that do not depend on the other samples"
        needs += ": model.eval() for batch norms" if training else ""
        got = f"a loss of sample {i} of {whole} in its batch and {half} in half of it{where}"
        refuse(f"losses of {name}", got, needs)

    def _reached(self, params: Mapping[str, torch.Tensor]) -> set[str]:
        """Return the parameters that the losses of the batch depend on: PyTorch leaves the others where they are."""
        with put_back():
            found = set(self._gradient(params, self.training))
        if not found:
            got = "a function whose losses depend on none of the model's trained parameters"
            refuse("losses", got, "losses of the model that it is given as its first argument, a copy of yours")
        return found

    def _refuse_other_sum(
        self, tensors: Mapping[str, torch.Tensor], samples: Samples, index: Array, found: Params
    ) -> None:
        """Refuse gradients of single samples that do not add up to the batch's."""
        whole = self._gradient(tensors, samples, index)
        for name, x in found.items():
            size = math.hypot(*(float(np.linalg.norm(one)) for one in x))
            total = _on_host(whole[name]) if name in whole else np.zeros(x.shape[1:])
            if (off := float(np.linalg.norm(x.sum(axis=0) - total))) > SAME * size:
                got = f"gradients of {name!r} of single samples that miss the batch's by {off:.3g}, of {size:.3g}"
                refuse(f"losses of {samples.name}", got, "losses and gradients that do not depend on other samples")

    # --- arrays ------------------------------------------------------------------------------------------------------

    def _which(self, batch: Batch) -> tuple[Samples, Array]:
        index = np.array(batch.y)
        return (self.validation, -1 - index) if index[0] < 0 else (self.training, index)

    def _tensors(self, params: Params) -> dict[str, torch.Tensor]:
        return {name: torch.as_tensor(np.array(p), device=self._device) for name, p in params.items()}


def numbers(samples: Samples) -> Batch:
    """Return a batch that holds the samples' numbers, by which `OwnModel` knows them: −1, −2, … for validation."""
    index = np.arange(samples.count)
    index = -1 - index if samples.name == "validation" else index
    return Batch(index[:, None].astype(np.float64), index)


def in_double(data: Any) -> Any:
    """Return data with all real tensors in float64, detached."""
    return _mapped(data, lambda one: one.detach().double() if one.is_floating_point() else one)


def _mapped(data: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """Return data with the function's results in place of its tensors, in their order."""
    if isinstance(data, torch.Tensor):
        return function(data)
    if isinstance(data, Mapping):
        return {key: _mapped(value, function) for key, value in data.items()}
    if isinstance(data, tuple | list):
        parts = [_mapped(value, function) for value in data]
        return type(data)(*parts) if hasattr(data, "_fields") else type(data)(parts)
    return data


def _has_samples(tensor: torch.Tensor, count: int) -> bool:
    return tensor.ndim > 0 and len(tensor) == count


def _first_off(one: Array, other: Array, size: float | None = None) -> int | None:
    """Return the first sample with another loss in `other`, if any."""
    off = np.abs(one - other) > SAME * (np.abs(one).max() if size is None else size)
    return int(np.flatnonzero(off)[0]) if off.any() else None


def _on_host(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array


def _copy_in_double(model: torch.nn.Module) -> Any:
    """Return a copy of the model in double precision, in the same modes, without the hooks of an `Attribution`."""
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    try:
        copied = copy.deepcopy(model)
    except RuntimeError as error:
        refuse("model", f"a {type(model).__name__} that cannot be copied ({error})", "a model for copy.deepcopy")
    for module in copied.modules():
        if type(module.__dict__.get("forward")).__module__.startswith("adamshap."):  # inside `samples`
            del module.__dict__["forward"]
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if getattr(hook, "func", hook).__module__.startswith("adamshap."):
                    del hooks[key]
    return copied.double()
