"""Candidates: how they are loaded and called. Every answer is returned as named NumPy arrays.

A candidate is any object or module with some of the functions of `FUNCTIONS`, with the oracle's signatures. Missing
functions are not tested. A function may raise ``NotImplementedError("reason")`` for an unsupported case; such cases are
skipped, and the reason is reported. Two options of `scores` are only tried if its signature names them:
``micro_batch``, and ``kind``, which goes with the slope "two_term". Stacks of layers are only tried if its attribute
``SUPPORTS`` names the kinds of layers that it takes: ``SUPPORTS = ("linear", "embedding")``, or ``("sequential",)`` for
all of them.

``SUPPORTS`` also names the features of optimisers that a candidate takes beyond one `Adam`: "groups" (`AdamGroups`),
"schedule" (`Schedule`), "clip" (`Clipped`) and "l2" (``Adam.l2``). ``step.adam`` is then one of these descriptions, and
``step.settings(name)`` has η, β1, β2, ε, ε_root, λ and λ₂ of one parameter at the step's t. "auto" says that `scores`
takes this slope.

One more function, `captures`, has nothing to do with Adam. It returns what scores are computed from, for each parameter
by itself, so that a report can say which layer is wrong::

    def captures(params, batch, *, model, directions): ...

with ``{"sum": Σ_i x_i, "dot": ⟨directions[name], x_i⟩ of shape (n,), "squares": Σ_i x_i²}`` for each parameter name.
x_i is the gradient of sample i's own loss, without the factor 1/n that reduction "mean" gives it in a step.
"""

import importlib
import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adamshap.reference.contract import AdamState, Array, Estimator, Marginals, Step
from adamshap.verify.foreign.insulation import Insulation, RaisedInterrupt, kept_random_state
from adamshap.verify.foreign.text import described, message_of, printable
from adamshap.verify.foreign.time_limit import TimeIsUp, time_limit
from adamshap.verify.given import READ_ONLY, Given, arrays_of
from adamshap.verify.models.sequential import declared_layers

FUNCTIONS = ("update", "utility", "marginals", "scores", "influence")
"""The functions of a step."""

CAPTURES = "captures"
"""The function of parameters and a batch."""

CAPTURED = ("sum", "dot", "squares")
"""What `captures` returns for each parameter."""

ENTRY_POINTS = "adamshap.implementations"

EXTRAS = ("micro_batch", "kind")
"""Options of `scores` that an implementation declares by its signature."""

Answer = dict[str, Array]
"""Named arrays: ``values`` for most functions; ``params.NAME``, ``m.NAME``, ``v.NAME`` and ``step`` for `update`;
``sum.NAME``, ``dot.NAME`` and ``squares.NAME`` for `captures`."""


@dataclass(frozen=True)
class Query:
    """One call.

    Parameters
    ----------
    function : str
        One of `FUNCTIONS`, or `CAPTURES`.
    options : dict
        Its keyword arguments besides the step, or besides the model.
    layout : str
        How the step's arrays lie in memory: one of `given.LAYOUTS`. No answer depends on it.
    """

    function: str
    options: Mapping[str, Any] = field(default_factory=dict)
    layout: str = READ_ONLY

    @property
    def estimator(self) -> Estimator:
        """The estimator of a call of `scores`."""
        return Estimator(**{name: value for name, value in self.options.items() if name != "micro_batch"})

    def in_dtype(self, dtype: npt.DTypeLike) -> "Query":
        """Return the call with its directions in another dtype.

        Parameters
        ----------
        dtype : dtype
            Dtype of the directions of `captures`; other calls stay as they are.

        Returns
        -------
        Query
            Call with the same function and other options.
        """
        if "directions" not in self.options:
            return self
        directions = {name: array.astype(dtype) for name, array in self.options["directions"].items()}
        return Query(self.function, {**self.options, "directions": directions})

    def __str__(self) -> str:
        """Return the call as Python code: ``scores(step, slope='secant')``; without the numbers of directions."""
        if self.function == CAPTURES:
            return "captures(step.params, step.train, model=step.net, directions=...)"
        arguments = "".join(
            f", {name}={value.tolist() if isinstance(value, np.ndarray) else value!r}"
            for name, value in self.options.items()
        )
        return f"{self.function}(step{arguments})"


Ask = Callable[[Step, Query], Any]
"""An implementation as one function, from a step and a call to its result."""


