"""The oracle's step for a PyTorch model and optimiser: `torch_step`."""

from typing import Any

import numpy as np
import torch

from adamshap.reference.contract import (
    Adam,
    AdamGroups,
    AdamState,
    Array,
    Clipped,
    CompletedSteps,
    Reduction,
    Step,
    of_kind,
    refuse,
    shown,
)
from adamshap.torch.optimizer import adam_of, check_optimizer, trainable
from adamshap.torch.oracle.own_model import Losses, OwnModel, numbers

__all__ = ["torch_step"]


def torch_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Losses,
    batch: Any,
    validation: Any,
    *,
    validation_losses: Losses | None = None,
    reduction: Reduction = "mean",
    clip: float | None = None,
) -> Step:
    """Return the step that the optimiser is about to take, in double precision, for the oracle.

    Every function of `adamshap.reference` takes it: `marginals`, `scores`, `influence`, `update`. The model is copied
    to float64; losses and each sample's gradient come from `torch.func`, by one pass for each sample where vmap cannot
    run the model. Neither model nor optimiser is changed.

    Parameters
    ----------
    model : torch.nn.Module
        In the modes in which the losses are wanted. Losses must not depend on random numbers, as dropout's in training
        mode do, nor on the other samples of a batch, as with batch norms in training mode.
    optimizer : torch.optim.Adam or torch.optim.AdamW
        As for `Attribution`, between two steps.
    losses : callable
        ``losses(model, batch)`` returns each sample's loss, a tensor (n,), by calls of the model that it is given.
    batch : tensor, or tuple, list or mapping of tensors
        The n training samples, along the first axis of each tensor that is n long.
    validation : tensor, or tuple, list or mapping of tensors
        The n_val validation samples, likewise.
    validation_losses : callable, optional
        Losses of validation samples, if they differ from `losses`.
    reduction : {"mean", "sum"}
        Whether the training loss is the mean or the sum of the losses.
    clip : float, optional
        Largest norm of the gradient, as of ``clip_grad_norm_``.

    Returns
    -------
    Step
        Of the parameters that the losses reach, by the model's names.

    Raises
    ------
    ValueError, TypeError
        A bad argument; losses that are random, or depend on other samples; an optimiser that is not supported.

    Examples
    --------
    >>> step = torch_step(model, optimizer, losses, (x, y), (valid_x, valid_y))  # doctest: +SKIP
    >>> adamshap.reference.marginals(step, "shapley")  # doctest: +SKIP
    """
    of_kind("model", model, torch.nn.Module)
    check_optimizer(optimizer)
    for name, function in (("losses", losses), ("validation_losses", validation_losses or losses)):
        if not callable(function):
            refuse(name, shown(function), "a function of a model and a batch", TypeError)
    named = trainable(model, optimizer)
    own = OwnModel(model, list(named), (losses, batch), (validation_losses or losses, validation))
    used = {name: p for name, p in named.items() if name in own.params}
    adam = _settings(adam_of(optimizer, used))
    return Step(
        own.as_function(),
        own.params,
        adam if clip is None else Clipped(adam, clip),
        _state(optimizer, used),
        numbers(own.training),
        numbers(own.validation),
        reduction,
    )


def _settings(by_name: dict[str, Adam]) -> Adam | AdamGroups:
    """Return the settings: one Adam if all parameters share it, else one for each group."""
    groups: dict[Adam, list[str]] = {}
    for name, adam in by_name.items():
        groups.setdefault(adam, []).append(name)
    if len(groups) == 1:
        return next(iter(groups))
    return AdamGroups(tuple((tuple(names), adam) for adam, names in groups.items()))


def _state(optimizer: torch.optim.Optimizer, used: dict[str, torch.nn.Parameter]) -> AdamState:
    """Return the moments in float64; they are 0 before the first step."""
    steps = {name: int(optimizer.state.get(p, {}).get("step", 0)) for name, p in used.items()}
    if len(set(steps.values())) > 1:
        few, many = (choose(steps, key=lambda name: steps[name]) for choose in (min, max))
        got = f"{steps[few]} steps of {few!r} and {steps[many]} of {many!r}"
        refuse("optimizer.state", got, "one number of steps for all parameters that the losses reach")
    m, v = ({name: _moment(optimizer, p, key) for name, p in used.items()} for key in ("exp_avg", "exp_avg_sq"))
    return AdamState(CompletedSteps(next(iter(steps.values()))), m, v)


def _moment(optimizer: torch.optim.Optimizer, p: torch.nn.Parameter, key: str) -> Array:
    found = optimizer.state.get(p, {}).get(key)
    return np.zeros(tuple(p.shape)) if found is None else found.detach().cpu().double().numpy().copy()
