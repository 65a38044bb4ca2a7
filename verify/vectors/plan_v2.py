"""The test vectors of version 2: those of version 1, and steps of stacks of layers.

A new group of vectors has a seed range of its own in `SEEDS`, so that a longer group changes no other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

from adamshap.reference.contract import (
    GRADIENTS,
    MARGINAL_LOSSES,
    MARGINALS,
    SLOPES,
    TWO_TERM,
    Embedding,
    Linear,
    Positions,
    Sequential,
    Step,
    TiedLinear,
    convnet,
    transformer,
)
from adamshap.verify.implementation import Query
from adamshap.verify.models import SEQUENTIAL
from adamshap.verify.vectors.one_layer import ONE_LAYER
from adamshap.verify.vectors.plan import Make, Planned, calls, random_utility, scores_calls
from adamshap.verify.vectors.random_steps import STATES, random_step

__all__ = ["SEEDS", "planned"]

SEEDS = {
    "layers": 10_000,
    "transformer": 11_000,
    "convnet": 12_000,
    "two_term": 13_000,
    "equal_maxima": 14_000,
    "one layer": 15_000,
}
"""The first seed of each group."""

Call = tuple[Make, dict[str, Any]]


def planned() -> Iterator[Planned]:
    """Yield the vectors that version 1 lacks; each name is the function, the group and a number."""
    yield from _group("layers", _calls_of_all_functions(), kind=SEQUENTIAL, max_n=5)
    for name, models in (("transformer", _transformers()), ("convnet", _convnets())):
        each = [(make, {**limits, "model": model}) for model in models for make, limits in _calls_of_a_model()]
        yield from _group(name, each, kind=SEQUENTIAL, max_n=3, max_n_val=2)
    for place, (kind, model) in enumerate(ONE_LAYER.items()):
        each = [(make, {**limits, "model": model}) for make, limits in _calls_of_a_layer()]
        yield from _group(kind, each, SEEDS["one layer"] + 50 * place, kind=SEQUENTIAL, max_n=4, max_n_val=2)
    equal = [(make, {"model": ONE_LAYER["max_pool2d"]}) for make in (calls("update"), calls("influence"))] * 2
    yield from _group("equal_maxima", equal, kind=SEQUENTIAL, max_n=3, change=_with_equal_maxima)
    yield from _group("two_term", [(make, {"model": m}) for m, make in _two_terms()], kind=SEQUENTIAL, max_n=5)


def _group(
    name: str,
    each: Sequence[Call],
    first_seed: int | None = None,
    change: Callable[[Step], Step] = lambda step: step,
    **limits: Any,
) -> Iterator[Planned]:
    """Yield the vectors of a group, with `change` made to each random step."""
    numbers: dict[str, int] = {}
    for seed, (make, more) in enumerate(each, start=SEEDS[name] if first_seed is None else first_seed):
        step = change(random_step(seed, **{**limits, **more}))
        query: Query = make(step, Random(-seed))
        number = numbers.setdefault(query.function, 0)
        numbers[query.function] += 1
        yield Planned(f"{query.function}-{name}-{number:03d}", seed, step, query)


def _calls_of_all_functions() -> list[Call]:
    """Return calls of every function with every option, except the slope "two_term"."""
    return [
        *[(calls("update"), {})] * 24,
        *[(random_utility, {})] * 24,
        *(
            (calls("marginals", kind=kind, loss=loss), {"max_n": 4})
            for kind, loss in product(MARGINALS, MARGINAL_LOSSES)
            for _ in range(4)
        ),
        *((calls("scores", slope=s, gradient=g), {}) for s, g in product(SLOPES, GRADIENTS) for _ in range(4)),
        *((scores_calls(slope=s, per_validation=True), {}) for s in SLOPES for _ in range(2)),
        *((scores_calls(slope=s, efficient=True), {}) for s in SLOPES),
        *(
            (calls("scores", slope="linearized", gradient=g, denominator="previous"), {"states": STATES[1:]})
            for g in GRADIENTS
        ),
        *[(calls("influence"), {})] * 18,
    ]


def _calls_of_a_model() -> list[Call]:
    """Return a few calls for a whole model, whose files are larger."""
    return [
        (calls("update"), {}),
        (calls("marginals", kind="first", loss="exact"), {}),
        (scores_calls(slope="secant"), {}),
        (scores_calls(slope="random_order"), {}),
    ]


def _calls_of_a_layer() -> list[Call]:
    """Return a call of each function, for a model around one layer."""
    return [
        (calls("update"), {}),
        (random_utility, {}),
        (calls("marginals", kind="first", loss="exact"), {}),
        (scores_calls(slope="linearized"), {}),
        (scores_calls(slope="secant", per_validation=True), {}),
        (scores_calls(slope="random_order"), {}),
        (calls("influence"), {}),
    ]


def _with_equal_maxima(step: Step) -> Step:
    """Return the step with a kernel of zeros, whose outputs are all equal: each window has several largest numbers."""
    weight = step.params["0.weight"].copy()
    weight[0] = 0.0
    return replace(step, params={**step.params, "0.weight": weight})


def _transformers() -> list[Sequential]:
    """Return small transformers: tied and not, either norm, with one head and with two."""
    common: dict[str, Any] = {"vocab": 5, "context": 4}
    return [
        transformer(**common, width=4, depth=1, heads=2),
        transformer(**common, width=4, depth=2, heads=1, norm="rms", bias=False),
        transformer(**common, width=2, depth=1, heads=1, tied=False, activation="relu"),
    ]


def _convnets() -> list[Sequential]:
    return [convnet(image=(1, 5, 4), channels=(2, 3), outputs=3)]


def _two_terms() -> list[tuple[Sequential, Make]]:
    """Return models whose samples have one position, and calls of `scores` with "two_term"."""
    models = [
        Sequential((Embedding(4, 3), Positions(1, 3), TiedLinear(3, 4, "0.weight"))),
        Sequential((Linear(3, 4), Linear(4, 2))),
    ]
    return [(m, scores_calls(slope=TWO_TERM, kind=kind)) for m in models for kind in MARGINALS]
