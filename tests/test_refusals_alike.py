"""Oracle and engine refuse alike: the same type of error, naming the same argument, for any input."""

import ast
import inspect
import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from refusals import NAMES, NET, PARAMS, REFUSALS, Refusal, X, Y, batch, long_step, step

from adamshap import gpu, reference
from adamshap.reference import Adam, AdamState, Batch, LazyRows, Network, RunConfig, Step
from adamshap.reference.torch_bridge import TorchSnapshot

ENGINE_ONLY = {"rank", "variance", "micro_batch", "carry_window", "score_dtype", "device", "dtype", "device_arrays"}
"""Options that the oracle lacks, or for which it supports a single value."""

MODULES = {"reference": reference, "gpu": gpu}


def outcome(call: Callable[[], object]) -> tuple[str, str]:
    """Return the type of a call's error and the argument named in its message, or the type of its result."""
    try:
        result = call()
    except Exception as error:
        return type(error).__name__, str(error).split(": got ")[0]
    return "result", type(result).__name__


# --- the table -------------------------------------------------------------------------------------------------------


def called(refusal: Refusal) -> tuple[str, str, set[str]] | None:
    """Return module, function and keywords of a row's call; None if it calls neither the oracle nor the engine."""
    call = ast.parse(refusal.call, mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return None
    if not isinstance(call.func.value, ast.Name) or call.func.value.id not in MODULES:
        return None
    return call.func.value.id, call.func.attr, {str(keyword.arg) for keyword in call.keywords}


def applies_to_both(refusal: Refusal) -> bool:
    found = called(refusal)
    return found is not None and hasattr(gpu, found[1]) and not found[2] & ENGINE_ONLY


@pytest.mark.parametrize("refusal", list(filter(applies_to_both, REFUSALS)), ids=lambda refusal: refusal.call)
def test_a_row_of_the_table_is_refused_alike(refusal: Refusal) -> None:
    found = called(refusal)
    assert found is not None
    for module in MODULES:
        call = refusal.call.replace(f"{found[0]}.{found[1]}(", f"{module}.{found[1]}(", 1)
        assert outcome(lambda call=call: eval(call, NAMES)) == (refusal.error.__name__, refusal.field)


def test_the_table_has_rows_for_every_function_of_both() -> None:
    both = list(filter(applies_to_both, REFUSALS))
    assert {called(refusal)[0] for refusal in both} == set(MODULES)  # type: ignore[index]
    assert {called(refusal)[1] for refusal in both} == set(gpu.__all__) - {"describe"}  # type: ignore[index]


# --- bad values for every argument of every public function ----------------------------------------------------------


class Anything:
    """Accepts any arguments."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments


class Broken:
    """Raises at every estimator."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("no array")

    __hash__ = None  # type: ignore[assignment]


VALUES: dict[str, Any] = {
    "None": None,
    "5": 5,
    "-1": -1,
    "0.5": 0.5,
    "nan": math.nan,
    "inf": math.inf,
    "10**400": 10**400,
    "1j": 1j,
    "True": True,
    "np.True_": np.True_,
    "np.int64": np.int64(3),
    "np.float32": np.float32(0.5),
    "np.nan": np.float64("nan"),
    "Decimal": Decimal(1),
    "text": "x",
    "no text": "",
    "np.str_": np.str_("x"),
    "bytes": b"x",
    "zeros": np.zeros(3),
    "mask": np.ones(3, bool),
    "matrix": np.zeros((5, 3)),
    "one": np.array(0.0),
    "nothing": np.zeros((0, 3)),
    "texts": np.array(["x", "y"]),
    "objects": np.array([None, 1], object),
    "record": np.zeros(3, [("a", float)]),
    "masked": np.ma.masked_equal(np.zeros((5, 3)), 0),
    "masked value": np.ma.masked,
    "list": [],
    "lists": [[1.0], [1.0, 2.0]],
    "numbers": [1, 2],
    "pair": (1, 2),
    "dict": {},
    "named": {"a": None},
    "set": {1},
    "range": range(3),
    "generator": (i for i in ()),
    "object": object(),
    "class": Anything,
    "function": lambda *_: None,
    "module": math,
    "broken": Broken(),
    "LazyRows": LazyRows(X),
    "Batch": batch(),
    "Adam": Adam(),
}

RUN = reference.attribute(NET, Adam(), batch(), batch(), epochs=1)
CONFIG: dict[str, Any] = {"network": NET, "adam": Adam(), "train": batch(), "valid": batch()}
STEP: dict[str, Any] = {"step": step()}
NAMED: dict[str, Any] = {"net": NET, "params": PARAMS, "adam": Adam(), "state": RUN.state, "train": batch()}

FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "reference.metagradient": (reference.metagradient, {"run": RUN}),
    "reference.retrained": (reference.retrained, {"run": RUN, "samples": [0]}),
    "Adam": (Adam, {}),
    "AdamState": (AdamState, {"step": 1, "m": PARAMS, "v": {name: p**2 for name, p in PARAMS.items()}}),
    "AdamState.zeros": (AdamState.zeros, {"params": PARAMS}),
    "Batch": (Batch, {"x": X, "y": Y}),
    "Batch.take": (batch().take, {"index": [0]}),
    "Network": (Network, {"sizes": (3, 2)}),
    "Network.init": (NET.init, {}),
    "LazyRows": (LazyRows, {"source": X}),
    "RunConfig": (RunConfig, CONFIG | {"epochs": 1, "batch_size": 2, "seed": 0}),
    "Step": (Step, NAMED | {"valid": batch()}),
    "TorchSnapshot.step": (
        TorchSnapshot(NET, PARAMS, Adam(), RUN.state, {}).step,
        {"train": batch(), "valid": batch()},
    ),
}
for name, module in MODULES.items():
    FUNCTIONS |= {
        f"{name}.scores": (module.scores, STEP),
        f"{name}.scores two_term": (module.scores, STEP | {"slope": "two_term"}),
        f"{name}.scores previous": (module.scores, {"step": step(state=RUN.state), "slope": "linearized"}),
        f"{name}.update": (module.update, STEP),
        f"{name}.utility": (module.utility, STEP | {"coalition": [True] * 5}),
        f"{name}.influence": (module.influence, STEP),
        f"{name}.marginals": (module.marginals, STEP),
        f"{name}.marginals sampled": (module.marginals, {"step": long_step(), "kind": "shapley", "permutations": 4}),
        f"{name}.attribute": (module.attribute, CONFIG | {"epochs": 1}),
        f"{name}.attribute carry": (module.attribute, CONFIG | {"epochs": 1, "credit": "carry"}),
        f"{name}.attribute two_term": (module.attribute, CONFIG | {"epochs": 1, "slope": "two_term"}),
    }


