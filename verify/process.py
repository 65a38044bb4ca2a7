"""A candidate in any language: a command that reads a file of cases and writes a file of answers.

In the command, for instance ``./mine {case} {result}``, ``{case}`` becomes the path of a JSON file with a list of cases
(`cases` tells what a case is), and ``{result}`` the path where it must write a JSON list of as many answers in the same
order. Each is an object, one of

- the named numbers of the answer: ``values``, for `marginals` ``empty`` and ``total`` too if it has them; for `update`
  ``step``, and ``params.NAME``, ``m.NAME``, ``v.NAME`` for every parameter;
- ``{"unsupported": "reason"}``: the case is left out, and the reason reported;
- ``{"error": "message"}``: a finding.

It is run without a shell. One process answers many cases: which ones a property will try follows from the seed, so the
oracle stands in for the candidate first, the cases are written down, and one process answers them all. Only while a
failing case is made smaller does each case need a process of its own.
"""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adamshap.reference.problem import AdamState, Marginals, Step
from adamshap.verify.cases import CaseError, answer_from_json, case_to_json, dumps, whole_number
from adamshap.verify.checking import Finding, Outcome, check
from adamshap.verify.implementation import (
    FUNCTIONS,
    Answer,
    Implementation,
    LoadError,
    Misbehaviour,
    Query,
)
from adamshap.verify.oracle import ORACLE
from adamshap.verify.properties import Case, Property

PLACES = ("{case}", "{result}")

TAIL = 600
"""Characters of what a failed process last printed that are shown."""


def check_command(
    command: str,
    properties: Iterable[Property],
    *,
    profile: str = "quick",
    dtype: npt.DTypeLike = np.float64,
    seed: int = 0,
    timeout: float = 60.0,
    shrink_seconds: float = 10.0,
    extras: frozenset[str] = frozenset(),
) -> tuple[Implementation, list[Outcome]]:
    """Return `command` as an implementation, and the outcome of each property; as `checking.check`.

    Parameters
    ----------
    command : str
        With ``{case}`` and ``{result}``.
    timeout : float
        Seconds that one process may take, for all the cases of a property.
    extras : frozenset of str
        Those of `implementation.EXTRAS` that the command has.

    Raises
    ------
    LoadError
        Where the command cannot be run at all.
    """
    candidate = CommandCandidate(command, timeout)
    implementation = Implementation(command, frozenset(FUNCTIONS), candidate.ask, extras)
    outcomes = []
    for one in properties:
        asked: list[tuple[Step, Query]] = []

        def record(step: Step, query: Query, asked: list[tuple[Step, Query]] = asked) -> Any:
            asked.append((step, query))
            # The oracle has no micro-batches, and they change nothing.
            options = {name: value for name, value in query.options.items() if name != "micro_batch"}
            return ORACLE.ask(step, Query(query.function, options))

        recorder = Implementation("recorder", frozenset(FUNCTIONS), record, extras)
        check(recorder, [one], profile=profile, dtype=dtype, seed=seed, shrink_seconds=0)
        sentence = candidate.prepare(asked)
        (outcome,) = check(
            implementation,
            [one],
            profile=profile,
            dtype=dtype,
            seed=seed,
            timeout=None,  # the process has its own limit, which ends it and what it started
            shrink_seconds=shrink_seconds,
        )
        if sentence and outcome.status != "failed":
            # Each case alone went well, all of them together did not.
            case = Case(*asked[0])
            finding = Finding(f"{len(asked)} cases in one file, the first {case.query}: the candidate {sentence}", case)
            outcome = replace(outcome, status="failed", finding=finding)
        outcomes.append(outcome)
    return implementation, outcomes


