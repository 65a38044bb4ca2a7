"""The test vectors of version 1, which never change: steps of perceptrons with plain Adam."""

from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

from adamshap.reference.contract import GRADIENTS, MARGINAL_LOSSES, MARGINALS, SLOPES, TWO_TERM
from adamshap.verify.vectors.plan import Limits, Make, Planned, calls, random_utility, scores_calls
from adamshap.verify.vectors.random_steps import STATES, random_step

__all__ = ["planned"]

NODES = ((1, 2), (2, 4), (3, 5), (8, 9))


def planned() -> Iterator[Planned]:
    """Yield all vectors; each name is the function and a number, and each seed is used once."""
    seed, numbers = 0, Counter[str]()
    for function, queries in _plan():
        for make, limits in queries:
            seed, number = seed + 1, numbers[function]
            numbers[function] += 1
            step = random_step(seed, **limits)
            yield Planned(f"{function}-{number:03d}", seed, step, make(step, Random(-seed)))


def _plan() -> list[tuple[str, list[tuple[Make, Limits]]]]:
    """Return, for each function in turn, the makers of its calls, and limits on the step."""
    plan: dict[str, list[tuple[Make, Limits]]] = {
        "update": [(calls("update"), {})] * 40,
        "utility": [(random_utility, {})] * 40,
        "marginals": [
            (calls("marginals", kind=kind, loss=loss), {"max_n": 5 if kind == "shapley" else 7})
            for kind in MARGINALS
            for loss in MARGINAL_LOSSES
            for _ in range(10)
        ],
        "scores": [
            *((calls("scores", slope=s, gradient=g), {}) for s in SLOPES for g in GRADIENTS for _ in range(8)),
            *((scores_calls(slope="random_order", nodes=nodes), {}) for nodes in NODES for _ in range(3)),
            *((scores_calls(slope=s, per_validation=True), {}) for s in SLOPES for _ in range(4)),
            *((scores_calls(slope=s, efficient=True), {}) for s in SLOPES for _ in range(3)),
            *((scores_calls(slope=s, efficient=True, per_validation=True), {}) for s in SLOPES for _ in range(2)),
            *(
                (calls("scores", slope="linearized", gradient=g, denominator="previous"), {"states": STATES[1:]})
                for g in GRADIENTS
                for _ in range(4)
            ),
        ],
        "influence": [(calls("influence"), {})] * 36,
    }
    flags: tuple[dict[str, Any], ...] = ({"per_validation": True}, {"efficient": True}, {"nodes": (4, 4)})
    two_terms: list[tuple[Make, Limits]] = [
        *((calls("scores", slope=TWO_TERM, kind=k, gradient=g), {}) for k in MARGINALS for g in GRADIENTS),
        *((scores_calls(slope=TWO_TERM, kind=k, **flag), {}) for k in MARGINALS for flag in flags),
    ]
    return [*plan.items(), ("scores", two_terms)]
