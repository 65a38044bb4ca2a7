"""A PyTorch optimiser's settings and state, as the engine's: read anew before each step, as schedules change them."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from adamshap.gpu.backend import Backend
from adamshap.gpu.hyperparameters import Hyperparameters, held, scalars_of
from adamshap.gpu.state import State
from adamshap.reference.contract import Adam, AdamState, Array, CompletedSteps, StepNumber, refuse
from adamshap.torch.memory import array_of

__all__ = [
    "adam_of",
    "check_optimizer",
    "hook_steps",
    "hyperparameters_of",
    "is_skipped",
    "on_host",
    "precision_of",
    "refuse_unknown_gradients",
    "run_closures",
    "scale_of",
    "state_of",
    "trainable",
]

Hook = Callable[[Any, Any, Any], None]
"""Function of an optimiser and of the positional and keyword arguments of its step."""

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
    if isinstance(p, torch.nn.parameter.UninitializedParameter):
        refuse(
            f"model parameter {name!r}", "one without a shape, of a lazy module", "a forward pass of the model before"
        )
    if p.dtype not in (torch.float32, torch.float64):
        got = str(p.dtype).removeprefix("torch.")
        needs = "float32 or float64: model.float(), and torch.autocast for passes in a low precision"
        refuse(f"model parameter {name!r}", got, needs)
    if p.ndim == 0:
        needs = "one of shape (1,), which broadcasts alike, or a frozen one (requires_grad_(False))"
        refuse(f"model parameter {name!r}", "a parameter without axes, shape ()", needs)


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
    if missing := [name for name, p in named.items() if id(p) not in settings]:
        got = f"no parameter {missing[0]!r} any more, which it had when the attribution began"
        refuse("optimizer", got, "a new Attribution after a change of the optimiser's parameters")
    return {name: settings[id(p)] for name, p in named.items()}


def hyperparameters_of(
    backend: Backend, optimizer: Any, named: Mapping[str, torch.Tensor]
) -> tuple[Hyperparameters, StepNumber]:
    """Return the settings of the step that is about to be taken, and its number.

    The number is a parameter's own: PyTorch does not count steps in which it has no gradient. The largest is returned.
    """
    adam, scalars, most, completed = {}, {}, StepNumber(1), _completed(optimizer, named)
    for name, settings in adam_of(optimizer, named).items():
        t = StepNumber(completed.get(name, 0) + 1)
        adam[name] = held(settings, backend.dtype)
        scalars[name] = scalars_of(adam[name], t)
        most = max(most, t)
    return Hyperparameters(adam, scalars), most


def _completed(optimizer: Any, named: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return the number of steps of each parameter that has taken one; a card is waited for once."""
    steps = {name: optimizer.state[p]["step"] for name, p in named.items() if "step" in optimizer.state.get(p, {})}
    if all(isinstance(one, torch.Tensor) for one in steps.values()) and len(steps) > 0:
        return dict(zip(steps, map(int, torch.stack(list(steps.values())).tolist()), strict=True))
    return {name: int(one) for name, one in steps.items()}


def state_of(backend: Backend, optimizer: Any, named: Mapping[str, torch.Tensor], t: StepNumber) -> State:
    """Return θ, m and v before the step, in PyTorch's memory where it is contiguous; moments are 0 before the first."""
    theta = {name: backend.real(array_of(p)) for name, p in named.items()}
    m, v = (_moments(backend, optimizer, named, key) for key in ("exp_avg", "exp_avg_sq"))
    return State(theta, m, v, t)


def on_host(backend: Backend, optimizer: Any, named: Mapping[str, torch.Tensor]) -> tuple[dict[str, Array], AdamState]:
    """Return copies of the parameters and of the optimiser's state between two steps, on the host."""
    _, t = hyperparameters_of(backend, optimizer, named)
    state = state_of(backend, optimizer, named, t)
    theta, m, v = (
        {name: np.array(backend.host(array)) for name, array in one.items()} for one in (state.theta, state.m, state.v)
    )
    return theta, AdamState.unchecked(CompletedSteps(t - 1), m, v)


def _moments(backend: Backend, optimizer: Any, named: Mapping[str, torch.Tensor], key: str) -> dict[str, Any]:
    found = {}
    for name, p in named.items():
        state = optimizer.state.get(p, {})
        begun = key in state
        found[name] = backend.real(array_of(state[key])) if begun else backend.xp.zeros(tuple(p.shape), backend.dtype)
    return found


def precision_of(optimizer: Any) -> float:
    """Return 2 u of the coarsest setting that is a tensor: PyTorch computes with it in its own dtype. 0 if none is.

    With ``capturable`` 1 − βᵗ is computed in float32: of a number near 1, so that u is divided by 1 − β, and by 16 of
    the many roundings that the check allows anyway.
    """
    settings = [value for group in optimizer.param_groups for value in (group["lr"], *group["betas"])]
    found = [torch.finfo(one.dtype).eps for one in settings if isinstance(one, torch.Tensor)]
    eps = torch.finfo(torch.float32).eps
    betas = [float(beta) for group in optimizer.param_groups if group.get("capturable") for beta in group["betas"]]
    return max([*found, *(eps * max(1.0, 1 / (16 * (1 - beta))) for beta in betas)], default=0.0)


def scale_of(optimizer: Any) -> torch.Tensor | None:
    """Return the scale of the gradients that a fused optimiser divides them by itself, as a `GradScaler` tells it."""
    scale: torch.Tensor | None = getattr(optimizer, "grad_scale", None)
    return scale


def is_skipped(optimizer: Any) -> bool:
    """Whether a fused optimiser is about to leave everything as it is, as a `GradScaler` found no finite gradient."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def refuse_unknown_gradients(optimizer: Any, known: Iterable[torch.Tensor]) -> None:
    """Refuse gradients of parameters that are not among those `known`."""
    ids = {id(p) for p in known}
    if count := sum(p.grad is not None and id(p) not in ids for g in optimizer.param_groups for p in g["params"]):
        got = f"{count} parameters with a gradient that were frozen, or not its own, when the attribution began"
        refuse("optimizer", got, "a new Attribution after a change of requires_grad or of the parameters")


def hook_steps(optimizer: Any, before: Hook, after: Hook) -> list[Any]:
    """Call two methods before and after each step, without keeping their object alive.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    before, after : bound methods
        Called with the optimiser and with the positional and keyword arguments of its step.

    Returns
    -------
    list of handles
        Each has ``remove``.
    """
    return [optimizer.register_step_pre_hook(_weak(before)), optimizer.register_step_post_hook(_weak(after))]


def run_closures(optimizer: Any) -> Any:
    """Run the closure of ``step(closure)`` before the step, which is then taken without one.

    For a framework whose forward and backward pass are the closure; hooks that are registered later see its gradients.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer

    Returns
    -------
    handle
        It has ``remove``.
    """

    def run(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None:
            with torch.enable_grad():
                closure()
        return args[:1], {}

    return optimizer.register_step_pre_hook(run)


def _weak(method: Hook) -> Hook:
    held = weakref.WeakMethod(method)

    @torch.compiler.disable  # optimizer.step may be compiled
    def hook(optimizer: Any, args: Any, kwargs: Any) -> None:
        living = held()
        if living is not None:
            living(optimizer, args, kwargs)

    return hook
