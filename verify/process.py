"""A candidate in any language: a command that reads a file of cases and writes a file of answers.

In the command, for instance ``./mine {case} {result}``, ``{case}`` becomes the path of a JSON file with a list of cases
(`cases` describes a case), and ``{result}`` the path where it must write a JSON list of as many answers in the same
order. Each answer is an object, one of

- the named numbers of the answer: ``values``, for `marginals` also ``empty`` and ``total`` if available; for `update`
  ``step``, and ``params.NAME``, ``m.NAME``, ``v.NAME`` for every parameter; for `captures` ``sum.NAME``, ``dot.NAME``
  and ``squares.NAME``;
- ``{"unsupported": "reason"}``: the case is left out, and the reason reported;
- ``{"error": "message"}``: a finding.

It is run without a shell. One process answers many cases: the seed determines the cases of a property, so a first pass
with the oracle in place of the candidate records them, and one process answers them all. Only while shrinking a failing
case does each case need a process of its own.
"""

import hashlib
import json
import shlex
import stat
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adamshap.reference.contract import Step
from adamshap.verify.cases import CaseError, answer_from_json, case_to_json, dumps, object_of_pairs, whole_number
from adamshap.verify.checking import MOST_HANGS, Finding, Outcome, Patience, check
from adamshap.verify.foreign import child_process
from adamshap.verify.foreign.child_process import OutputTail, describe_exit
from adamshap.verify.foreign.program_errors import why_not_runnable, why_start_failed
from adamshap.verify.foreign.replies import result_of
from adamshap.verify.implementation import (
    CAPTURES,
    FUNCTIONS,
    Hung,
    Implementation,
    LoadError,
    Lost,
    Misbehaviour,
    Query,
)
from adamshap.verify.oracle import ORACLE
from adamshap.verify.properties import Case, Property

PLACEHOLDERS = ("{case}", "{result}")

LONGEST_RESULT = 1 << 28
"""Largest accepted file of answers, in bytes; the largest cases take some hundred thousand."""


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
    supports: frozenset[str] = frozenset(),
    captures: bool = False,
) -> tuple[Implementation, list[Outcome]]:
    """Return `command` as an implementation, and the outcome of each property as in `checking.check`.

    Parameters
    ----------
    command : str
        It must contain ``{case}`` and ``{result}``.
    timeout : float
        Time limit of a process for all cases of a property, in seconds.
    extras : frozenset of str
        The `implementation.EXTRAS` that the command offers.
    supports : frozenset of str
        The kinds of layers, and the features of optimisers that it takes.
    captures : bool
        Whether it offers `captures`.

    Raises
    ------
    LoadError
        The command cannot be run at all.
    """
    candidate = CommandCandidate(command, timeout)
    offers = frozenset((*FUNCTIONS, CAPTURES) if captures else FUNCTIONS)
    implementation = Implementation(command, offers, candidate.ask, extras, supports, guard=None)
    patience = Patience()
    outcomes = []
    for one in properties:
        if patience.hangs >= MOST_HANGS:
            outcomes.append(Outcome(one, "not tried", 0, 0.0))
            continue
        cases: list[tuple[Step, Query]] = []

        def record(step: Step, query: Query, cases: list[tuple[Step, Query]] = cases) -> Any:
            cases.append((step, query))
            # The oracle has no micro-batches, which do not change the answer.
            options = {name: value for name, value in query.options.items() if name != "micro_batch"}
            return ORACLE.ask(step, Query(query.function, options))

        recorder = Implementation("recorder", offers, record, extras, supports, guard=None)
        (drawn,) = check(recorder, [one], profile=profile, dtype=dtype, seed=seed, shrink_seconds=0)
        if drawn.undeclared:
            outcomes.append(drawn)
            continue
        sentence = ""
        try:
            candidate.prepare(cases)
        except Misbehaviour as error:
            sentence = str(error)
            patience.hangs += isinstance(error, Hung)
        (outcome,) = check(
            implementation,
            [one],
            profile=profile,
            dtype=dtype,
            seed=seed,
            timeout=None,  # the process has its own limit, which also ends its children
            shrink_seconds=shrink_seconds,
            patience=patience,
        )
        if sentence and outcome.status != "failed":
            # Each case succeeded alone, but not all of them together.
            case = Case(*cases[0])
            finding = Finding(f"{len(cases)} cases in one file, the first {case.query}: the candidate {sentence}", case)
            outcome = replace(outcome, status="failed", finding=finding, variant=None)
        outcomes.append(outcome)
    return implementation, outcomes


