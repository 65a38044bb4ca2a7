"""Hypothesis strategies for optimisers with groups, schedules, clipping and L2 decay.

Each takes a step with one `Adam` and gives it one or more of `FEATURES`. The first choice of every draw is the plain
optimiser, to which a failing case shrinks. The kinds are drawn before the step: Hypothesis often takes the first choice
for the last draws of a long case.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from adamshap.reference import models
from adamshap.reference.contract import Adam, AdamGroups, Clipped, Optimiser, Schedule, Step
from adamshap.verify.models import kind_of
from adamshap.verify.strategies import FARTHEST, adams, powers_of_ten, seeds

__all__ = ["NORMS", "steps_with"]

NORMS = (1e-12, 1e15)
"""Norms of gradients that are clipped: their squares, and those of a millionth, are within float32."""

KINDS = {
    "l2": ("none", "usual", "usual", "any", "any", "cancelling", "cancelling"),
    "groups": ("none", "biases", "random", "random", "random", "one for each", "one for each", "one for each"),
    "schedule": ("none", "warm-up", "linear", "cosine", "after its end", "given factors"),
    "clip": ("none", "half", "at the norm", "tiny", "just below", "usual", "huge"),
}
"""Kinds of each feature; "none" leaves it out."""

MOST_FACTORS = 20
"""Largest t for which a schedule gives a factor for each step."""

FACTORS = st.sampled_from((1.0, 0.5, 0.1, 2.0, 0.0)) | st.floats(2**-20, 1)
"""Factors of a schedule. Of a smaller one, float32 would keep η as a subnormal number, which has few digits."""


@st.composite
def steps_with(draw: Any, of: st.SearchStrategy[Step], features: tuple[str, ...]) -> Step:
    """Return steps of `of` whose optimisers have `features`, some of `optimisers.FEATURES`."""
    kinds = {name: draw(st.sampled_from(KINDS[name]), label=name) for name in KINDS if name in features}
    step: Step = draw(of)
    adam = step.adam
    if not isinstance(adam, Adam):
        raise TypeError(f"steps with one Adam, not {type(adam).__name__}")
    adam = _with_l2(draw, step, adam, kinds.get("l2", "none"))
    optimiser: Optimiser = _in_groups(draw, adam, list(step.params), kinds.get("groups", "none"), l2="l2" in features)
    optimiser = _scheduled(draw, optimiser, step.state.next_step, kinds.get("schedule", "none"))
    optimiser = _clipped(draw, step, optimiser, kinds.get("clip", "none"))
    step = replace(step, adam=optimiser)
    assume(kind_of(step.net).draws.reach(step) <= FARTHEST)
    return step


def _with_l2(draw: Any, step: Step, adam: Adam, kind: str) -> Adam:
    """Return the settings with λ₂ of 0, as in practice, of any size, or with λ₂ θ near −g at one coordinate."""
    if kind == "none":
        return adam
    l2 = 0.0
    if kind == "cancelling":
        l2 = _cancelling(step, np.random.default_rng(draw(seeds, label="cancelling seed")))
    if not 1e-6 <= l2 <= 1e3:  # of another kind, or nothing can cancel
        sizes = powers_of_ten(-6, 1.5) if kind == "any" else st.sampled_from((0.1, 5e-4, 0.01))
        l2 = draw(sizes, label="λ2")
    return replace(adam, weight_decay=0.0, l2=l2)


def _cancelling(step: Step, generator: np.random.Generator) -> float:
    """Return λ₂ for which λ₂ θ + g is a thousandth of −g at a random coordinate; 0 if there is none.

    Where it were 0 up to rounding, and v is 0, Adam's step would be the sign of a rounding error.
    """
    g = models.batch_gradient(step)
    ratios = np.concatenate(
        [-np.divide(g[name], p, out=np.zeros_like(p), where=p != 0).ravel() for name, p in step.params.items()]
    )
    positive = ratios[ratios > 0]
    return 1.001 * float(generator.choice(positive)) if positive.size else 0.0


def _in_groups(draw: Any, adam: Adam, names: list[str], layout: str, *, l2: bool) -> Adam | AdamGroups:
    """Return groups of the parameters `names`, with `adam` for those in none."""
    if layout == "none":
        return adam
    if layout == "biases":
        biases = tuple(name for name in names if name.endswith("bias"))
        if biases:
            patterns = draw(st.sampled_from((biases, ("*bias",))), label="biases")
            rate = draw(st.sampled_from((1.0, 2.0, 0.1)), label="η of biases")
            return AdamGroups(((patterns, replace(adam, lr=rate * adam.lr, weight_decay=0.0, l2=0.0)),), adam)
    generator = np.random.default_rng(draw(seeds, label="groups seed"))
    count = len(names) if layout == "one for each" and len(names) <= 6 else draw(st.integers(1, 3), label="group count")
    order = [names[i] for i in generator.permutation(len(names))]
    # The last place is that of the parameters in no group.
    places = np.arange(len(names)) if count == len(names) else generator.integers(0, count + 1, len(names))
    members = [tuple(name for name, at in zip(order, places, strict=True) if at == place) for place in range(count)]
    groups = [(own, _settings(draw, adam, l2=l2)) for own in members if own]
    if not groups:
        return adam
    default = adam if any(at == count for at in places) or draw(st.booleans(), label="unused default") else None
    return AdamGroups(tuple(groups), default)


def _settings(draw: Any, adam: Adam, *, l2: bool) -> Adam:
    """Return the settings of a group: `adam`, with another η, without one (frozen), or any others."""
    kind = draw(st.sampled_from(("same", "η", "all", "all", "frozen", "decay")), label="group")
    if kind == "same":
        return adam
    if kind == "frozen":
        return replace(adam, lr=0.0)
    if kind == "η":
        return replace(adam, lr=draw(powers_of_ten(-5, -1), label="group η"))
    if kind == "decay":
        if l2 and draw(st.booleans(), label="L2 decay of a group"):
            return replace(adam, weight_decay=0.0, l2=draw(st.sampled_from((0.01, 0.3)), label="group λ2"))
        return replace(adam, l2=0.0, weight_decay=draw(st.sampled_from((0.0, 0.1, 0.5)), label="group λ"))
    other: Adam = draw(adams(), label="group adam")
    return other


def _scheduled(draw: Any, optimiser: Optimiser, t: int, shape: str) -> Optimiser:
    """Return the optimiser with a schedule that is at one of its places at step `t`."""
    if shape == "none":
        return optimiser
    if shape == "warm-up":
        return Schedule(optimiser, warmup=t - 1 + draw(st.integers(1, 10), label="steps to the end"))
    if shape == "given factors" and t <= MOST_FACTORS:
        more = draw(st.integers(0, 2), label="steps to come")
        return Schedule(optimiser, tuple(draw(FACTORS, label="factor") for _ in range(t + more)))
    if shape == "after its end" and t > 1:
        warmup = draw(st.sampled_from((0, (t - 2) // 2)), label="warm-up")
        ends = st.integers(max(warmup + 1, (t - 1) // 2), t - 1)
        steps = draw(ends, label="steps")
    else:
        warmup = draw(st.sampled_from((0, (t - 1) // 2, t - 1)), label="warm-up")
        steps = t + draw(st.sampled_from((1, 3, t)), label="steps to the end")
    falling: Any = "cosine" if shape == "cosine" else draw(st.sampled_from(("linear", "cosine")), label="shape")
    floor = draw(st.sampled_from((0.0, 0.1, 0.5)), label="floor")
    return Schedule(optimiser, falling if shape != "linear" else "linear", warmup, steps, floor)


def _clipped(draw: Any, step: Step, optimiser: Optimiser, kind: str) -> Optimiser:
    """Return the optimiser with clipping at a norm chosen by the batch gradient's own."""
    if kind == "none":
        return optimiser
    eps = draw(st.sampled_from((1e-6, 0.0)), label="ε of clipping")
    gradients = models.batch_gradient(step).values()
    norm = math.hypot(*np.concatenate([array.ravel() for array in gradients]))
    assume(norm <= NORMS[1])
    if kind == "usual" or norm < NORMS[0]:
        return Clipped(optimiser, draw(st.sampled_from((1.0, 0.1, 5.0)), label="largest norm"), eps)
    parts = {"half": 0.5, "at the norm": 1.0, "tiny": 1e-6, "just below": 0.999, "huge": 1e6}
    return Clipped(optimiser, (norm + eps) * parts[kind], eps)