def arguments() -> Iterator[Any]:
    for name, (function, _) in FUNCTIONS.items():
        for argument in inspect.signature(function).parameters:
            yield pytest.param(name, argument, id=f"{name} {argument}")


@pytest.mark.parametrize(("name", "argument"), list(arguments()))
def test_any_value_gives_a_result_or_an_error_that_names_the_argument(name: str, argument: str) -> None:
    function, others = FUNCTIONS[name]
    fields: tuple[str, ...] = (argument, f"{name.split('.')[0]}.{argument}", f"Step.{argument}")
    if (name, argument) == ("AdamState", "m"):
        fields += ("AdamState.v",)  # its names and shapes must be those of m
    twin = FUNCTIONS.get(name.replace("reference.", "gpu."), (None, {}))[0]
    if (
        argument in ENGINE_ONLY
        or twin is function
        or (name, argument) == ("reference.attribute carry", "per_validation")
    ):
        twin = None
    for value in VALUES.values():
        kind, what = outcome(lambda value=value: function(**(others | {argument: value})))
        assert kind in ("result", "ValueError", "TypeError"), (value, what)
        assert kind == "result" or what.startswith(fields), what
        if twin is not None:
            assert outcome(lambda value=value: twin(**(others | {argument: value}))) == (kind, what)


@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.parametrize("where", ["Batch.x", "Batch.y", "coalition", "params", "m", "v", "resume", "samples"])
def test_an_array_like_value_is_used_unchanged_or_refused(where: str, value: str) -> None:
    given = VALUES[value]
    kept: list[Any] = []
    reference.attribute(**CONFIG, epochs=1, on_checkpoint=lambda _, take: kept.append(take()))
    calls: dict[str, tuple[str, Callable[[], Any]]] = {
        "Batch.x": ("Batch.x", lambda: Batch(given, Y)),
        "Batch.y": ("Batch.y", lambda: Batch(X, given)),
        "coalition": ("coalition", lambda: gpu.utility(step(), given)),
        "params": ("Step.params['0.bias']", lambda: step(params=PARAMS | {"0.bias": given})),
        "m": ("AdamState.", lambda: AdamState(1, PARAMS | {"0.bias": given}, PARAMS | {"0.bias": given})),
        "v": ("AdamState.v", lambda: AdamState(1, PARAMS, PARAMS | {"0.bias": given})),
        "resume": ("resume['seen']", lambda: gpu.attribute(**CONFIG, epochs=1, resume=kept[0] | {"seen": given})),
        "samples": ("samples", lambda: reference.retrained(RUN, given)),
    }
    field, call = calls[where]
    kind, what = outcome(call)
    assert kind in ("result", "ValueError", "TypeError"), what
    assert kind == "result" or what.startswith((field, "resume")), what


@pytest.mark.parametrize("argument", ["model", "optimizer", "loss"])
def test_bad_values_of_from_torch_are_refused_by_name(argument: str) -> None:
    torch = pytest.importorskip("torch", reason="extra `peers`: torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    given = {"model": model, "optimizer": torch.optim.Adam(model.parameters()), "loss": "mse"}
    for value in VALUES.values():
        kind, what = outcome(lambda value=value: reference.from_torch(**(given | {argument: value})))
        assert kind in ("ValueError", "TypeError"), (value, what)
        assert what.startswith(argument), what
