"""The optimiser: its settings, and its state between two steps."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NewType, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from adamshap.reference.contract.arrays import Params, as_array, named_arrays
from adamshap.reference.contract.checks import not_negative, of_kind, positive_integer, real_number, shown
from adamshap.reference.contract.refusal import refuse

__all__ = [
    "Adam",
    "AdamState",
    "Clipped",
    "CompletedSteps",
    "Optimiser",
    "StepNumber",
    "adam_in",
    "check_names",
    "optimiser_in",
    "optimiser_of",
    "refuse_zero_denominator",
]

CompletedSteps = NewType("CompletedSteps", int)
"""Number of completed steps: 0 before the first."""

StepNumber = NewType("StepNumber", int)
"""t, the number of a step: 1 is the first, and step t is taken after t − 1 completed steps."""


@runtime_checkable
class Optimiser(Protocol):
    """The interface that a step needs of its optimiser: Adam's settings for each parameter, which may change with t.

    Implementations are frozen dataclasses, so that the settings of a run can be recorded and compared.
    """

    def at(self, t: StepNumber, name: str) -> "Adam":
        """Return the settings of step `t` for the parameter `name`."""


@dataclass(frozen=True)
class Adam:
    """Adam's settings; the defaults are PyTorch's.

    Parameters
    ----------
    lr : float
        η, at least 0.
    betas : tuple of two floats
        (β1, β2), each in [0, 1).
    eps : float
        ε, added to the root (Kingma & Ba, PyTorch), at least 0.
    eps_root : float
        ε_root, added inside the root, to v̂ (optax), at least 0.
    weight_decay : float
        λ, decoupled as in AdamW: ``θ`` loses ``η λ θ``; at least 0.
    l2 : float
        λ₂, decay in the gradient: ``λ₂ θ`` is added to it, as by ``weight_decay`` of PyTorch's ``Adam``; at least 0,
        and 0 with a `weight_decay`.

    Notes
    -----
    A step uses these numbers in its dtype. An ε or ε_root below the dtype's smallest normal number, 1.2e-38 in
    float32, counts as 0; a number beyond the dtype's largest is refused.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_root: float = 0.0
    weight_decay: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "eps_root", "weight_decay", "l2"):
            object.__setattr__(self, name, not_negative(f"Adam.{name}", getattr(self, name)))
        if self.l2 and self.weight_decay:
            refuse("Adam.l2", f"{self.l2} with weight_decay {self.weight_decay}", "one of the two decays, the other 0")
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            refuse("Adam.betas", shown(self.betas), "two numbers (β1, β2) in [0, 1)", TypeError)
        betas = []
        for i, beta in enumerate(self.betas):
            number = real_number(f"Adam.betas[{i}]", beta, "a number in [0, 1)")
            if not 0 <= number < 1:
                refuse(f"Adam.betas[{i}]", number, "a number in [0, 1)")
            betas.append(number)
        object.__setattr__(self, "betas", tuple(betas))

    def at(self, t: StepNumber, name: str) -> "Adam":
        """Return the settings of step `t` for the parameter `name`, the same for all.

        Parameters
        ----------
        t : int
            Number of the step, from 1.
        name : str
            Name of the parameter.

        Returns
        -------
        Adam
            Itself.
        """
        return self


def adam_in(adam: Adam, dtype: npt.DTypeLike) -> Adam:
    """Return Adam's settings for `dtype`: ε and ε_root below its smallest normal number become 0.

    Subnormal numbers have few digits, and processors and libraries may flush them to 0. The other settings are kept:
    nothing is divided by them, so a tiny one has a tiny effect.
    """
    limits, name = np.finfo(dtype), np.dtype(dtype).name
    most, least = float(limits.max), float(limits.smallest_normal)
    for field in ("lr", "eps", "eps_root", "weight_decay", "l2"):
        if getattr(adam, field) > most:
            refuse(f"Adam.{field}", getattr(adam, field), f"at most {most:.2g}, the largest number of {name}")
    if adam.lr * adam.weight_decay > most:
        got = f"{adam.weight_decay} with lr {adam.lr}"
        refuse("Adam.weight_decay", got, f"a product with lr of at most {most:.2g}, the largest number of {name}")
    eps, eps_root = (value if value >= least else 0.0 for value in (adam.eps, adam.eps_root))
    return replace(adam, eps=eps, eps_root=eps_root)


@dataclass(frozen=True)
class Clipped:
    """An optimiser whose gradient is clipped by its norm over all parameters, as by PyTorch's ``clip_grad_norm_``.

    Parameters
    ----------
    adam : Adam
        The settings, or another `Optimiser`.
    norm : float
        C, positive: the batch gradient is multiplied by c = min(1, C/(‖g‖ + ε_c)).
    eps : float
        ε_c, at least 0; PyTorch's by default, and 0 for optax's.
    """

    adam: Optimiser
    norm: float
    eps: float = 1e-6

    def __post_init__(self) -> None:
        refuse_clipped("Clipped.adam", optimiser_of("Clipped.adam", self.adam, StepNumber(1), ()))
        object.__setattr__(self, "norm", not_negative("Clipped.norm", self.norm))
        if self.norm == 0:
            refuse("Clipped.norm", self.norm, "a positive number")
        object.__setattr__(self, "eps", not_negative("Clipped.eps", self.eps))

    def at(self, t: StepNumber, name: str) -> Adam:
        """Return the settings of step `t` for the parameter `name`.

        Parameters
        ----------
        t : int
            Number of the step, from 1.
        name : str
            Name of the parameter.

        Returns
        -------
        Adam
            That of the optimiser whose gradient is clipped.
        """
        return self.adam.at(t, name)

    def check_names(self, field: str, names: Iterable[str]) -> None:
        """Refuse an optimiser that does not fit the parameters `names`.

        Parameters
        ----------
        field : str
            Where the optimiser was given.
        names : iterable of str
            Names of the parameters.
        """
        check_names(f"{field}.adam", self.adam, names)


