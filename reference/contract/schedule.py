"""Settings by groups of parameters, and a learning rate that changes with the step."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, get_args

from adamshap.reference.contract.checks import not_negative, of_kind, positive_integer, shown
from adamshap.reference.contract.optimiser import (
    Adam,
    Optimiser,
    StepNumber,
    check_names,
    optimiser_of,
    refuse_clipped,
)
from adamshap.reference.contract.refusal import refuse

__all__ = ["SHAPES", "AdamGroups", "Schedule", "Shape"]

Shape = Literal["constant", "linear", "cosine"]
SHAPES: tuple[str, ...] = get_args(Shape)


@dataclass(frozen=True)
class AdamGroups:
    """One `Adam` for each group of parameters, as with PyTorch's parameter groups.

    Parameters
    ----------
    groups : tuple of (names, Adam)
        ``names`` is a name of a parameter, a pattern such as ``"*.bias"``, or a tuple of them; ``*`` and ``?`` match
        any characters and one. ``"*bias"`` matches every bias; ``"*.bias"`` leaves out attention's ``in_proj_bias``. A
        parameter may be in one group only, and every name and pattern matches a parameter.
    default : Adam, optional
        The settings of the parameters in no group; without it, every parameter has to be in one.

    Examples
    --------
    >>> groups = AdamGroups((("*.bias", Adam(lr=0.01)),), default=Adam(lr=0.01, weight_decay=0.1))
    >>> groups.at(1, "0.weight").weight_decay
    0.1
    """

    groups: tuple[tuple[tuple[str, ...], Adam], ...]
    default: Adam | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.groups, tuple | list) or not self.groups:
            refuse("AdamGroups.groups", shown(self.groups), "a sequence of pairs (names, Adam)", TypeError)
        object.__setattr__(self, "groups", tuple(_group(i, group) for i, group in enumerate(self.groups)))
        if self.default is not None:
            of_kind("AdamGroups.default", self.default, Adam)

    def at(self, t: StepNumber, name: str) -> Adam:
        """Return the settings of the group of the parameter `name`, the same at every step.

        Parameters
        ----------
        t : int
            Number of the step, from 1.
        name : str
            Name of the parameter.

        Returns
        -------
        Adam
            The group's, or the default.
        """
        found = [i for i, (patterns, _) in enumerate(self.groups) if any(_fits(name, one) for one in patterns)]
        if len(found) > 1:
            refuse("AdamGroups.groups", f"the parameter {name!r} in groups {found}", "each parameter in one group")
        if found:
            return self.groups[found[0]][1]
        if self.default is None:
            refuse("AdamGroups.groups", f"the parameter {name!r} in no group", "a group or a default for it")
        return self.default

    def check_names(self, field: str, names: Iterable[str]) -> None:
        """Refuse a name or pattern that matches none of the parameters `names`.

        Parameters
        ----------
        field : str
            Where the optimiser was given.
        names : iterable of str
            Names of the parameters.
        """
        names = list(names)
        for i, (patterns, _) in enumerate(self.groups):
            for pattern in patterns:
                if not any(_fits(name, pattern) for name in names):
                    refuse(
                        f"{field}.groups[{i}]", repr(pattern), f"names or patterns of parameters: {', '.join(names)}"
                    )


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _group(i: int, group: object) -> tuple[tuple[str, ...], Adam]:
    field = f"AdamGroups.groups[{i}]"
    if not isinstance(group, tuple | list) or len(group) != 2:
        refuse(field, shown(group), "a pair (names, Adam)", TypeError)
    names, adam = group
    patterns = (names,) if isinstance(names, str) else names
    if not isinstance(patterns, tuple | list) or not patterns or not all(isinstance(one, str) for one in patterns):
        refuse(f"{field}[0]", shown(names), "a name or pattern, or a tuple of them", TypeError)
    return tuple(patterns), of_kind(f"{field}[1]", adam, Adam)


@dataclass(frozen=True)
class Schedule:
    """An optimiser whose learning rates are multiplied by a factor that changes with the step, as by ``LambdaLR``.

    Parameters
    ----------
    adam : Adam
        Settings with the largest learning rates, or another `Optimiser`, such as `AdamGroups`.
    shape : {"constant", "linear", "cosine"} or tuple of floats
        The factor after the warm-up: 1, or falling from 1 to `floor` along a line or half a cosine; or the factor of
        each step.
    warmup : int
        Number of steps before; the factor of step t is (t − 1)/warmup, as in Hugging Face's schedules.
    steps : int, optional
        Number of steps, with the warm-up, in which "linear" and "cosine" fall to `floor`, where they stay.
    floor : float
        The factor after them, from 0 to 1.
    """

    adam: Optimiser
    shape: Shape | tuple[float, ...] = "constant"
    warmup: int = 0
    steps: int | None = None
    floor: float = 0.0

    def __post_init__(self) -> None:
        refuse_clipped("Schedule.adam", optimiser_of("Schedule.adam", self.adam, StepNumber(1), ()))
        object.__setattr__(self, "warmup", positive_integer("Schedule.warmup", self.warmup, minimum=0))
        object.__setattr__(self, "floor", not_negative("Schedule.floor", self.floor))
        if self.floor > 1:
            refuse("Schedule.floor", self.floor, "a number from 0 to 1")
        if self.steps is not None:
            object.__setattr__(self, "steps", positive_integer("Schedule.steps", self.steps))
        if isinstance(self.shape, tuple | list) and self.shape:
            factors = tuple(not_negative(f"Schedule.shape[{i}]", factor) for i, factor in enumerate(self.shape))
            object.__setattr__(self, "shape", factors)
        elif not isinstance(self.shape, str) or self.shape not in SHAPES:
            needed = "one of " + ", ".join(SHAPES) + ", or a factor for each step"
            refuse(
                "Schedule.shape", shown(self.shape), needed, ValueError if isinstance(self.shape, str) else TypeError
            )
        falls = self.shape in ("linear", "cosine")
        if falls and (self.steps is None or self.steps <= self.warmup):
            refuse("Schedule.steps", shown(self.steps), f"more steps than warmup, {self.warmup}, to fall in")
        for name, default in {"steps": None, "floor": 0.0}.items():
            if not falls and getattr(self, name) != default:
                refuse(f"Schedule.{name}", getattr(self, name), f"{default} for this shape, which does not fall")
        if not isinstance(self.shape, str) and self.warmup:
            refuse("Schedule.warmup", self.warmup, "0 with a factor for each step")

    def factor(self, t: StepNumber) -> float:
        """Return the factor of the learning rates at step `t`.

        Parameters
        ----------
        t : int
            Number of the step, from 1.

        Returns
        -------
        float
            From 0 to 1, or the given factor.
        """
        if isinstance(self.shape, tuple):
            if t > len(self.shape):
                refuse("Schedule.shape", f"{len(self.shape)} factors for step {t}", "a factor for each step of the run")
            return self.shape[t - 1]
        completed = t - 1
        if completed < self.warmup:
            return completed / self.warmup
        if self.shape == "constant" or self.steps is None:
            return 1.0
        part = min(1.0, (completed - self.warmup) / (self.steps - self.warmup))
        left = 1 - part if self.shape == "linear" else (1 + math.cos(math.pi * part)) / 2
        return self.floor + (1 - self.floor) * left

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
            Those of `adam`, its learning rate times the step's factor.
        """
        adam = self.adam.at(t, name)
        return replace(adam, lr=adam.lr * self.factor(t))

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
