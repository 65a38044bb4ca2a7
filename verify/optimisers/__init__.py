"""Optimisers beyond one set of Adam's settings: their features, their parts, and changes to all settings.

An optimiser of the contract is one `Adam` or `AdamGroups`, in a `Schedule` or not, in a `Clipped` or not. A candidate
declares each feature that it takes by one word in ``SUPPORTS``.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from adamshap.reference.contract import Adam, AdamGroups, Clipped, Optimiser, Schedule, Step, StepNumber, refuse

__all__ = [
    "FEATURES",
    "Parts",
    "features_of",
    "members_of",
    "parts_of",
    "rescaled",
    "settings_by_name",
    "with_settings",
]

FEATURES = ("groups", "schedule", "clip", "l2")
"""Features of optimisers that a candidate declares: `AdamGroups`, `Schedule`, `Clipped`, and ``l2`` of `Adam`."""


@dataclass(frozen=True)
class Parts:
    """The parts of an optimiser.

    Parameters
    ----------
    adam : Adam or AdamGroups
        The settings.
    schedule : Schedule, optional
        Its own ``adam`` is not used.
    clip : Clipped, optional
        Its own ``adam`` is not used.
    """

    adam: Adam | AdamGroups
    schedule: Schedule | None = None
    clip: Clipped | None = None

    def joined(self) -> Optimiser:
        """Return the optimiser with these parts."""
        whole: Optimiser = self.adam
        if self.schedule is not None:
            whole = replace(self.schedule, adam=whole)
        return whole if self.clip is None else replace(self.clip, adam=whole)

    @property
    def all_settings(self) -> tuple[Adam, ...]:
        """The settings of every group, and of the parameters in none."""
        if isinstance(self.adam, Adam):
            return (self.adam,)
        default = () if self.adam.default is None else (self.adam.default,)
        return (*(adam for _, adam in self.adam.groups), *default)


def parts_of(optimiser: Optimiser) -> Parts:
    """Return the parts of an optimiser.

    Raises
    ------
    TypeError
        It has other parts than those of the contract.
    """
    clip = optimiser if isinstance(optimiser, Clipped) else None
    inner = optimiser if clip is None else clip.adam
    schedule = inner if isinstance(inner, Schedule) else None
    inner = inner if schedule is None else schedule.adam
    if not isinstance(inner, Adam | AdamGroups):
        refuse("optimiser", type(inner).__name__, "Adam or AdamGroups, in a Schedule or a Clipped or none", TypeError)
    return Parts(inner, schedule, clip)


def features_of(optimiser: Optimiser) -> frozenset[str]:
    """Return those of `FEATURES` that an optimiser has."""
    parts = parts_of(optimiser)
    present = (
        isinstance(parts.adam, AdamGroups),
        parts.schedule is not None,
        parts.clip is not None,
        any(adam.l2 for adam in parts.all_settings),
    )
    return frozenset(feature for feature, has in zip(FEATURES, present, strict=True) if has)


def members_of(groups: AdamGroups, names: Iterable[str]) -> list[list[str]]:
    """Return the names of the parameters in each group."""
    names = list(names)
    return [
        [name for name in names if any(name == one or fnmatchcase(name, one) for one in patterns)]
        for patterns, _ in groups.groups
    ]


def settings_by_name(step: Step) -> dict[str, Adam]:
    """Return the settings of the step for each parameter."""
    return {name: step.settings(name) for name in step.params}


@dataclass(frozen=True)
class _Changed:
    """An optimiser of another kind whose settings for each parameter are changed."""

    optimiser: Optimiser
    change: Callable[[Adam], Adam]

    def at(self, t: StepNumber, name: str) -> Adam:
        return self.change(self.optimiser.at(t, name))


def with_settings(optimiser: Optimiser, change: Callable[[Adam], Adam]) -> Optimiser:
    """Return the optimiser with all settings changed; groups, schedule and clipping stay."""
    if isinstance(optimiser, Adam):
        return change(optimiser)
    if isinstance(optimiser, Clipped | Schedule):
        return replace(optimiser, adam=with_settings(optimiser.adam, change))
    if isinstance(optimiser, AdamGroups):
        groups = tuple((names, change(adam)) for names, adam in optimiser.groups)
        return AdamGroups(groups, None if optimiser.default is None else change(optimiser.default))
    return _Changed(optimiser, change)


def rescaled(optimiser: Optimiser, factor: float) -> Optimiser:
    """Return the optimiser for a loss that is `factor` times as large, with m and √v as well: the same step.

    ε, √ε_root, λ₂, the largest norm and its ε are sizes of gradients.
    """

    def change(adam: Adam) -> Adam:
        return replace(adam, eps=factor * adam.eps, eps_root=factor**2 * adam.eps_root, l2=factor * adam.l2)

    changed = with_settings(optimiser, change)
    if isinstance(changed, Clipped):
        return replace(changed, norm=factor * changed.norm, eps=factor * changed.eps)
    return changed
