"""Steps, calls and answers as plain JSON types, and back: exact numbers, and errors that name the field.

A case is the step before it is taken and one call with it::

    {"function": "scores", "options": {"slope": "secant", ...}, "dtype": "float64",
     "network": {"sizes": [2, 3], "activation": "tanh", "loss": "mse", "bias": true},
     "adam": {"lr": 0.001, "betas": [0.9, 0.999], "eps": 1e-08, "eps_root": 0.0, "weight_decay": 0.0},
     "state": {"step": 0, "m": {"0.weight": [[...]], "0.bias": [...]}, "v": {...}},
     "params": {...}, "train": {"x": [[...]], "y": [...]}, "valid": {...}, "reduction": "mean"}

A network of another kind than "perceptron" names it, by ``"kind"``. With groups of parameters, a schedule, clipping or
L2 decay, ``"optimizer"`` takes the place of ``"adam"`` (`optimisers.as_json`). A case of `captures` is about the
parameters and the batch "train" alone, and has the option ``"directions"``, an array for each parameter. Every option
is written out, including defaults, so that a reader need not know them. An answer is an object from a name to a number
or nested lists of numbers. Python writes the shortest decimals that give the same float64 back.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from adamshap import reference
from adamshap.reference.contract import (
    DENOMINATORS,
    GRADIENTS,
    MARGINAL_LOSSES,
    MARGINALS,
    SCORE_SLOPES,
    TWO_TERM,
    AdamState,
    Array,
    Batch,
    Model,
    Params,
    Step,
    coalition_mask,
    one_of,
    positive_integer,
    quadrature_nodes,
    real_parts,
    refuse,
)
from adamshap.reference.contract.arrays import named_arrays
from adamshap.verify.implementation import CAPTURES, FUNCTIONS, Answer, Query
from adamshap.verify.json_values import Json, brief, object_with
from adamshap.verify.models import PERCEPTRON, kind_named, kind_of
from adamshap.verify.optimisers.as_json import optimiser_from_json, optimiser_to_json

DTYPES = ("float64", "float32")
CASE = ("function", "options", "dtype", "network", "adam", "state", "params", "train", "valid", "reduction")
"""The names in a case with one set of Adam's settings."""


class CaseError(ValueError):
    """JSON that is not a case or an answer; the message names the field and what it needs."""


# --- to JSON ---------------------------------------------------------------------------------------------------------


def case_to_json(step: Step, query: Query) -> Json:
    """Return a step and a call with it as plain types.

    Raises
    ------
    CaseError
        The real arrays of the step are not all float64 or all float32.
    """
    groups = (step.params, step.state.m, step.state.v)
    reals = [array for group in groups for array in group.values()]
    reals += [getattr(b, name) for b in (step.train, step.valid) for name in real_parts(step.net, b)]
    dtypes = sorted({array.dtype.name for array in reals})
    if len(dtypes) != 1 or dtypes[0] not in DTYPES:
        raise CaseError(
            f"step: got real arrays of {', '.join(dtypes)}; needs all of them in one of {', '.join(DTYPES)}"
        )
    return {
        "function": query.function,
        "options": {name: _plain(value) for name, value in complete(query).options.items()},
        "dtype": dtypes[0],
        "network": _model_to_json(step.net),
        **optimiser_to_json(step.adam, step.params),
        "state": {"step": step.state.step, "m": _lists(step.state.m), "v": _lists(step.state.v)},
        "params": _lists(step.params),
        "train": {"x": step.train.x.tolist(), "y": step.train.y.tolist()},
        "valid": {"x": step.valid.x.tolist(), "y": step.valid.y.tolist()},
        "reduction": step.reduction,
    }


def _model_to_json(model: Model) -> Json:
    # Not written for perceptrons: readers of version 1 do not know this name.
    kind = {} if model.kind == PERCEPTRON else {"kind": model.kind}
    return kind | kind_of(model).to_json(model)


