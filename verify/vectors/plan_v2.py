"""The test vectors of version 2: those of version 1, steps of stacks of layers, other optimisers and slopes.

A new group of vectors has a seed range of its own in `SEEDS`, so that a longer group changes no other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from random import Random
from typing import Any

import numpy as np

from adamshap.reference.contract import (
    AUTO,
    GRADIENTS,
    MARGINAL_LOSSES,
    MARGINALS,
    NOT_COUNTED,
    SLOPES,
    TWO_TERM,
    Batch,
    Clipped,
    Embedding,
    Linear,
    Network,
    Positions,
    Sequential,
    Step,
    TiedLinear,
    convnet,
    transformer,
)
from adamshap.verify.implementation import Query
from adamshap.verify.models import PERCEPTRON, SEQUENTIAL
from adamshap.verify.steps import adam_of
from adamshap.verify.vectors.conventions import CONVENTIONS
from adamshap.verify.vectors.one_layer import ONE_LAYER
from adamshap.verify.vectors.optimisers import OPTIMISERS, with_optimiser
from adamshap.verify.vectors.own_shares import with_own_shares
from adamshap.verify.vectors.plan import Make, Planned, calls, random_captures, random_utility, scores_calls
from adamshap.verify.vectors.random_steps import STATES, random_step

__all__ = ["SEEDS", "planned"]

SEEDS = {
    "layers": 10_000,
    "transformer": 11_000,
    "convnet": 12_000,
    "two_term": 13_000,
    "equal_maxima": 14_000,
    "one layer": 15_000,
    "captures": 16_000,
    "optimisers": 17_000,
    "acceptable": 18_000,
    "auto": 19_000,
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
        each = [(random_captures, {"model": model})] * 3
        yield from _group(kind, each, SEEDS["captures"] + 10 * place, kind=SEQUENTIAL, max_n=4, max_n_val=1)
    equal = [(make, {"model": ONE_LAYER["max_pool2d"]}) for make in (calls("update"), calls("influence"))] * 2
    yield from _group("equal_maxima", equal, kind=SEQUENTIAL, max_n=3, change=_with_equal_maxima)
    for place, name in enumerate(OPTIMISERS):
        for kind, each in ((PERCEPTRON, _calls_of_an_optimiser(name)), (SEQUENTIAL, _calls_of_a_layer())):
            first = SEEDS["optimisers"] + 100 * place + (50 if kind == SEQUENTIAL else 0)
            label = name if kind == PERCEPTRON else f"{name}_layers"
            yield from _group(label, each, first, partial(with_optimiser, name=name), kind=kind, max_n=5, max_n_val=2)
    yield from _acceptable()
    yield from _group("two_term", [(make, {"model": m}) for m, make in _two_terms()], kind=SEQUENTIAL, max_n=5)
    yield from _autos()


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


def _calls_of_an_optimiser(name: str) -> list[Call]:
    """Return calls of every function and slope for a perceptron."""
    slopes = SLOPES if name == "together" else ("linearized", "secant", "random_order")
    return [
        *[(calls("update"), {})] * 4,
        *[(random_utility, {})] * 3,
        *((calls("marginals", kind=kind, loss="exact"), {"max_n": 4}) for kind in MARGINALS),
        *((scores_calls(slope=slope), {}) for slope in slopes),
        *((scores_calls(slope="tangent", per_validation=flag), {}) for flag in (False, True)),
        (scores_calls(slope=TWO_TERM, kind="shapley"), {}),
        (calls("influence"), {}),
    ]


def _acceptable() -> Iterator[Planned]:
    """Yield the vectors that accept another convention."""
    each = (calls("update"), calls("marginals", kind="last", loss="first_order"), scores_calls(slope="secant"))
    for place, convention in enumerate(CONVENTIONS):
        prepare, limits = _ACCEPTING[convention.name]
        first = SEEDS["acceptable"] + 10 * place
        name = convention.name.replace("-", "_")
        for plan in _group(name, [(make, {}) for make in each], first, prepare, max_n=3, max_n_val=2, **limits):
            yield replace(plan, conventions=(convention,))


def _with_a_large_eps(step: Step) -> Step:
    return replace(step, adam=replace(adam_of(step), betas=(0.9, 0.999), eps=0.01))


def _with_uneven_labels(step: Step) -> Step:
    """Return the step with batches of three samples of three tokens, of which three, two and one label are counted."""
    place = np.arange(9).reshape(3, 3)
    batch = Batch(place % 4, np.where(np.arange(3) < np.arange(3)[:, None], NOT_COUNTED, (place + 1) % 4))
    return replace(step, train=batch, valid=batch)


def _with_a_small_gradient(step: Step) -> Step:
    """Return the step clipped far below its norm, with parameters so small that the 1e-6 in PyTorch's factor counts."""
    params = {name: 1e-4 * p for name, p in step.params.items()}
    train = Batch(1e-4 * step.train.x, 1e-4 * step.train.y)
    return replace(step, params=params, train=train, adam=Clipped(adam_of(step), norm=1e-7, eps=0.0))


_ACCEPTING: dict[str, tuple[Callable[[Step], Step], dict[str, Any]]] = {
    "epsilon-before-correction": (_with_a_large_eps, {"model": Network((2, 3, 2)), "states": ("ordinary",)}),
    "mean-over-the-batch-s-tokens": (
        _with_uneven_labels,
        {"kind": SEQUENTIAL, "model": ONE_LAYER["tied_linear"], "states": ("ordinary",)},
    ),
    "clip-epsilon-of-pytorch": (
        _with_a_small_gradient,
        {"model": Network((2, 3, 2), loss="mse"), "states": ("ordinary",)},
    ),
}
"""For each convention, the change to a random step that makes it count, and the limits of the step."""


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


def _autos() -> Iterator[Planned]:
    """Yield the vectors of the slope "auto": with own shares near its thresholds, except in states of every kind."""
    first, call = SEEDS["auto"], scores_calls(slope=AUTO)
    few: dict[str, Any] = {"states": ("ordinary",), "max_n": 5, "max_n_val": 2}
    yield from _group("auto", _calls_of_auto(), first, with_own_shares, states=("ordinary",))
    # In a first step, where v is 0, units that no sample activates have neither a gradient nor a second moment.
    dead = {"model": Network((2, 5, 2), activation="relu"), "states": ("fresh",), "max_n": 2}
    states: list[Call] = [(call, {"states": (state,)}) for state in STATES for _ in range(2)]
    yield from _group("auto_states", [*states, *[(call, dead)] * 3], first + 50)
    yield from _group("auto_layers", [(call, {})] * 8, first + 100, with_own_shares, kind=SEQUENTIAL, **few)
    for place, name in enumerate(("l2", "together"), start=3):
        change = partial(_with_an_optimiser_and_own_shares, name=name)
        each = [(call, {"model": Network((2, 3, 2))})] * 6
        yield from _group(f"auto_{name}", each, first + 50 * place, change, **few)


def _calls_of_auto() -> list[Call]:
    """Return calls of `scores` with "auto" and every other option, for a perceptron."""
    return [
        *((calls("scores", slope=AUTO, gradient=g), {}) for g in GRADIENTS for _ in range(6)),
        *[(scores_calls(slope=AUTO, per_validation=True), {})] * 2,
        *[(scores_calls(slope=AUTO, efficient=True), {})] * 2,
        *((scores_calls(slope=AUTO, nodes=nodes), {}) for nodes in ((3, 5), (6, 2))),
    ]


def _with_an_optimiser_and_own_shares(step: Step, name: str) -> Step:
    return with_own_shares(with_optimiser(step, name))
