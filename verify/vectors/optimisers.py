"""Random optimisers with groups, a schedule, clipping or L2 decay, for the test vectors."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Literal

from adamshap.reference.contract import Adam, AdamGroups, Clipped, Optimiser, Schedule, Step
from adamshap.verify.steps import adam_of
from adamshap.verify.vectors.numbers import integer, one, short

__all__ = ["OPTIMISERS", "with_optimiser"]


def _groups(draw: Random, adam: Adam, step: Step) -> AdamGroups:
    """Return one group of some parameters, and the given settings for the others, in which every setting differs."""
    names = list(step.params)
    own = tuple(name for name in names[1:] if draw.random() < 0.5) or (names[-1],)
    other = replace(
        adam,
        lr=short(adam.lr * one(draw, (3.0, 0.2))),
        betas=(one(draw, (0.8, 0.95)), one(draw, (0.99, 0.95))),
        eps=short(100 * adam.eps),
        weight_decay=0.0 if adam.l2 else short(adam.weight_decay + 0.1),
        l2=short(3 * adam.l2),
    )
    return AdamGroups(((own, other),), adam if len(own) < len(names) else None)


def _schedule(draw: Random, adam: Optimiser, step: Step) -> Schedule:
    t = step.state.next_step
    shapes: tuple[Literal["constant", "linear", "cosine"], ...] = ("constant", "linear", "cosine")
    shape = one(draw, shapes)
    warmup = one(draw, (0, 3 * t))
    if shape == "constant":
        return Schedule(adam, shape, warmup=max(warmup, 2))
    return Schedule(adam, shape, warmup=warmup, steps=warmup + 2 * t + integer(draw, 1, 9), floor=one(draw, (0.0, 0.1)))


def _clipped(draw: Random, adam: Optimiser, step: Step) -> Clipped:
    return Clipped(adam, norm=one(draw, (0.01, 0.1, 100.0)), eps=one(draw, (1e-6, 0.0)))


def _with_l2(draw: Random, adam: Adam, step: Step) -> Adam:
    return replace(adam, weight_decay=0.0, l2=one(draw, (0.01, 0.3)))


def _together(draw: Random, adam: Adam, step: Step) -> Clipped:
    return _clipped(draw, _schedule(draw, _groups(draw, _with_l2(draw, adam, step), step), step), step)


OPTIMISERS: dict[str, Callable[[Random, Adam, Step], Optimiser]] = {
    "groups": _groups,
    "schedule": _schedule,
    "clip": _clipped,
    "l2": _with_l2,
    "together": _together,
}
"""The makers of an optimiser from the settings of a step, by the feature that they add."""


def with_optimiser(step: Step, name: str) -> Step:
    """Return the step with an optimiser of `OPTIMISERS`; the step's numbers seed the choices."""
    draw = Random(repr((name, step.state.step, *(p.ravel().tolist() for p in step.params.values()))))
    return replace(step, adam=OPTIMISERS[name](draw, adam_of(step), step))