@dataclass(frozen=True)
class Implementation:
    """A candidate.

    Parameters
    ----------
    name : str
        Name in reports.
    offers : frozenset of str
        Its functions among `FUNCTIONS` and `CAPTURES`.
    ask : callable
        Function from a step and a `Query` to the candidate's result.
    extras : frozenset of str
        Options among `EXTRAS` that its `scores` takes.
    supports : frozenset of str
        Kinds of models, besides perceptrons, of layers, and features of optimisers that it takes.
    guard : Guard, optional
        Protection of the kit from its side effects. None if it cannot do harm: it runs in another process, or is the
        kit's own.
    """

    name: str
    offers: frozenset[str]
    ask: Ask
    extras: frozenset[str] = frozenset()
    supports: frozenset[str] = frozenset()
    guard: "Guard | None" = field(default_factory=lambda: Guard(), repr=False, compare=False)

    @property
    def layers(self) -> frozenset[str]:
        """The kinds of layers in the stacks that it takes."""
        return declared_layers(self.supports)


class LoadError(Exception):
    """The candidate could not be found, or offers nothing."""


class Unsupported(Exception):
    """The candidate does not support this case."""

    def __str__(self) -> str:
        return printable(super().__str__())


class Misbehaviour(Exception):
    """The candidate raised, or returned an invalid answer; the message is a predicate: ``raised ValueError``."""

    def __str__(self) -> str:
        return printable(super().__str__())


class Lost(Misbehaviour):
    """The candidate gave no answer at all: its process ended, or was ended."""


class Hung(Lost):
    """The candidate gave no answer in time."""


class KitError(Exception):
    """The kit itself failed on a case; the candidate may be right or wrong."""

    def __str__(self) -> str:
        return printable(super().__str__())


class Guard:
    """Protects the kit from one candidate's side effects, and remembers the candidate's last inputs."""

    REMEMBERED = 8

    def __init__(self) -> None:
        self.insulation = Insulation()
        self._earlier: deque[Given] = deque(maxlen=self.REMEMBERED)
        self._returned: deque[list[tuple[Array, bytes]]] = deque(maxlen=self.REMEMBERED)

    def check_inputs(self, given: Given) -> None:
        """Check that the candidate has not changed its inputs, of the call that has just ended or of earlier ones.

        Parameters
        ----------
        given : Given
            Inputs of the call; remembered for later checks.

        Raises
        ------
        Misbehaviour
            The candidate changed them.
        """
        if part := given.changed():
            raise Misbehaviour(f"changed its input: {part}")
        for earlier in self._earlier:
            if part := earlier.changed():
                self._earlier.clear()  # reported once
                raise Misbehaviour(f"changed the input of an earlier call: {part}")
        self._earlier.append(given)

    def check_results(self, result: Any) -> None:
        """Check that the candidate has not changed an array that an earlier call returned.

        Parameters
        ----------
        result : object
            Result of the call that has just ended; its arrays are remembered for later checks.

        Raises
        ------
        Misbehaviour
            The candidate changed one, such as a buffer that every call returns.
        """
        for arrays in self._returned:
            if any(array.tobytes() != then for array, then in arrays):
                self._returned.clear()  # reported once
                raise Misbehaviour("changed the result of an earlier call")
        self._returned.append([(array, array.tobytes()) for array in _arrays_in(result)])


def _arrays_in(result: Any) -> Iterator[Array]:
    """Yield the NumPy arrays in a result of the contract's types."""
    if type(result) is np.ndarray:
        yield result
    elif isinstance(result, Marginals):
        yield from _arrays_in(result.values)
    elif isinstance(result, AdamState):
        yield from _arrays_in((result.m, result.v))
    elif type(result) is tuple:
        for part in result:
            yield from _arrays_in(part)
    elif type(result) is dict:
        yield from _arrays_in(tuple(result.values()))


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
        The object or module, by `implementation`.

    Raises
    ------
    LoadError
        It cannot be imported, or has none of `FUNCTIONS`.
    """
    points = named_entry_points()
    guard = Guard()
    try:
        with kept_random_state(), guard.insulation.around():
            loaded = implementation(_find(target, points), target)
    except (LoadError, KeyboardInterrupt):
        raise
    except BaseException as error:
        known = f"; entry points: {', '.join(sorted(points))}" if points else ""
        raise LoadError(printable(f"cannot load {target!r}: {described(error)}{known}")) from error
    return replace(loaded, guard=guard) if loaded.guard is not None else loaded


def named_entry_points() -> dict[str, EntryPoint]:
    """Return the entry points of the group ``adamshap.implementations`` by name.

    Returns
    -------
    dict of EntryPoint
        Entry points of all installed packages.
    """
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _find(target: str, points: Mapping[str, EntryPoint]) -> Any:
    if target in points:
        return points[target].load()
    module, _, attribute = target.partition(":")
    _refuse_path(target, module)
    candidate = importlib.import_module(module)
    for name in filter(None, attribute.split(".")):
        candidate = getattr(candidate, name)
    return candidate


def _refuse_path(target: str, module: str) -> None:
    """Refuse the path of a file or folder, and any other text that is not a module's name."""
    is_file = module.endswith(".py") and Path(module).is_file()
    if all(map(str.isidentifier, module.split("."))) and not is_file:
        return
    parts = [part for part in Path(module.removesuffix(".py")).parts if part not in ("/", ".", "..")]
    name = ".".join(parts) if all(map(str.isidentifier, parts)) else ""
    example = f": {name}, from the folder that holds it" if name else ""
    raise LoadError(printable(f"cannot load {target!r}: needs the name of a module, as in import{example}"))