class CommandCandidate:
    """A command, and its answers to the cases given to `prepare`.

    Parameters
    ----------
    command : str
    timeout : float
        Time limit of a process, in seconds.
    """

    def __init__(self, command: str, timeout: float) -> None:
        try:
            self._arguments = shlex.split(command)
        except ValueError as error:
            raise LoadError(f"cannot read the command {command!r}: {error}") from error
        missing = [place for place in PLACEHOLDERS if not any(place in part for part in self._arguments[1:])]
        if missing:
            raise LoadError(f"the command {command!r} has no {missing[0]}; it needs {' and '.join(PLACEHOLDERS)}")
        if reason := why_not_runnable(self._arguments[0]):
            raise LoadError(f"cannot run {self._arguments[0]!r}: {reason}")
        self._timeout, self._has_run = timeout, False
        self._replies: dict[bytes, deque[Any]] = {}

    def prepare(self, cases: list[tuple[Step, Query]]) -> None:
        """Let one process answer all `cases`.

        Raises
        ------
        Misbehaviour
        LoadError
            No process can be started.
        """
        texts = [dumps(case_to_json(step, query)) for step, query in cases]
        for text, reply in zip(texts, self.replies(texts), strict=True):
            self._replies.setdefault(_key(text), deque()).append(reply)

    def ask(self, step: Step, query: Query) -> Any:
        """Return the command's answer in the contract's types.

        Raises
        ------
        NotImplementedError
            The command does not support the case.
        Misbehaviour
        """
        text = dumps(case_to_json(step, query))
        ready = self._replies.get(_key(text))
        if not ready:
            (reply,) = self.replies([text])
        else:
            # A case that occurred twice was answered twice; the last answer stays for the diagnosis.
            reply = ready.popleft() if len(ready) > 1 else ready[0]
        return _result(step, query, reply)

    def replies(self, texts: list[str]) -> list[Any]:
        """Return the replies of one process to `texts`, cases in JSON.

        Raises
        ------
        Misbehaviour
        LoadError
            No process can be started.
        """
        cases = "1 case" if len(texts) == 1 else f"{len(texts)} cases"
        # A program may leave files that cannot be deleted.
        with tempfile.TemporaryDirectory(prefix="adamshap-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            paths = {"{case}": folder / "case.json", "{result}": folder / "result.json"}
            paths["{case}"].write_text("[" + ",\n".join(texts) + "]\n", encoding="utf-8")
            tail = self._wait([_placed(part, paths) for part in self._arguments], cases)
            replies = _read(paths["{result}"], cases, tail)
        if not isinstance(replies, list) or len(replies) != len(texts):
            what = f"a list of {len(replies)}" if isinstance(replies, list) else f"a {type(replies).__name__}"
            raise Misbehaviour(f"wrote {what} for {cases}, not a list of as many answers")
        return replies

    def _wait(self, arguments: list[str], cases: str) -> str:
        """Run a process and its children to the end; return its last output as the end of a sentence."""
        try:
            process = child_process.start(
                arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            reason = why_start_failed(arguments[0], error)
            if self._has_run:
                raise Lost(f"could not be started again: {reason}") from error
            raise LoadError(f"cannot run {arguments[0]!r}: {reason}") from error
        self._has_run = True
        assert process.stdout is not None
        printed = OutputTail(process.stdout)
        try:
            status = process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            child_process.end(process)
            raise Hung(f"gave no answer to {cases} within {self._timeout:g} s{printed.tail()}") from None
        finally:
            child_process.end(process)
        if status:
            raise Lost(f"{describe_exit(status)} on {cases}{printed.tail()}")
        return printed.tail()


def _read(file: Path, cases: str, tail: str) -> Any:
    """Return the JSON of a file that a program wrote."""
    try:
        what = file.stat()
        if not stat.S_ISREG(what.st_mode):  # opening a pipe would block
            raise Misbehaviour(f"wrote a result for {cases} that is not a regular file")
        if what.st_size > LONGEST_RESULT:
            raise Misbehaviour(
                f"wrote a result of {what.st_size} bytes for {cases}; at most {LONGEST_RESULT} bytes are read"
            )
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Misbehaviour(f"wrote no result file for {cases}{tail}") from None
    except UnicodeDecodeError as error:
        raise Misbehaviour(f"wrote a result for {cases} that is not JSON, which is UTF-8: {error}") from error
    except OSError as error:
        raise Misbehaviour(f"wrote a result for {cases} that cannot be read: {error}") from error
    try:
        if text.startswith("\ufeff"):
            raise ValueError("it begins with a byte order mark (BOM); needs UTF-8 without one")
        return json.loads(text, parse_int=whole_number, object_pairs_hook=object_of_pairs)
    except (ValueError, RecursionError) as error:
        raise Misbehaviour(f"wrote a result for {cases} that is not JSON: {error}") from error


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _placed(part: str, paths: dict[str, Path]) -> str:
    for place, path in paths.items():
        part = part.replace(place, str(path))
    return part


def _result(step: Step, query: Query, reply: Any) -> Any:
    """Return a reply as an answer in the contract's types."""
    if isinstance(reply, dict) and set(reply) == {"unsupported"}:
        raise NotImplementedError(str(reply["unsupported"]))
    if isinstance(reply, dict) and set(reply) == {"error"}:
        raise Misbehaviour(f"reported an error: {reply['error']}")
    try:
        named = answer_from_json(reply)
    except CaseError as error:
        raise Misbehaviour(f"returned an invalid {error}") from error
    return result_of(step, query, named)
