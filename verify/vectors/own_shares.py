"""Random moments beside which a batch's gradient has an own share near the thresholds of the slope "auto"."""

import math
from dataclasses import replace
from random import Random

import numpy as np

from adamshap.reference import models
from adamshap.reference.adam import bias_correction
from adamshap.reference.contract import Adam, Array, Step
from adamshap.verify.vectors.numbers import one, short

__all__ = ["with_own_shares"]

LEVELS = (0.3, 0.43, 0.44, 0.45, 0.46, 0.6)
"""Own shares q g²/(κ + q g²) of a parameter; squared, they are on both sides of 3/16 and 7/32, and between them."""

SPREAD = 0.2
"""Largest part by which a coordinate's own share differs from the parameter's level."""

LEAST = 1e-6
"""Gradients below it keep their moments: they may be rounding errors, which differ between machines."""


def with_own_shares(step: Step) -> Step:
    """Return the step, not the first of a run, with moments that give each parameter an own share near a level.

    Most random steps have shares near 0 or 1, where "auto" is one of its two slopes. m is at most what gradients of
    the size that v has would leave behind, as a larger one beside a small v makes steps unlike any run's. The step's
    numbers seed the choices; its gradients are rounded to three digits, as all numbers of the vectors.
    """
    draw = Random(repr(("own shares", step.state.step, *(p.ravel().tolist() for p in step.params.values()))))
    m, v = dict(step.state.m), dict(step.state.v)
    for name, x in models.sample_gradients(step).items():
        m[name], v[name] = _moments(draw, step.settings(name), step.state.next_step, x.sum(axis=0), m[name], v[name])
    return replace(step, state=replace(step.state, m=m, v=v))


def _moments(draw: Random, adam: Adam, t: int, g: Array, kept_m: Array, kept_v: Array) -> tuple[Array, Array]:
    """Return m and v of a parameter with the gradient `g` at step t, where it is not too small, and else those kept."""
    level, (beta1, beta2) = one(draw, LEVELS), adam.betas
    m, v = kept_m.copy(), kept_v.copy()
    for place in np.ndindex(g.shape):
        share, direction = level * (1 + SPREAD * (2 * draw.random() - 1)), 2 * draw.random() - 1
        if abs(g[place]) < LEAST or beta2 == 0:
            continue
        # κ = q g² (1/share − 1) = q earlier²
        earlier = abs(float(g[place])) * math.sqrt(1 / share - 1)
        in_root = bias_correction(beta2, t) * adam.eps_root
        v[place] = short(max((1 - beta2) * earlier**2 - in_root, 0.0) / beta2)
        m[place] = short((1 - beta1) * earlier * direction)
    return m, v
