"""Optimisers as plain JSON types, and back.

Where all parameters have one set of settings and nothing else, a case has ``"adam"``. Every other case has
``"optimizer"`` in its place, with all four names::

    {"adam": {"lr": 0.001, "betas": [0.9, 0.999], "eps": 1e-08, "eps_root": 0.0, "weight_decay": 0.01, "l2": 0.0},
     "groups": [{"params": ["0.bias", "1.bias"], "adam": {...}}],
     "schedule": {"shape": "cosine", "warmup": 10, "steps": 100, "floor": 0.1},
     "clip": {"norm": 1.0, "eps": 1e-06}}

``"adam"`` are the settings of the parameters in no group, null if all are in one. Groups list their parameters by name.
``"schedule"`` is null, or multiplies every ``lr`` by its factor for step t = ``state.step`` + 1; its ``shape`` is a
word or a list with the factor of each step. ``"clip"`` is null, or scales the batch gradient by
min(1, norm/(‖g‖ + eps)). docs/method.md 9 has the formulas.
"""

from collections.abc import Iterable
from typing import Any

from adamshap.reference.contract import Adam, AdamGroups, Clipped, Optimiser, Schedule, refuse
from adamshap.verify.json_values import Json, brief, object_with
from adamshap.verify.optimisers import Parts, members_of, parts_of

__all__ = ["optimiser_from_json", "optimiser_to_json"]

PLAIN = ("lr", "betas", "eps", "eps_root", "weight_decay")
"""Names in ``"adam"``."""

SETTINGS = (*PLAIN, "l2")
"""Names in the settings of an ``"optimizer"``."""

SCHEDULE = ("shape", "warmup", "steps", "floor")
CLIP = ("norm", "eps")


def optimiser_to_json(optimiser: Optimiser, names: Iterable[str]) -> Json:
    """Return a case's entry for an optimiser: ``{"adam": …}`` or ``{"optimizer": …}``.

    Parameters
    ----------
    optimiser : Optimiser
    names : iterable of str
        Names of the parameters, by which groups are written in place of patterns.
    """
    if isinstance(optimiser, Adam) and not optimiser.l2:
        return {"adam": _named(optimiser, PLAIN)}
    parts, names = parts_of(optimiser), list(names)
    default: Adam | None
    default, groups = (parts.adam, []) if isinstance(parts.adam, Adam) else _groups_to_json(parts.adam, names)
    return {
        "optimizer": {
            "adam": None if default is None else _named(default, SETTINGS),
            "groups": groups,
            "schedule": None if parts.schedule is None else _named(parts.schedule, SCHEDULE),
            "clip": None if parts.clip is None else _named(parts.clip, CLIP),
        }
    }


def _groups_to_json(groups: AdamGroups, names: list[str]) -> tuple[Adam | None, list[Json]]:
    """Return the settings of the parameters in no group, and the groups."""
    members = members_of(groups, names)
    written = [
        {"params": own, "adam": _named(adam, SETTINGS)} for own, (_, adam) in zip(members, groups.groups, strict=True)
    ]
    return groups.default, written


def optimiser_from_json(given: Json) -> Optimiser:
    """Return the optimiser of a case; refuse anything else."""
    if "optimizer" not in given:
        return Adam(**object_with("adam", given["adam"], PLAIN))
    value = object_with("optimizer", given["optimizer"], ("adam", "groups", "schedule", "clip"))
    default = _settings("optimizer.adam", value["adam"])
    if not isinstance(value["groups"], list):
        refuse("optimizer.groups", brief(value["groups"]), "a list", TypeError)
    groups = tuple(_group(f"optimizer.groups[{i}]", group) for i, group in enumerate(value["groups"]))
    if groups:
        adam: Adam | AdamGroups = AdamGroups(groups, default)
    elif default is None:
        refuse("optimizer.adam", "null without groups", "settings")
    else:
        adam = default
    schedule, clip = value["schedule"], value["clip"]
    return Parts(
        adam,
        None if schedule is None else Schedule(Adam(), **object_with("optimizer.schedule", schedule, SCHEDULE)),
        None if clip is None else Clipped(Adam(), **object_with("optimizer.clip", clip, CLIP)),
    ).joined()


def _named(part: Any, names: tuple[str, ...]) -> Json:
    return {name: list(value) if isinstance(value := getattr(part, name), tuple) else value for name in names}


def _settings(field: str, value: Any) -> Adam | None:
    return None if value is None else Adam(**object_with(field, value, SETTINGS))


def _group(field: str, value: Any) -> tuple[tuple[str, ...], Adam]:
    given = object_with(field, value, ("params", "adam"))
    if not isinstance(given["params"], list) or not all(isinstance(name, str) for name in given["params"]):
        refuse(f"{field}.params", brief(given["params"]), "a list of names", TypeError)
    return tuple(given["params"]), Adam(**object_with(f"{field}.adam", given["adam"], SETTINGS))
