"""A failing case as a few runnable lines: Python with plain arrays and the call, or shell for a command."""

import numpy as np

from adamshap.reference.contract import Array, Batch, Sequential, Step
from adamshap.verify.cases import case_to_json, dumps
from adamshap.verify.implementation import CAPTURES, Query, named_entry_points
from adamshap.verify.models.sequential import each_layer
from adamshap.verify.properties import Case

LONGEST = 2000
"""Largest number of numbers in a step that is written out."""


def snippet(case: Case, target: str) -> str:
    """Return Python code that builds the step of `case` and calls `target` and the oracle with it.

    For a command with ``{case}`` and ``{result}``, return shell code that runs it on the case.
    """
    step, query = case.step, case.query
    of_captures = query.function == CAPTURES
    count = sum(a.size for a in (*step.params.values(), step.train.x, step.valid.x))
    if count > LONGEST:
        return f"# {count} numbers: too long to write out; run the property again with the same seed and profile"
    if "{case}" in target:
        command = target.replace("{case}", "case.json").replace("{result}", "result.json")
        given = dumps([case_to_json(step, query)])
        return f"cat > case.json <<'END'\n{given}\nEND\n{command}\ncat result.json"
    point = named_entry_points().get(target)
    module, _, name = target.partition(":") if point is None else (point.module, ":", point.attr or "")
    dtypes = sorted({str(a.dtype) for a in step.params.values()})
    lines = [
        "import numpy as np",
        "",
        f"from adamshap{'.verify.layers.captures import captures' if of_captures else ' import reference'}",
        f"from adamshap.reference import {', '.join(_types(step))}",
        f"import {module} as candidate  # arrays below are {', '.join(dtypes)}",
        "",
        f"params = {_arrays(step.params)}",
        f"m = {_arrays(step.state.m)}",
        f"v = {_arrays(step.state.v)}",
        "step = Step(",
        f"    {step.net!r},",
        "    params,",
        f"    {step.adam!r},",
        f"    AdamState({step.state.step}, m, v),",
        f"    train={_batch(step.train)},",
        f"    valid={_batch(step.valid)},",
        f"    reduction={step.reduction!r},",
        ")",
        f"print(candidate{'.' + name if name else ''}.{call(query)})",
        f"print({'' if of_captures else 'reference.'}{call(query)})",
    ]
    return "\n".join(lines)


def _types(step: Step) -> list[str]:
    """Return the names of the classes that the code needs."""
    layers = each_layer(step.net) if isinstance(step.net, Sequential) else []
    return sorted({"Adam", "AdamState", "Batch", "Step", *(type(one).__name__ for one in (step.net, *layers))})


def call(query: Query) -> str:
    """Return the call as code: ``scores(step, slope='secant')``."""
    if query.function == CAPTURES:
        directions = _arrays(query.options["directions"])
        return f"captures(step.params, step.train, model=step.net, directions={directions})"
    arguments = [
        f"{name}={_array(value) if isinstance(value, np.ndarray) else repr(value)}"
        for name, value in query.options.items()
    ]
    return f"{query.function}({', '.join(['step', *arguments])})"


def _arrays(arrays: dict[str, Array]) -> str:
    return "{" + ", ".join(f"{name!r}: {_array(array)}" for name, array in arrays.items()) + "}"


def _batch(batch: Batch) -> str:
    return f"Batch({_array(batch.x)}, {_array(batch.y)})"


def _array(array: Array) -> str:
    return f"np.array({array.tolist()!r}, dtype={array.dtype.name!r})"
