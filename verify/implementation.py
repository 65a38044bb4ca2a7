"""What a candidate offers, how it is found, and how it is asked: every answer comes back as named NumPy arrays.

A candidate is any object or module with some of the functions of `FUNCTIONS`, of the oracle's signatures. What it lacks
is not offered and not tested. A function may raise ``NotImplementedError("reason")`` for what it does not support; such
cases are left out, and the reason is reported. Two options of `scores` are tried only where its signature names them:
``micro_batch``, and ``kind``, which goes with the slope "two_term".
"""

import importlib
import inspect
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from adamshap.reference.problem import AdamState, Array, Marginals, Step

FUNCTIONS = ("update", "utility", "marginals", "scores", "influence")
ENTRY_POINTS = "adamshap.implementations"

EXTRAS = ("micro_batch", "kind")
"""Options of `scores` that an implementation says by its signature that it has."""

Answer = dict[str, Array]
"""Named arrays: ``values`` for most functions; ``params.NAME``, ``m.NAME``, ``v.NAME`` and ``step`` for `update`."""


@dataclass(frozen=True)
class Query:
    """One call.

    Parameters
    ----------
    function : str
        One of `FUNCTIONS`.
    options : dict
        Its keyword arguments beside the step.
    """

    function: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the call as it is written: ``scores(step, slope='secant')``."""
        arguments = "".join(
            f", {name}={value.tolist() if isinstance(value, np.ndarray) else value!r}"
            for name, value in self.options.items()
        )
        return f"{self.function}(step{arguments})"


Ask = Callable[[Step, Query], Any]
"""An implementation as one function: what it returns for a call."""


@dataclass(frozen=True)
class Implementation:
    """A candidate.

    Parameters
    ----------
    name : str
        For reports.
    offers : frozenset of str
        Those of `FUNCTIONS` that it has.
    ask : callable
        From a step and a `Query` to what the candidate returns for it.
    extras : frozenset of str
        Those of `EXTRAS` that its `scores` takes.
    """

    name: str
    offers: frozenset[str]
    ask: Ask
    extras: frozenset[str] = frozenset()


class LoadError(Exception):
    """The candidate could not be found, or offers nothing."""


class Unsupported(Exception):
    """The candidate says that it does not do this."""


class Misbehaviour(Exception):
    """The candidate raised, hung, or returned what is no answer; the message is a sentence about it."""


def load(target: str) -> Implementation:
    """Return the implementation that `target` names.

    Parameters
    ----------
    target : str
        ``package.module``, ``package.module:object``, or the name of an entry point of the group
        ``adamshap.implementations``.

    Returns
    -------
    Implementation
        What `implementation` makes of it.

    Raises
    ------
    LoadError
    """
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    try:
        if target in points:
            candidate = points[target].load()
        else:
            module, _, attribute = target.partition(":")
            candidate = importlib.import_module(module)
            for name in filter(None, attribute.split(".")):
                candidate = getattr(candidate, name)
    except Exception as error:
        known = f"; entry points: {', '.join(sorted(points))}" if points else ""
        raise LoadError(f"cannot load {target!r}: {type(error).__name__}: {error}{known}") from error
    return implementation(candidate, target)


def implementation(candidate: Any, name: str) -> Implementation:
    """Return any object or module as an `Implementation`.

    Parameters
    ----------
    candidate : object
        With some of `FUNCTIONS` as attributes; an `Implementation` is returned as it is.
    name : str
        For reports.

    Returns
    -------
    Implementation
        Which offers what the object has.

    Raises
    ------
    LoadError
        Where it has none of `FUNCTIONS`.
    """
    if isinstance(candidate, Implementation):
        return candidate
    offers = frozenset(function for function in FUNCTIONS if callable(getattr(candidate, function, None)))
    if not offers:
        raise LoadError(f"{name!r} has none of the functions {', '.join(FUNCTIONS)}")

    def ask(step: Step, query: Query) -> Any:
        return getattr(candidate, query.function)(step, **query.options)

    return Implementation(name, offers, ask, _extras(getattr(candidate, "scores", None)))


def _extras(scores: Any) -> frozenset[str]:
    """Return which of `EXTRAS` a function names among its parameters; ``**options`` names none."""
    try:
        return frozenset(EXTRAS) & frozenset(inspect.signature(scores).parameters)
    except (TypeError, ValueError):  # no function, or one whose signature Python cannot tell
        return frozenset()


def answer(candidate: Implementation, step: Step, query: Query, timeout: float | None = None) -> Answer:
    """Put `query` to `candidate`, and return its answer once it is known to be one.

    Parameters
    ----------
    candidate : Implementation
    step : Step
    query : Query
    timeout : float, optional
        Seconds that the call may take.

    Returns
    -------
    dict of arrays
        In float64: ``values``, or for `update` ``params.NAME``, ``m.NAME``, ``v.NAME`` and ``step``.

    Raises
    ------
    Unsupported
        Where the candidate does not offer the function, or says so by ``NotImplementedError``.
    Misbehaviour
        Where it raised something else, took longer than `timeout` seconds, changed its input, or returned the wrong
        type, shape or dtype, NaN, or a view of its input.
    """
    if query.function not in candidate.offers:
        raise Unsupported(f"{query.function} is not offered")
    inputs = arrays_of(step)
    before = [array.copy() for array in inputs]
    try:
        with _time_limit(timeout):
            result = candidate.ask(step, query)
    except NotImplementedError as error:
        raise Unsupported(str(error) or "not implemented") from error
    except Misbehaviour:
        raise
    except Exception as error:
        raise Misbehaviour(f"raised {type(error).__name__}: {error}") from error
    if any(not np.array_equal(array, copy) for array, copy in zip(inputs, before, strict=True)):
        raise Misbehaviour("changed its input")
    named = _named(query, step, result)
    for name, array in named.items():
        if array.dtype.kind not in "fiu":
            raise Misbehaviour(f"returned {name} of dtype {array.dtype}, which is no real number")
        if not np.isfinite(array).all():
            raise Misbehaviour(f"returned {name} with {np.count_nonzero(~np.isfinite(array))} values NaN or infinite")
        if any(np.shares_memory(array, given) for given in inputs):
            raise Misbehaviour(f"returned {name} as a view of its input, which a later step would change")
    return {name: array.astype(np.float64) for name, array in named.items()}


def arrays_of(step: Step) -> list[Array]:
    """Return every array in a step.

    Parameters
    ----------
    step : Step

    Returns
    -------
    list of arrays
        Parameters, moments, then the batches' x and y.
    """
    groups = (step.params, step.state.m, step.state.v)
    batches = [array for batch in (step.train, step.valid) for array in (batch.x, batch.y)]
    return [array for group in groups for array in group.values()] + batches


def _named(query: Query, step: Step, result: Any) -> Answer:
    """Return the result of a call under the names of `Answer`, its shapes checked."""
    if query.function == "update":
        return _named_update(step, result)
    shape: tuple[int, ...] = (step.n,)
    if query.function == "utility":
        shape = ()
    elif query.function == "scores" and query.options.get("per_validation"):
        shape = (step.n, step.n_val)
    if isinstance(result, Marginals):
        scalars = {"empty": result.empty, "total": result.total}
        return {"values": _array("values", result.values, shape)} | {
            name: _array(name, value, ()) for name, value in scalars.items()
        }
    return {"values": _array("values", result, shape)}


def _named_update(step: Step, result: Any) -> Answer:
    try:
        params, state = result
    except (TypeError, ValueError):
        raise Misbehaviour(f"returned {type(result).__name__} from update, not (params, state)") from None
    if not isinstance(state, AdamState):
        raise Misbehaviour(f"returned a {type(state).__name__} for the state, not an AdamState")
    named = {"step": np.asarray(state.step)}
    for kind, group in (("params", params), ("m", state.m), ("v", state.v)):
        if not isinstance(group, Mapping) or set(group) != set(step.params):
            raise Misbehaviour(f"returned {kind} without exactly the names {list(step.params)}")
        for name, p in step.params.items():
            named[f"{kind}.{name}"] = _array(f"{kind}.{name}", group[name], p.shape)
    return named


def _array(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    try:
        array = np.asarray(value)
    except Exception as error:
        raise Misbehaviour(f"returned {name} as a {type(value).__name__}, which is no NumPy array ({error})") from error
    if array.shape != shape:
        raise Misbehaviour(f"returned {name} of shape {array.shape}, not {shape}")
    return array


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Interrupt the block after `seconds`, where the platform can (a main thread, POSIX); Python code only."""
    if seconds is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Misbehaviour(f"gave no answer within {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