def implementation(candidate: Any, name: str) -> Implementation:
    """Return any object or module as an `Implementation`.

    Parameters
    ----------
    candidate : object
        Object with some of `FUNCTIONS` as attributes; an `Implementation` is returned unchanged.
    name : str
        Name in reports.

    Returns
    -------
    Implementation
        The object's functions.

    Raises
    ------
    LoadError
        It has none of `FUNCTIONS`, or is a class whose methods need an instance.
    """
    if isinstance(candidate, Implementation):
        return candidate
    offers = frozenset(name for name in (*FUNCTIONS, CAPTURES) if callable(getattr(candidate, name, None)))
    if not offers:
        raise LoadError(f"{name!r} has none of the functions {', '.join(FUNCTIONS)}")
    if isinstance(candidate, type) and any(_needs_instance(getattr(candidate, function)) for function in offers):
        raise LoadError(
            f"{name!r} is a class, whose methods need an instance; needs the name of one, such as mine, after"
            f" mine = {candidate.__name__}() in the module"
        )

    def ask(step: Step, query: Query) -> Any:
        if query.function == CAPTURES:
            return candidate.captures(step.params, step.train, model=step.net, **query.options)
        return getattr(candidate, query.function)(step, **query.options)

    return Implementation(name, offers, ask, _extras(getattr(candidate, "scores", None)), _supports(candidate))


def _needs_instance(function: Any) -> bool:
    """Return whether an attribute of a class takes the instance as its first argument."""
    try:
        return list(inspect.signature(function).parameters)[:1] == ["self"]
    except (TypeError, ValueError):
        return False


def _extras(scores: Any) -> frozenset[str]:
    """Return the names of `EXTRAS` among a function's parameters; ``**options`` names none."""
    try:
        return frozenset(EXTRAS) & frozenset(inspect.signature(scores).parameters)
    except (TypeError, ValueError):  # not a function, or one without a readable signature
        return frozenset()


def _supports(candidate: Any) -> frozenset[str]:
    """Return the names in the attribute ``SUPPORTS``; a text is one name."""
    declared = getattr(candidate, "SUPPORTS", ())
    return frozenset((declared,) if isinstance(declared, str) else map(str, declared))


def answer(candidate: Implementation, step: Step, query: Query, timeout: float | None = None) -> Answer:
    """Call the candidate and return its validated answer.

    Parameters
    ----------
    candidate : Implementation
    step : Step
    query : Query
    timeout : float, optional
        Time limit of the call, in seconds.

    Returns
    -------
    dict of arrays
        Arrays in float64: ``values``, or for `update` ``params.NAME``, ``m.NAME``, ``v.NAME`` and ``step``.

    Raises
    ------
    Unsupported
        The candidate does not offer the function, or raised ``NotImplementedError``.
    Misbehaviour
        The candidate raised anything else, took longer than `timeout` seconds, changed its input, or returned the wrong
        type, shape or dtype, NaN, or a view of its input.
    """
    if query.function not in candidate.offers:
        raise Unsupported(f"{query.function} is not offered")
    if candidate.guard is None:
        return _caught(lambda: _named(query, step, candidate.ask(step, query), []))
    guard, given = candidate.guard, Given.of(step, query.options, query.layout)
    inputs = [*arrays_of(given.step), *given.options.get("directions", {}).values()]

    def call() -> Answer:
        try:
            result = candidate.ask(given.step, Query(query.function, given.options, query.layout))
        except Misbehaviour as error:  # the kit's own exception, raised by the candidate
            raise Misbehaviour(f"raised {described(error)}") from None
        named = _named(query, step, result, inputs)  # within the guard, since it uses the candidate's objects
        guard.check_results(result)
        return named

    try:
        with guard.insulation.around(), time_limit(timeout):
            try:
                named = _caught(call)
            except Misbehaviour as error:
                if part := given.changed():  # the likely cause
                    raise Misbehaviour(f"changed its input: {part}; then it {error}") from error
                raise
            guard.check_inputs(given)
    except TimeIsUp:
        raise Hung(f"gave no answer within {timeout:g} s") from None
    except RaisedInterrupt as error:
        raise Misbehaviour(f"raised {described(error)}") from None
    return named