def complete(query: Query) -> Query:
    """Return the call with all options, those not given at the contract's default."""
    if query.function == CAPTURES:
        return query
    parameters = inspect.signature(getattr(reference, query.function)).parameters
    names = option_names(query.function, query.options)
    defaults = {
        name: parameters[name].default
        for name in names
        if name in parameters and parameters[name].default is not inspect.Parameter.empty
    }
    whole = defaults | dict(query.options)
    if query.function == "scores":
        whole["nodes"] = Query("scores", whole).estimator.nodes
    return Query(query.function, whole)


def option_names(function: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a call's options.

    Those of `scores` include `kind` only with the slope "two_term", and `micro_batch`, which the oracle lacks, only if
    it is given. `clip_each` is the oracle's own: the kit's game holds the clipping factor. So is `contraction`, on
    which no answer depends.
    """
    names = tuple(inspect.signature(getattr(reference, function)).parameters)[1:]
    names = tuple(name for name in names if name not in ("clip_each", "contraction"))
    if function != "scores":
        return names
    if options.get("slope") != TWO_TERM:
        names = tuple(name for name in names if name != "kind")
    return (*names, "micro_batch") if "micro_batch" in options else names


def answer_to_json(answer: Mapping[str, Array]) -> Json:
    """Return named arrays as nested lists."""
    return _lists(answer)


def dumps(value: Any) -> str:
    """Return compact JSON on one line; refuse NaN and infinity, which JSON lacks."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _lists(arrays: Mapping[str, Array]) -> Json:
    return {name: np.asarray(array).tolist() for name, array in arrays.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _lists(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


# --- from JSON -------------------------------------------------------------------------------------------------------


def case_from_json(value: Any, where: str = "case") -> tuple[Step, Query]:
    """Return the step and the call that `value` describes.

    Labels are int64, real arrays have the dtype that the case names.

    Raises
    ------
    CaseError
        `value` is not a case; the message begins with `where`.
    """
    try:
        given = object_with("case", value, _names_in(value))
        dtype = one_of("dtype", given["dtype"], DTYPES)
        state = object_with("state", given["state"], ("step", "m", "v"))
        model = _model_from_json(given["network"])
        step = Step(
            model,
            _arrays("params", given["params"], dtype),
            optimiser_from_json(given),
            AdamState(state["step"], _arrays("state.m", state["m"], dtype), _arrays("state.v", state["v"], dtype)),
            _batch("train", given["train"], model, dtype),
            _batch("valid", given["valid"], model, dtype),
            given["reduction"],
        )
        return step, _query(given["function"], given["options"], step, dtype)
    except (ValueError, TypeError) as error:
        raise CaseError(f"{where}: {error}") from error


def _names_in(value: Any) -> tuple[str, ...]:
    """Return the names of a case: with ``"optimizer"`` in place of ``"adam"`` if `value` has it."""
    with_parts = isinstance(value, dict) and "optimizer" in value
    return tuple("optimizer" if with_parts and name == "adam" else name for name in CASE)


def _model_from_json(value: Any) -> Model:
    if not isinstance(value, dict) or "kind" not in value:
        return kind_named(PERCEPTRON).from_json(value)
    rest = {name: part for name, part in value.items() if name != "kind"}
    return kind_named(value["kind"]).from_json(rest)


def answer_from_json(value: Any, where: str = "answer") -> Answer:
    """Return the named arrays, in float64, that `value` describes; NaN and infinity are accepted.

    Raises
    ------
    CaseError
        `value` is not an answer; the message begins with `where`.
    """
    try:
        if not isinstance(value, dict) or not value:
            refuse("answer", brief(value), "an object from names to numbers", TypeError)
        return {name: _numbers(name, numbers, "float64") for name, numbers in value.items()}
    except (ValueError, TypeError) as error:
        raise CaseError(f"{where}: {error}") from error


def loads(text: str, where: str) -> Any:
    """Return the value of JSON `text`; refuse NaN, infinity, and repeated names in an object.

    Raises
    ------
    CaseError
        `text` is not such JSON; the message begins with `where`.
    """

    def not_finite(name: str) -> NoReturn:
        raise CaseError(f"{where}: got {name}, which is not JSON; needs finite numbers")

    def once(pairs: list[tuple[str, Any]]) -> Json:
        try:
            return object_of_pairs(pairs)
        except ValueError as error:
            raise CaseError(f"{where}: {error}") from None

    try:
        return json.loads(text, parse_int=whole_number, parse_constant=not_finite, object_pairs_hook=once)
    except (json.JSONDecodeError, RecursionError) as error:
        raise CaseError(f"{where}: is not JSON: {error}") from error


def object_of_pairs(pairs: list[tuple[str, Any]]) -> Json:
    """Return an object's names and values, as `json` reads them, as a dict.

    Raises
    ------
    ValueError
        A name is repeated.
    """
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"got a name twice among {[name for name, _ in pairs]}; needs each once")
    return dict(pairs)


def whole_number(text: str) -> int | float:
    """Return digits without a point as an int, or as a float if they may exceed int64: JavaScript writes 1e20 so."""
    return int(text) if len(text) <= 18 else float(text)


def _arrays(field: str, value: Any, dtype: str) -> Params:
    if not isinstance(value, dict):
        refuse(field, brief(value), "an object from parameter names to numbers", TypeError)
    return {name: _numbers(f"{field}[{name!r}]", numbers, dtype) for name, numbers in value.items()}


def _batch(field: str, value: Any, model: Model, dtype: str) -> Batch:
    given = object_with(field, value, ("x", "y"))
    batch = Batch(*(_numbers(f"{field}.{name}", given[name]) for name in ("x", "y")))
    real = real_parts(model, batch)
    return Batch(*(part.astype(dtype) if name in real else part for name, part in (("x", batch.x), ("y", batch.y))))


def _numbers(field: str, value: Any, dtype: str | None = None) -> Array:
    needs = "a number, or lists of numbers nested evenly"
    try:
        array = np.array(value)
    except ValueError:
        refuse(field, "lists of uneven length", needs)
    if array.dtype.kind not in "iuf":
        refuse(field, brief(value), needs, TypeError)
    return array if dtype is None else array.astype(dtype)


def _true_or_false(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        refuse(name, brief(value), "true or false", TypeError)
    return value


def _choice(choices: tuple[str, ...]) -> Callable[[str, Any], str]:
    return lambda name, value: one_of(name, value, choices)


def _nodes(value: Any) -> tuple[int, int]:
    if value is None:  # a file states every option
        refuse("nodes", "null", "two integers [path, normal]", TypeError)
    return quadrature_nodes(value, "")


_OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "kind": _choice(MARGINALS),
    "loss": _choice(MARGINAL_LOSSES),
    "permutations": positive_integer,
    "micro_batch": positive_integer,
    "seed": lambda name, value: positive_integer(name, value, minimum=0),
    "slope": _choice(SCORE_SLOPES),
    "gradient": _choice(GRADIENTS),
    "denominator": _choice(DENOMINATORS),
    "efficient": _true_or_false,
    "per_validation": _true_or_false,
    "nodes": lambda name, value: _nodes(value),
}


def _query(function: Any, options: Any, step: Step, dtype: str) -> Query:
    if one_of("function", function, (*FUNCTIONS, CAPTURES)) == CAPTURES:
        directions = object_with("options", options, ("directions",))["directions"]
        object_with("options.directions", directions, tuple(step.params))
        return Query(
            CAPTURES,
            {
                "directions": named_arrays(
                    "options.directions", _arrays("options.directions", directions, dtype), step.net.shapes
                )
            },
        )
    given = object_with("options", options, option_names(function, options if isinstance(options, dict) else {}))
    return Query(
        function,
        {
            name: coalition_mask(np.array(value), step.n) if name == "coalition" else _OPTIONS[name](name, value)
            for name, value in given.items()
        },
    )
