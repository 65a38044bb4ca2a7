"""Many copies of a small model, trained at once: the parameters of copy k are row k of one matrix.

A model is a function of one vector θ (P,) to the losses of samples. `torch.func.vmap` runs the copies together, each on
batches of its own, and PyTorch's AdamW takes their steps, which are elementwise. A weight of 0 leaves a sample out of a
batch. This is the route of every retraining here; the oracle takes another, one model at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from adamshap.reference.contract import Adam, Schedule, StepNumber

Data = tuple[Tensor, Tensor]
"""Inputs and targets, a row for each sample."""
Losses = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]
"""Parameters by name, inputs and targets of n samples, to their losses (n,)."""

AT_ONCE = 16
"""Copies trained together: their activations stay small enough for the cache."""


@dataclass(frozen=True, eq=False)
class Flat:
    """A model as a function of one vector.

    Parameters
    ----------
    by_name : callable
        The losses, of parameters by name.
    shapes : dict of tuples
        Shape of each parameter, in the vector's order.
    start : tensor (P,)
        θ_0.
    """

    by_name: Losses
    shapes: Mapping[str, tuple[int, ...]]
    start: Tensor

    @classmethod
    def of(cls, model: nn.Module) -> "Flat":
        """Return a language model with its present parameters; ``model(ids)`` gives the logits (n, T, vocabulary)."""
        parameters = dict(model.named_parameters())

        def losses(params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            # The fused kernels of attention have neither second derivatives nor a rule for `vmap`.
            with sdpa_kernel(SDPBackend.MATH):
                logits = functional_call(model, dict(params), (x,), tie_weights=True)
            return functional.cross_entropy(logits.transpose(1, 2), y, reduction="none").mean(1)

        start = torch.cat([p.detach().flatten() for p in parameters.values()])
        return cls(losses, {name: tuple(p.shape) for name, p in parameters.items()}, start)

    def starting(self, theta: Tensor) -> "Flat":
        """Return the same model with another θ_0."""
        return replace(self, start=theta)

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the parameters by name, views of `theta` (P,)."""
        sizes = [torch.Size(shape).numel() for shape in self.shapes.values()]
        parts = torch.split(theta, sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def losses(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Return the losses (n,) of samples at `theta` (P,)."""
        return self.by_name(self.named(theta), x, y)

    def mean_loss(self, theta: Tensor, data: Data) -> Tensor:
        """Return the mean loss at `theta` (P,)."""
        return self.losses(theta, *data).mean()

    def each_gradient(self, theta: Tensor, data: Data) -> Tensor:
        """Return the gradient of every sample's loss (n, P)."""
        one = grad(lambda p, x, y: self.losses(p, x[None], y[None])[0])
        found: Tensor = vmap(one, (None, 0, 0))(theta, *data)
        return found

    def gradient(self, theta: Tensor, data: Data) -> Tensor:
        """Return the gradient of the mean loss (P,)."""
        found: Tensor = grad(lambda p: self.mean_loss(p, data))(theta)
        return found


@dataclass(frozen=True, eq=False)
class State:
    """θ, m and v (M, P) of all copies after `step` steps; the tensors change with the next step."""

    theta: Tensor
    m: Tensor
    v: Tensor
    step: int


def states(flat: Flat, optimiser: Adam | Schedule, data: Data, index: Tensor, weight: Tensor) -> Iterator[State]:
    """Yield the states of M copies before each step, and after the last.

    Parameters
    ----------
    flat : Flat
    optimiser : Adam or Schedule
        Without L2 decay and ε inside the root, which PyTorch's AdamW lacks.
    data : tuple of tensors
    index : int tensor (steps, M, batch)
        Samples of each step of each copy.
    weight : tensor (steps, M, batch)
        Weights of their losses in the sum, the divisor included.
    """
    theta = flat.start.repeat(index.shape[1], 1).requires_grad_()
    first = optimiser.at(StepNumber(1), "")
    adamw = torch.optim.AdamW(
        [theta], lr=first.lr, betas=first.betas, eps=first.eps, weight_decay=first.weight_decay, foreach=False
    )
    zeros = torch.zeros_like(theta.detach())
    losses = vmap(flat.losses)
    for step, (samples, weights) in enumerate(zip(index, weight, strict=True)):
        yield _state(adamw, theta, zeros, step)
        adamw.param_groups[0]["lr"] = optimiser.at(StepNumber(step + 1), "").lr
        x, y = (part[samples] for part in data)
        (theta.grad,) = torch.autograd.grad((losses(theta, x, y) * weights).sum(), theta)
        adamw.step()
    yield _state(adamw, theta, zeros, len(index))


def _state(adamw: torch.optim.Optimizer, theta: Tensor, zeros: Tensor, step: int) -> State:
    moments: dict[str, Any] = adamw.state.get(theta, {})
    return State(theta.detach(), moments.get("exp_avg", zeros), moments.get("exp_avg_sq", zeros), step)


def trained(flat: Flat, optimiser: Adam | Schedule, data: Data, index: Tensor, weight: Tensor) -> Tensor:
    """Return θ_T (M, P) of all copies, trained `AT_ONCE` at a time; the parameters are those of `states`."""
    found = []
    for at in range(0, index.shape[1], AT_ONCE):
        part = slice(at, at + AT_ONCE)
        *_, last = states(flat, optimiser, data, index[:, part], weight[:, part])
        found.append(last.theta)
    return torch.cat(found)


@torch.no_grad()
def mean_losses(flat: Flat, theta: Tensor, data: Data) -> Tensor:
    """Return the mean loss (M,) of every copy of `theta` (M, P)."""
    both = vmap(flat.losses, (0, None, None))
    return torch.cat([both(part, *data).mean(1) for part in torch.split(theta, AT_ONCE)])