def _caught(call: Callable[[], Answer]) -> Answer:
    """Return the result of `call`; convert its exceptions to the kit's."""
    try:
        return call()
    except NotImplementedError as error:
        raise Unsupported(message_of(error) or "not implemented") from error
    except (Misbehaviour, TimeIsUp, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Misbehaviour(f"raised {described(error)}") from error


def _named(query: Query, step: Step, result: Any, inputs: list[Array]) -> Answer:
    """Return the validated result of a call under the names of `Answer`, as copies."""
    if inspect.iscoroutine(result):
        result.close()  # or Python would warn that it was never awaited
        raise Misbehaviour("returned a coroutine: a function must not be async")
    if query.function == "update":
        return _named_update(step, result, inputs)
    if query.function == CAPTURES:
        return _named_captures(step, result, inputs)
    shape: tuple[int, ...] = (step.n,)
    if query.function == "utility":
        shape = ()
    elif query.function == "scores" and query.options.get("per_validation"):
        shape = (step.n, step.n_val)
    if isinstance(result, Marginals):
        scalars = {"empty": result.empty, "total": result.total}
        return {"values": _array("values", result.values, shape, inputs)} | {
            name: _array(name, value, (), inputs) for name, value in scalars.items()
        }
    return {"values": _array("values", result, shape, inputs)}


def _named_update(step: Step, result: Any, inputs: list[Array]) -> Answer:
    try:
        params, state = result
    except (TypeError, ValueError):
        raise Misbehaviour(f"returned {type(result).__name__} from update, not (params, state)") from None
    if not isinstance(state, AdamState):
        raise Misbehaviour(f"returned a {type(state).__name__} for the state, not an AdamState")
    named = {"step": _array("step", state.step, (), inputs)}
    for kind, group in (("params", params), ("m", state.m), ("v", state.v)):
        if not isinstance(group, Mapping) or set(group) != set(step.params):
            raise Misbehaviour(f"returned {kind} without exactly the names {list(step.params)}")
        for name, p in step.params.items():
            named[f"{kind}.{name}"] = _array(f"{kind}.{name}", group[name], p.shape, inputs)
    return named


def _named_captures(step: Step, result: Any, inputs: list[Array]) -> Answer:
    if not isinstance(result, Mapping) or set(result) != set(step.params):
        raise Misbehaviour(f"returned captures without exactly the names {list(step.params)}")
    named = {}
    for name, p in step.params.items():
        if not isinstance(result[name], Mapping) or set(result[name]) != set(CAPTURED):
            raise Misbehaviour(f"returned captures of {name} without exactly the names {list(CAPTURED)}")
        for what in CAPTURED:
            shape = (step.n,) if what == "dot" else p.shape
            named[f"{what}.{name}"] = _array(f"{what}.{name}", result[name][what], shape, inputs)
    return named


def _array(name: str, value: Any, shape: tuple[int, ...], inputs: list[Array]) -> Array:
    """Return a copy of `value` as an array in float64."""
    try:
        array = np.asarray(value)
    except Exception as error:
        text = f"returned {name} as a {type(value).__name__}, which is not a NumPy array ({described(error)})"
        raise Misbehaviour(text) from error
    if array.dtype.kind == "O":
        raise Misbehaviour(f"returned {name} as a {type(value).__name__}, which is not an array of numbers")
    if array.shape != shape:
        raise Misbehaviour(f"returned {name} of shape {array.shape}, not {shape}")
    if array.dtype.kind not in "fiu":
        raise Misbehaviour(f"returned {name} of dtype {array.dtype}, which is not a dtype of real numbers")
    if isinstance(value, np.ma.MaskedArray) and (masked := np.count_nonzero(np.ma.getmaskarray(value))):
        raise Misbehaviour(f"returned {name} with {masked} masked values")
    # Nobody else uses the memory of the inputs: any array within the bounds of one is a view of it.
    if any(np.may_share_memory(array, given) for given in inputs):
        raise Misbehaviour(f"returned {name} as a view of its input, which a later step would change")
    with np.errstate(over="ignore"):
        numbers: Array = np.array(array, dtype=np.float64)  # a wider dtype may overflow
    if not np.isfinite(numbers).all():
        raise Misbehaviour(f"returned {name} with {np.count_nonzero(~np.isfinite(numbers))} values NaN or infinite")
    return numbers
