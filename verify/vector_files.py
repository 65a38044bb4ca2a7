"""Portable test vectors: computes the planned cases with the oracle, and writes, reads and checks the files.

A folder of vectors holds one JSON file for each function, ``faults.json`` (a description of each named mistake),
``schema.json``, ``README.md`` (how to read the files without this package) and ``SHA256SUMS``, which lists all others.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from adamshap.reference.contract import Step
from adamshap.verify.cases import CaseError, answer_from_json, answer_to_json, case_from_json, case_to_json
from adamshap.verify.cases import dumps as compact
from adamshap.verify.cases import loads as parse
from adamshap.verify.faults import FAULTS, Fault
from adamshap.verify.implementation import FUNCTIONS, Answer, Misbehaviour, Query, answer
from adamshap.verify.json_values import Json
from adamshap.verify.oracle import bounds, expected
from adamshap.verify.tolerance import assert_within
from adamshap.verify.vector_cases import planned

FORMAT, VERSION = "adamshap-vectors", 1
FOLDER = Path(__file__).parent / "vectors" / f"v{VERSION}"
"""The vectors installed with this package."""

SUMS, FAULTS_FILE = "SHA256SUMS", "faults.json"
WRITTEN_BY_HAND = ("README.md", "schema.json")
FILES = (*(f"{function}.json" for function in FUNCTIONS), FAULTS_FILE, *WRITTEN_BY_HAND)
"""All files of a folder except `SUMS`."""

CLEARLY = 16.0
"""A vector names a fault whose error exceeds the bound this many times, so that it does so on any machine."""

DRAWS = 32
"""Number of perturbed answers for each spread in a bound, which is measured once for all machines."""


class VectorError(Exception):
    """The folder is not a vector folder, is damaged, or cannot be written."""


@dataclass(frozen=True, eq=False)
class Vector:
    """One test vector.

    Parameters
    ----------
    name : str
        Its function and a number.
    seed : int
        Seed for `vector_cases.random_step`.
    oracle : str
        Version of adamshap that computed the answer.
    step, query
        The case.
    expected, bound : named arrays
        The oracle's answer, and the error allowed in float64, element by element.
    exposes : tuple of str
        Names of the faults that clearly fail it.
    """

    name: str
    seed: int
    oracle: str
    step: Step
    query: Query
    expected: Answer
    bound: Answer
    exposes: tuple[str, ...]


# --- making ----------------------------------------------------------------------------------------------------------


def make() -> Iterator[Vector]:
    """Yield every vector, answered by the installed oracle."""
    for plan in planned():
        case = plan.step, plan.query
        right = expected(*case)
        bound = {name: _rounded_up(array) for name, array in bounds(*case, np.float64, DRAWS).items()}
        exposes = tuple(fault.name for fault in FAULTS if misses(fault, *case, right, bound, CLEARLY))
        yield Vector(plan.name, plan.seed, version("adamshap"), *case, right, bound, exposes)


def misses(fault: Fault, step: Step, query: Query, right: Answer, bound: Answer, times: float = 1.0) -> bool:
    """Return whether `fault` raises an error, or exceeds the bound more than `times` times."""
    try:
        with np.errstate(all="ignore"):
            wrong = answer(fault.implementation(), step, query)
    except Misbehaviour:
        return True
    return any(bool((np.abs(wrong[name] - array) > times * bound[name]).any()) for name, array in right.items())


def _rounded_up(array: Any) -> Any:
    """Return `array` rounded up to three digits (by at most 2 %): enough for a bound, and the files stay small."""
    return np.array([float(f"{1.01 * x:.2e}") for x in np.ravel(array)]).reshape(np.shape(array))


# --- writing ---------------------------------------------------------------------------------------------------------


def write(folder: Path, vectors: Iterable[Vector]) -> None:
    """Write a folder of `vectors`, completely or not at all.

    Raises
    ------
    VectorError
        `folder` exists and is not empty, or cannot be written.
    """
    files = {name: (FOLDER / name).read_bytes() for name in WRITTEN_BY_HAND}
    lines: dict[str, list[str]] = {function: [] for function in FUNCTIONS}
    for vector in vectors:
        lines[vector.query.function].append(compact(vector_to_json(vector)))
    for function, texts in lines.items():
        head = compact({"format": FORMAT, "version": VERSION, "function": function})[:-1]
        files[f"{function}.json"] = "".join((head, ',"vectors":[\n', ",\n".join(texts), "\n]}\n")).encode()
    explained = {fault.name: {"sentence": fault.sentence, "source": fault.source} for fault in FAULTS}
    faults = ",\n".join(f"{compact(name)}:{compact(about)}" for name, about in explained.items())
    files[FAULTS_FILE] = "".join(("{\n", faults, "\n}\n")).encode()
    _write_files(folder, files)


def export(folder: Path) -> None:
    """Copy the installed vectors to `folder`, completely or not at all.

    Raises
    ------
    VectorError
        `folder` exists and is not empty, or cannot be written, or the installed vectors are damaged.
    """
    _write_files(folder, _undamaged(FOLDER))


def _write_files(folder: Path, files: dict[str, bytes]) -> None:
    sums = "".join(f"{_digest(files[name])}  {name}\n" for name in sorted(files))
    temporary = None
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise VectorError(f"{str(folder)!r} exists and is not an empty folder")
        parent = folder.absolute().parent
        if not parent.is_dir():
            raise VectorError(f"cannot write to {str(folder)!r}: its parent folder does not exist")
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=parent))
        for name, content in {**files, SUMS: sums.encode()}.items():
            (temporary / name).write_bytes(content)
        temporary.chmod(0o755)
        os.replace(temporary, folder)
        temporary = None
    except OSError as error:
        raise VectorError(f"cannot write to {str(folder)!r}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def vector_to_json(vector: Vector) -> Json:
    """Return a vector in JSON types."""
    return {
        "name": vector.name,
        "seed": vector.seed,
        "oracle": vector.oracle,
        "case": case_to_json(vector.step, vector.query),
        "expected": answer_to_json(vector.expected),
        "bound": answer_to_json(vector.bound),
        "exposes": list(vector.exposes),
    }


# --- reading ---------------------------------------------------------------------------------------------------------


def read(folder: Path) -> list[Vector]:
    """Return the vectors of a folder after verifying its checksums.

    Raises
    ------
    VectorError
        One sentence about the first problem.
    """
    files = _undamaged(folder)
    vectors = []
    try:
        faults = parse(files[FAULTS_FILE].decode(), FAULTS_FILE)
        for function in FUNCTIONS:
            name = f"{function}.json"
            head = parse(files[name].decode(), name)
            wanted = {"format": FORMAT, "version": VERSION, "function": function}
            if not isinstance(head, dict) or {key: head.get(key) for key in wanted} != wanted:
                raise VectorError(f"{name}: is not a file of {FORMAT}, version {VERSION}, for {function}")
            for place, one in enumerate(head["vectors"]):
                vectors.append(_vector(one, f"{name}, vector {place}", function, faults))
    except (UnicodeDecodeError, KeyError, TypeError, CaseError) as error:
        raise VectorError(f"{str(folder)!r}: {_sentence(error)}") from error
    names = [vector.name for vector in vectors]
    if len(set(names)) < len(names):
        raise VectorError(f"{str(folder)!r}: two vectors have the same name")
    return vectors


def _vector(one: Json, where: str, function: str, faults: Json) -> Vector:
    step, query = case_from_json(one["case"], where)
    if query.function != function:
        raise CaseError(f"{where}: calls {query.function}")
    right, bound = (answer_from_json(one[key], f"{where}, {key}") for key in ("expected", "bound"))
    if _shapes(right) != _shapes(bound):
        raise CaseError(f"{where}: expected and bound differ in names or shapes")
    unknown = [name for name in one["exposes"] if name not in faults]
    if unknown:
        raise CaseError(f"{where}: exposes {unknown[0]!r}, which {FAULTS_FILE} does not know")
    return Vector(one["name"], one["seed"], one["oracle"], step, query, right, bound, tuple(one["exposes"]))


def _shapes(answer: Answer) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in answer.items()}


def _sentence(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _undamaged(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of `FILES`, after verifying their checksums and that no other file exists."""
    where = f"{str(folder)!r}"
    try:
        there = sorted(path.name for path in folder.iterdir())
        if SUMS not in there:
            raise VectorError(f"{where} has no {SUMS}: it is not a folder of test vectors")
        sums = _sums(where, (folder / SUMS).read_text(encoding="ascii"))
        files = {name: (folder / name).read_bytes() for name in there if name in sums}
    except OSError as error:
        raise VectorError(f"cannot read {where}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise VectorError(f"{where}: {SUMS} is damaged (it is not text)") from error
    for name in sums:
        if name not in files:
            raise VectorError(f"{where}: {name} is missing")
        if _digest(files[name]) != sums[name]:
            raise VectorError(f"{where}: {name} is damaged (its checksum is not the one in {SUMS})")
    foreign = [name for name in there if name not in sums and name != SUMS]
    if foreign:
        raise VectorError(f"{where}: {foreign[0]} is not listed in {SUMS}: it does not belong there")
    return files


def _sums(where: str, text: str) -> dict[str, str]:
    parts = [line.split("  ", 1) for line in text.splitlines()]
    if any(len(part) != 2 for part in parts) or sorted(part[-1] for part in parts) != sorted(FILES):
        raise VectorError(f"{where}: {SUMS} is damaged (it must list {', '.join(sorted(FILES))})")
    return {name: digest for digest, name in parts}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- checking --------------------------------------------------------------------------------------------------------


def disagreements(vectors: Iterable[Vector]) -> list[str]:
    """Return a sentence for each vector whose expected answer the installed oracle does not reproduce."""
    found = []
    for vector in vectors:
        again = expected(vector.step, vector.query)
        if _shapes(again) != _shapes(vector.expected):
            found.append(f"{vector.name}: names or shapes of the answer differ from the oracle's")
            continue
        for name, array in again.items():
            try:
                assert_within(vector.expected[name], array, vector.bound[name], f"{vector.name}, {name}")
            except AssertionError as error:
                found.append(str(error))
    return found
