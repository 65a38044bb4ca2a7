"""A PyTorch optimiser's settings and state, as the engine's: read anew before each step, as schedules change them."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from adamshap.gpu.backend import Backend
from adamshap.gpu.hyperparameters import Hyperparameters, held, scalars_of
from adamshap.gpu.state import State
from adamshap.reference.contract import Adam, StepNumber, refuse

__all__ = [
    "adam_of",
    "check_optimizer",
    "hyperparameters_of",
    "precision_of",
    "state_of",
    "trainable",
    "unknown_gradients",
]

REFUSED = ("amsgrad", "maximize", "differentiable")
"""Settings of a group that change Adam's map, or keep its graph."""


def check_optimizer(optimizer: object) -> None:
    """Refuse every optimiser but Adam and AdamW, by exact class, and settings that change their map."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        refuse("optimizer", type(optimizer).__name__, "torch.optim.Adam or torch.optim.AdamW", TypeError)
    _check_groups(optimizer)


def _check_groups(optimizer: Any) -> None:
    for number, group in enumerate(optimizer.param_groups):
        for name in REFUSED:
            if group.get(name):
                refuse(f"optimizer.param_groups[{number}][{name!r}]", True, "False: Adam's map is another one with it")
    for name in ("grad_scale", "found_inf"):
        if getattr(optimizer, name, None) is not None:
            got = "a fused optimiser with a GradScaler, whose gradients are still scaled when the step begins"
            refuse("optimizer", got, "fused=False with a GradScaler")


def trainable(model: torch.nn.Module, optimizer: Any) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that the optimiser moves, by the model's names; each must be known to both."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if missing := [name for name, p in named.items() if id(p) not in moved]:
        needs = (
            "an optimiser that has every trainable parameter (a second one for a part would take a step of its own),"
            " or a frozen parameter (requires_grad_(False))"
        )
        refuse("optimizer", f"no parameter {missing[0]!r} of the model", needs)
    known = {id(p) for p in model.parameters()}
    if count := len(moved - known):
        refuse("optimizer", f"{count} parameters that are not the model's", "parameters of the model alone")
    if not named:
        refuse("model", "no trainable parameter", "one that the optimiser moves")
    for name, p in named.items():
        _check_tensor(name, p)
    if len(dtypes := {p.dtype for p in named.values()}) > 1:
        got = ", ".join(sorted(str(one).removeprefix("torch.") for one in dtypes))
        refuse("model", f"parameters of {got}", "trainable parameters of one dtype")
    return named


def _check_tensor(name: str, p: torch.Tensor) -> None:
    if p.device.type != "cpu":
        refuse(f"model parameter {name!r}", f"a tensor on {p.device}", "a model on the CPU, model.cpu()")
    if p.dtype not in (torch.float32, torch.float64):
        got = str(p.dtype).removeprefix("torch.")
        refuse(f"model parameter {name!r}", got, "float32 or float64, model.float()")
    if p.ndim == 0:
        refuse(f"model parameter {name!r}", "a number without axes", "a parameter of shape (1,)")


def adam_of(optimizer: Any, named: Mapping[str, torch.Tensor]) -> dict[str, Adam]:
    """Return the present settings of each parameter's group; weight decay of Adam is L2 decay, as in PyTorch."""
    _check_groups(optimizer)
    decoupled = isinstance(optimizer, torch.optim.AdamW)
    settings: dict[int, Adam] = {}
    for group in optimizer.param_groups:
        own = group.get("decoupled_weight_decay", decoupled) or decoupled
        decay = {"weight_decay" if own else "l2": float(group["weight_decay"])}
        betas = (float(group["betas"][0]), float(group["betas"][1]))
        adam = Adam(float(group["lr"]), betas, float(group["eps"]), **decay)
        settings |= {id(p): adam for p in group["params"]}
    return {name: settings[id(p)] for name, p in named.items()}


def hyperparameters_of(
    backend: Backend, optimizer: Any, named: Mapping[str, torch.Tensor]
) -> tuple[Hyperparameters, StepNumber]:
    """Return the settings of the step that is about to be taken, and its number.

    The number is a parameter's own: PyTorch does not count steps in which it has no gradient. The largest is returned.
    """
    adam, scalars, most = {}, {}, StepNumber(1)
    for name, settings in adam_of(optimizer, named).items():
        state = optimizer.state.get(named[name], {})
        t = StepNumber(int(state["step"]) + 1 if "step" in state else 1)
        adam[name] = held(settings, backend.dtype)
        scalars[name] = scalars_of(adam[name], t)
        most = max(most, t)
    return Hyperparameters(adam, scalars), most


def state_of(backend: Backend, optimizer: Any, named: Mapping[str, torch.Tensor], t: StepNumber) -> State:
    """Return θ, m and v before the step, in PyTorch's memory where it is contiguous; moments are 0 before the first."""
    theta = {name: backend.real(p.detach().numpy()) for name, p in named.items()}
    m, v = (_moments(backend, optimizer, named, key) for key in ("exp_avg", "exp_avg_sq"))
    return State(theta, m, v, t)


def _moments(backend: Backend, optimizer: Any, named: Mapping[str, torch.Tensor], key: str) -> dict[str, Any]:
    found = {}
    for name, p in named.items():
        state = optimizer.state.get(p, {})
        found[name] = backend.real(state[key].numpy()) if key in state else np.zeros(tuple(p.shape), backend.dtype)
    return found


def precision_of(optimizer: Any) -> float:
    """Return 2 u of the coarsest setting that is a tensor: PyTorch computes with it in its own dtype. 0 if none is."""
    settings = [value for group in optimizer.param_groups for value in (group["lr"], *group["betas"])]
    return max((torch.finfo(one.dtype).eps for one in settings if isinstance(one, torch.Tensor)), default=0.0)


def unknown_gradients(optimizer: Any, known: Iterable[torch.Tensor]) -> int:
    """Return the number of parameters with a gradient that are not among those `known`."""
    ids = {id(p) for p in known}
    return sum(p.grad is not None and id(p) not in ids for group in optimizer.param_groups for p in group["params"])