def refuse_clipped(field: str, optimiser: Optimiser) -> None:
    """Refuse a `Clipped` inside another description: its norm is that of the whole gradient."""
    if isinstance(optimiser, Clipped):
        refuse(field, "a Clipped", "an optimiser without it: Clipped is the outermost, Clipped(Schedule(…), …)")


def check_names(field: str, optimiser: object, names: Iterable[str]) -> None:
    """Refuse an optimiser that has a check of its parameters' names, and does not fit them."""
    check = getattr(optimiser, "check_names", None)
    if check is not None:
        check(field, names)


@dataclass(frozen=True)
class _InDtype:
    """The settings of `optimiser` for `dtype`."""

    optimiser: Optimiser
    dtype: np.dtype[Any]

    def at(self, t: StepNumber, name: str) -> Adam:
        return adam_in(self.optimiser.at(t, name), self.dtype)


def optimiser_in(optimiser: Optimiser, dtype: npt.DTypeLike) -> Optimiser:
    """Return an optimiser with the settings of `optimiser` for `dtype`: `adam_in` of each."""
    if isinstance(optimiser, Adam):
        return adam_in(optimiser, dtype)
    if isinstance(optimiser, Clipped):
        return replace(optimiser, adam=optimiser_in(optimiser.adam, dtype))
    if isinstance(optimiser, _InDtype) and optimiser.dtype == np.dtype(dtype):
        return optimiser
    return _InDtype(optimiser, np.dtype(dtype))


def optimiser_of(field: str, value: object, t: StepNumber, names: Iterable[str]) -> Optimiser:
    """Return `value` if it is an optimiser with settings for each of the parameters `names` at step `t`."""
    if isinstance(value, type) or not isinstance(value, Optimiser):  # a class has the names of its instances
        refuse(field, type(value).__name__, "an Adam", TypeError)
    names = list(names)
    if names:
        check_names(field, value, names)
    for name in names:
        of_kind(f"{field}.at({t}, {name!r})", value.at(t, name), Adam)
    return value


def refuse_zero_denominator(count: int, where: str) -> None:
    """Refuse Adam's division by 0 if `count`, the number of such coordinates, is positive; `where` names the zeros."""
    if count:
        refuse(
            "Adam.eps",
            f"0, or less than the dtype holds, with a denominator of 0 at {count} coordinates where {where}",
            "eps > 0, in float32 at least 1.2e-38",
        )


@dataclass(frozen=True, eq=False)
class AdamState:
    """Adam's state between two steps.

    Parameters
    ----------
    step : int
        Completed steps; the next step has t = step + 1.
    m, v : dict of arrays
        First and second moment, without bias correction (PyTorch's ``exp_avg`` and ``exp_avg_sq``), one array per
        parameter, of its shape; ``v`` is non-negative.
    """

    step: CompletedSteps
    m: Params
    v: Params

    if TYPE_CHECKING:  # callers may pass a plain int; the attribute is `CompletedSteps`

        def __init__(self, step: int, m: Params, v: Params) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", positive_integer("AdamState.step", self.step, minimum=0))
        if not isinstance(self.m, Mapping):
            refuse("AdamState.m", type(self.m).__name__, "a mapping from parameter name to array", TypeError)
        shapes = {name: np.shape(as_array(f"AdamState.m[{name!r}]", array)) for name, array in self.m.items()}
        object.__setattr__(self, "m", named_arrays("AdamState.m", self.m, shapes))
        object.__setattr__(self, "v", named_arrays("AdamState.v", self.v, shapes))
        for name, v in self.v.items():
            if (v < 0).any():
                refuse(f"AdamState.v[{name!r}]", f"a value of {v.min()}", "no negative value")

    @property
    def next_step(self) -> StepNumber:
        """Number of the next step, t."""
        return StepNumber(self.step + 1)

    def after(self, m: Params, v: Params) -> "AdamState":
        """Return the state after the next step.

        Parameters
        ----------
        m, v : dict of arrays
            The moments after that step.

        Returns
        -------
        AdamState
            The state with one more completed step.
        """
        return AdamState(CompletedSteps(self.next_step), m, v)

    @classmethod
    def unchecked(cls, step: CompletedSteps, m: Params, v: Params) -> "AdamState":
        """Return a state without checks, for a run that diverged: its moments may be non-finite.

        Parameters
        ----------
        step : int
            Completed steps.
        m, v : dict of arrays
            Moments, neither copied nor checked.

        Returns
        -------
        AdamState
            The state with these arrays.
        """
        state = object.__new__(cls)
        for name, value in (("step", step), ("m", m), ("v", v)):
            object.__setattr__(state, name, value)
        return state

    @classmethod
    def zeros(cls, params: Mapping[str, Any]) -> "AdamState":
        """Return the state before the first step, for parameters like `params`.

        Parameters
        ----------
        params : dict of arrays
            Arrays with the names, shapes and dtypes of the moments.

        Returns
        -------
        AdamState
            Step 0, with moments of 0.
        """
        if not isinstance(params, Mapping):
            refuse("params", type(params).__name__, "a mapping from parameter name to array", TypeError)
        arrays = {name: as_array(f"params[{name!r}]", p) for name, p in params.items()}
        return cls(CompletedSteps(0), *({name: np.zeros_like(p) for name, p in arrays.items()} for _ in range(2)))