class CommandCandidate:
    """A command, and its answers to the cases that it was given beforehand.

    Parameters
    ----------
    command : str
    timeout : float
        Seconds that one process may take.
    """

    def __init__(self, command: str, timeout: float) -> None:
        try:
            self._arguments = shlex.split(command)
        except ValueError as error:
            raise LoadError(f"cannot read the command {command!r}: {error}") from error
        missing = [place for place in PLACES if not any(place in part for part in self._arguments[1:])]
        if missing:
            raise LoadError(f"the command {command!r} has no {missing[0]}; it needs {' and '.join(PLACES)}")
        if shutil.which(self._arguments[0]) is None:
            raise LoadError(f"cannot run {self._arguments[0]!r}: no such program")
        self._timeout = timeout
        self._replies: dict[bytes, deque[Any]] = {}

    def prepare(self, asked: list[tuple[Step, Query]]) -> str:
        """Have one process answer all of `asked`; return "", or a sentence about what went wrong with it."""
        texts = [dumps(case_to_json(step, query)) for step, query in asked]
        try:
            replies = self._run(texts)
        except Misbehaviour as error:
            return str(error)
        for text, reply in zip(texts, replies, strict=True):
            self._replies.setdefault(_key(text), deque()).append(reply)
        return ""

    def ask(self, step: Step, query: Query) -> Any:
        """Return the command's answer in the contract's types.

        Raises
        ------
        NotImplementedError
            Where the command says that it does not support the case.
        Misbehaviour
        """
        text = dumps(case_to_json(step, query))
        ready = self._replies.get(_key(text))
        if not ready:
            (reply,) = self._run([text])
        else:
            # A case that was asked twice was answered twice; the last answer stays for the diagnosis.
            reply = ready.popleft() if len(ready) > 1 else ready[0]
        return _result(step, query, reply)

    def _run(self, texts: list[str]) -> list[Any]:
        """Return the replies of one process to `texts`, JSON cases."""
        cases = "1 case" if len(texts) == 1 else f"{len(texts)} cases"
        with tempfile.TemporaryDirectory(prefix="adamshap-") as name:
            folder = Path(name)
            paths = {"{case}": folder / "case.json", "{result}": folder / "result.json"}
            paths["{case}"].write_text("[" + ",\n".join(texts) + "]\n", encoding="utf-8")
            arguments = [_placed(part, paths) for part in self._arguments]
            with (folder / "printed").open("w+b") as printed:
                try:
                    status = _wait(arguments, printed.fileno(), self._timeout)
                except subprocess.TimeoutExpired:
                    raise Misbehaviour(
                        f"gave no answer to {cases} within {self._timeout:g} s{_tail(folder / 'printed')}"
                    ) from None
                except OSError as error:
                    raise Misbehaviour(f"could not be started: {error}") from error
            if status:
                raise Misbehaviour(f"{_ended(status)} on {cases}{_tail(folder / 'printed')}")
            try:
                replies = json.loads(paths["{result}"].read_text(encoding="utf-8"), parse_int=whole_number)
            except FileNotFoundError:
                raise Misbehaviour(f"wrote no result file for {cases}{_tail(folder / 'printed')}") from None
            except (OSError, ValueError, RecursionError) as error:
                raise Misbehaviour(f"wrote a result for {cases} that is not JSON: {error}") from error
        if not isinstance(replies, list) or len(replies) != len(texts):
            what = f"a list of {len(replies)}" if isinstance(replies, list) else f"a {type(replies).__name__}"
            raise Misbehaviour(f"wrote {what} for {cases}, not a list of as many answers")
        return replies


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _placed(part: str, paths: dict[str, Path]) -> str:
    for place, path in paths.items():
        part = part.replace(place, str(path))
    return part


def _wait(arguments: list[str], output: int, timeout: float) -> int:
    """Return the exit status of a process; it, and what it started, is ended where it takes longer than `timeout`."""
    process = subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(timeout)
    finally:
        if process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()


def _ended(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


def _tail(printed: Path) -> str:
    text = " ".join(printed.read_bytes()[-TAIL:].decode(errors="replace").split())
    return f"; it printed: {text}" if text else ""


def _result(step: Step, query: Query, reply: Any) -> Any:
    """Return a reply in the types that the contract has for an answer."""
    if isinstance(reply, dict) and set(reply) == {"unsupported"}:
        raise NotImplementedError(str(reply["unsupported"]))
    if isinstance(reply, dict) and set(reply) == {"error"}:
        raise Misbehaviour(f"reported an error: {reply['error']}")
    try:
        named = answer_from_json(reply)
    except CaseError as error:
        raise Misbehaviour(f"returned what is no {error}") from error
    if query.function == "update":
        return _update(step, named)
    wanted = {"values", "empty", "total"} if query.function == "marginals" and len(named) > 1 else {"values"}
    if set(named) != wanted:
        raise Misbehaviour(f"returned the names {', '.join(named)}, not {', '.join(sorted(wanted))}")
    if len(wanted) == 1:
        return named["values"]
    return Marginals(named["values"], named["empty"], named["total"], np.zeros(step.n))  # type: ignore[arg-type]


def _update(step: Step, named: Answer) -> Any:
    wanted = ["step", *(f"{kind}.{name}" for kind in ("params", "m", "v") for name in step.params)]
    if set(named) != set(wanted):
        raise Misbehaviour(f"returned the names {', '.join(named)}, not {', '.join(wanted)}")
    params, m, v = ({name: named[f"{kind}.{name}"] for name in step.params} for kind in ("params", "m", "v"))
    count = named["step"]
    try:
        state = AdamState(int(count) if count.ndim == 0 and count == np.round(count) else count, m, v)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise Misbehaviour(f"returned no state of Adam: {error}") from error
    return params, state
