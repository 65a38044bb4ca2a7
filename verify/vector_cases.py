"""The plan of the test vectors: small random steps, each determined by its seed, and the calls with them.

The numbers (`vector_numbers`) come from Python's Mersenne Twister by `random()` alone, whose sequence Python guarantees
for all versions, and are rounded to three digits: the inputs are the same everywhere, to the last bit, and easy to
read.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from adamshap.reference.contract import (
    GRADIENTS,
    MARGINAL_LOSSES,
    MARGINALS,
    REDUCTIONS,
    SLOPES,
    TWO_TERM,
    Adam,
    AdamState,
    Array,
    Params,
    Step,
)
from adamshap.verify.implementation import Query
from adamshap.verify.models import KINDS, PERCEPTRON
from adamshap.verify.vector_numbers import array, integer, one, short

STATES = ("fresh", "ordinary", "adversarial")
"""Kinds of state: before the first step; typical of a run; with zeros, and with v of any size, unlike any run's."""

COMPLETED = (1, 2, 3, 9, 30, 99, 400, 2500, 9999)
"""Completed steps of a state that is not fresh."""

NODES = ((1, 2), (2, 4), (3, 5), (8, 9))


@dataclass(frozen=True)
class Planned:
    """A vector without its answer: its name, the seed of its step, the step, and the call."""

    name: str
    seed: int
    step: Step
    query: Query


def planned() -> Iterator[Planned]:
    """Yield all vectors; each name is the function and a number, and each seed is used once."""
    seed, numbers = 0, Counter[str]()
    for function, queries in _plan():
        for make, limits in queries:
            seed, number = seed + 1, numbers[function]
            numbers[function] += 1
            step = random_step(seed, **limits)
            yield Planned(f"{function}-{number:03d}", seed, step, make(step, Random(-seed)))


def random_step(seed: int, *, max_n: int = 7, states: Sequence[str] = STATES) -> Step:
    """Return the step of `seed`: at most three layers of five units, `max_n` samples and four validation samples.

    Parameters
    ----------
    seed : int
        Seed of all random choices.
    max_n : int
        Largest number of samples.
    states : sequence of str
        Kinds of state to choose from, some of `STATES`.
    """
    draw = Random(seed)
    kind = KINDS[PERCEPTRON]
    net = kind.plain_model(draw, seed)
    beta1, beta2 = one(draw, (0.9, 0.0, 0.5, 0.97)), one(draw, (0.999, 0.9, 0.5, 0.0))
    adam = Adam(
        lr=one(draw, (0.001, 0.01, 0.05, 0.0003)),
        betas=(beta1, beta2),
        # With β2 = 0 the denominator without data is ε: a small ε would move the parameters by m/ε.
        eps=one(draw, (1e-8, 1e-8, 1e-5, 0.001, 0.1) if beta2 else (0.001, 0.1)),
        eps_root=one(draw, (0.0, 0.0, 1e-8, 0.0001)),
        weight_decay=one(draw, (0.0, 0.01, 0.3)),
    )
    params = {name: array(draw, shape, 1.5 / math.sqrt(shape[-1])) for name, shape in net.shapes.items()}
    if draw.random() < 0.3:  # a common initialisation, and for a zero sample every activation's input is 0
        params = {name: np.zeros_like(p) if name.endswith("bias") else p for name, p in params.items()}
    state = _state(draw, params, one(draw, states))
    n, n_val = integer(draw, 1, max_n), integer(draw, 1, 4)
    train, valid = kind.plain_batch(draw, net, n), kind.plain_batch(draw, net, n_val)
    return Step(net, params, adam, state, train, valid, one(draw, REDUCTIONS))  # type: ignore[arg-type]


def _state(draw: Random, params: Params, kind: str) -> AdamState:
    if kind == "fresh":
        return AdamState.zeros(params)
    size = 10.0 ** -integer(draw, 0, 3)
    m = {name: array(draw, p.shape, size) for name, p in params.items()}
    v = {name: _moment(draw, p.shape, size, kind) for name, p in params.items()}
    if kind == "adversarial":
        # No momentum where v = 0: it would move the parameters by m/ε, where rounding hides every mistake.
        m = {name: np.where((v[name] == 0) | (array(draw, p.shape, 1.0) < -0.7), 0.0, p) for name, p in m.items()}
    return AdamState(one(draw, COMPLETED), m, v)


def _moment(draw: Random, shape: tuple[int, ...], size: float, kind: str) -> Array:
    numbers = []
    for _ in range(math.prod(shape)):
        number = size**2 * (0.05 + draw.random())
        if kind == "adversarial":
            number = 0.0 if draw.random() < 0.2 else number * 10 ** (8 * draw.random() - 5)
        numbers.append(short(number))
    return np.array(numbers).reshape(shape)


# --- the calls -------------------------------------------------------------------------------------------------------

Make = Callable[[Step, Random], Query]
Limits = dict[str, Any]


def _plan() -> list[tuple[str, list[tuple[Make, Limits]]]]:
    """Return, for each function in turn, the makers of its calls, and limits on the step.

    Additions go to the end: a vector's position is its seed.
    """
    plan: dict[str, list[tuple[Make, Limits]]] = {
        "update": [(_call("update"), {})] * 40,
        "utility": [(_utility, {})] * 40,
        "marginals": [
            (_call("marginals", kind=kind, loss=loss), {"max_n": 5 if kind == "shapley" else 7})
            for kind in MARGINALS
            for loss in MARGINAL_LOSSES
            for _ in range(10)
        ],
        "scores": [
            *((_call("scores", slope=s, gradient=g), {}) for s in SLOPES for g in GRADIENTS for _ in range(8)),
            *((_scores(slope="random_order", nodes=nodes), {}) for nodes in NODES for _ in range(3)),
            *((_scores(slope=s, per_validation=True), {}) for s in SLOPES for _ in range(4)),
            *((_scores(slope=s, efficient=True), {}) for s in SLOPES for _ in range(3)),
            *((_scores(slope=s, efficient=True, per_validation=True), {}) for s in SLOPES for _ in range(2)),
            *(
                (_call("scores", slope="linearized", gradient=g, denominator="previous"), {"states": STATES[1:]})
                for g in GRADIENTS
                for _ in range(4)
            ),
        ],
        "influence": [(_call("influence"), {})] * 36,
    }
    flags: tuple[dict[str, Any], ...] = ({"per_validation": True}, {"efficient": True}, {"nodes": (4, 4)})
    two_terms: list[tuple[Make, Limits]] = [
        *((_call("scores", slope=TWO_TERM, kind=k, gradient=g), {}) for k in MARGINALS for g in GRADIENTS),
        *((_scores(slope=TWO_TERM, kind=k, **flag), {}) for k in MARGINALS for flag in flags),
    ]
    return [*plan.items(), ("scores", two_terms)]


def _call(function: str, **options: Any) -> Make:
    return lambda step, draw: Query(function, options)


def _scores(**options: Any) -> Make:
    return lambda step, draw: Query("scores", {"gradient": one(draw, GRADIENTS), **options})


def _utility(step: Step, draw: Random) -> Query:
    """Return a call of `utility`; one in eight has the empty coalition, one in eight the whole batch."""
    kind = integer(draw, 0, 7)
    mask = [kind == 1 or (kind > 1 and draw.random() < 0.5) for _ in range(step.n)]
    return Query("utility", {"coalition": np.array(mask)})
