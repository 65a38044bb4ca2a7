"""Text files as data: examples are passages, lines or whole documents, as tokens of which a model predicts the next."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.sources import BUNDLED
from adamshap.reference.command.spelling import some
from adamshap.reference.command.table import TABLES, unreadable
from adamshap.reference.contract import NOT_COUNTED, Array

ENDINGS = (".txt", ".text", ".md", ".rst")
"""Endings of files that are text; --model transformer reads any file as text."""

NOT_TEXT = (*TABLES, ".npz", ".npy")
"""Endings of files that are no text, whatever the model."""

ExampleKind = Literal["passage", "line", "document"]
TokenKind = Literal["characters", "bytes"]

START = 0
"""The token before an example's first: every character is predicted, and from those of its example alone."""

BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass(frozen=True)
class Passage:
    """An example: `text` of the file number `file`, from the line number `line` on; the first line is 1."""

    text: str | bytes
    file: int
    line: int

    @property
    def shown(self) -> str:
        """The text, with a replacement character for bytes that are not UTF-8."""
        return self.text if isinstance(self.text, str) else self.text.decode("utf-8", "replace")


@dataclass(frozen=True, eq=False)
class Texts:
    """Text files cut into examples.

    Parameters
    ----------
    passages : tuple of N Passage
    groups : tuple of str
        Name of each file's group.
    files : tuple of str
        Absolute paths.
    digest : str
        SHA-256 of the content of all files.
    notes : tuple of str
        Messages for the user.
    """

    passages: tuple[Passage, ...]
    groups: tuple[str, ...]
    files: tuple[str, ...]
    digest: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class TextExamples:
    """What a data set of text has beside its tokens.

    Parameters
    ----------
    following : int array (N, T)
        The token to predict at each position, -100 where there is none.
    vocabulary : tuple of str
        The token of each number from 1 on.
    names : tuple of str
        Of the files, or of the folders of documents.
    digest : str
        SHA-256 of the content of all files, and that of the validation file if there is one.
    """

    following: Array
    vocabulary: tuple[str, ...]
    names: tuple[str, ...]
    digest: str

    def as_json(self) -> dict[str, Any]:
        """Return what a run's config holds."""
        return {"names": list(self.names), "vocabulary": list(self.vocabulary), "sha256": self.digest}


def is_text(names: Sequence[str]) -> bool:
    """Return whether DATA is text without being told so: folders, and files with an ending of text."""
    return all(name.lower().endswith(ENDINGS) or _is_folder(name) for name in names)


def _is_folder(name: str) -> bool:
    return name not in ("", *BUNDLED) and not name.lower().endswith(NOT_TEXT) and os.path.isdir(name)


def check(names: Sequence[str], model: str) -> None:
    """Refuse DATA that does not fit the model: only a transformer reads text, and only text may be several files.

    Raises
    ------
    CommandError
    """
    if model == "transformer":
        other = [name for name in names if name in BUNDLED or name.lower().endswith(NOT_TEXT)]
        if other:
            raise CommandError(f"--model: got 'transformer' with {other[0]!r}; needs text, such as {ENDINGS[0]} files")
    elif is_text(names):
        raise CommandError(f"--model: got {model!r} with {names[0]!r}, which is text; needs transformer")
    elif len(names) > 1:
        raise CommandError(f"DATA: got {some(names)}; needs one name, or several files of text: {', '.join(ENDINGS)}")


def read(argument: str, names: Sequence[str], examples: ExampleKind, tokens: TokenKind, context: int) -> Texts:
    """Return the examples of the files that `names` lists.

    Parameters
    ----------
    argument : str
        Name of the command's argument, for error messages.
    names : sequence of str
        Files, or folders: all of their files, and of the folders in them, that have one of `ENDINGS`.
    examples : {"passage", "line", "document"}
        Passages of almost the same length, at most `context`; or the first `context` tokens of lines or of files.
    tokens : {"characters", "bytes"}
    context : int
        Most tokens of an example.

    Raises
    ------
    CommandError
        A file cannot be read, or is not text, or empty.
    """
    paths = _files(argument, names)
    passages: list[Passage] = []
    digest = hashlib.sha256()
    longer = 0
    for number, path in enumerate(paths):
        content = _bytes(path)
        digest.update(len(content).to_bytes(8, "big") + content)
        text: str | bytes = content if tokens == "bytes" else _decoded(path, content)
        if not text.strip():
            raise CommandError(f"{str(path)!r}: the file is empty; needs text")
        pieces = list(_pieces(text, examples, context))
        longer += sum(len(piece) > context for _, piece in pieces)
        passages += [Passage(piece[:context], number, line) for line, piece in pieces]
    notes = [f"{longer} of {len(passages)} {examples}s are longer than --context {context}; the rest is left out"]
    groups = _names([path.parent if examples == "document" else path for path in paths])
    files = tuple(str(path.absolute()) for path in paths)
    return Texts(tuple(passages), groups, files, digest.hexdigest(), tuple(notes) if longer else ())


def vocabulary_of(texts: Iterable[Texts], tokens: TokenKind) -> tuple[str, ...]:
    """Return the token of each number from 1 on: the characters of all `texts`, or all bytes."""
    if tokens == "bytes":
        return tuple(f"{byte:02x}" for byte in range(256))
    return tuple(sorted({letter for part in texts for passage in part.passages for letter in passage.shown}))


def tokens_of(passages: Sequence[Passage], vocabulary: Sequence[str], length: int) -> tuple[Array, Array]:
    """Return inputs (N, T) and labels (N, T): at each position the token before, and the one to predict.

    T is `length`. Positions after the end of a shorter passage are not counted.
    """
    numbers = {letter: number for number, letter in enumerate(vocabulary, start=1)}
    inputs = np.full((len(passages), length), START)
    labels = np.full((len(passages), length), NOT_COUNTED)
    for row, passage in enumerate(passages):
        text = passage.text
        own = [byte + 1 for byte in text] if isinstance(text, bytes) else [numbers[letter] for letter in text]
        labels[row, : len(own)] = own
        inputs[row, 1 : len(own)] = own[:-1]
    return inputs, labels


def _files(argument: str, names: Sequence[str]) -> list[Path]:
    found = []
    for name in names:
        path = Path(name)
        try:
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
        except OSError as error:  # as where a folder vanishes meanwhile
            raise unreadable(repr(name), error) from error
        if path.is_dir() and not inside:
            raise CommandError(f"{argument}: got {name!r}, a folder without text; needs {', '.join(ENDINGS)} in it")
        found += inside or [path]
    again = [name for name, count in Counter(map(str, found)).items() if count > 1]
    if again:
        raise CommandError(f"{argument}: got {some(again)} more than once; needs files that differ")
    return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(repr(str(path)), error) from error


def _decoded(path: Path, content: bytes) -> str:
    """Return the text of a file, with line feeds between its lines."""
    encoding = next((name for mark, name in BOMS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        what = "a binary file" if b"\0" in content else f"bytes that are not {encoding.removesuffix('-sig')} text"
        raise CommandError(
            f"{str(path)!r}: got {what} ({error.reason} at byte {error.start}); needs UTF-8, for example:"
            " iconv -f LATIN1 -t UTF-8 OLD.txt > NEW.txt; or --tokens bytes"
        ) from error
    if "\0" in text:
        raise CommandError(f"{str(path)!r}: got a binary file (a byte 0); needs text, or --tokens bytes")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _pieces(text: str | bytes, examples: ExampleKind, context: int) -> Iterable[tuple[int, str | bytes]]:
    """Yield the line on which each example of a file starts, and its text."""
    if examples == "document":
        yield 1, text
    elif examples == "line":
        lines: Sequence[str | bytes] = text.split("\n") if isinstance(text, str) else text.split(b"\n")
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, line
    else:
        count = -(-len(text) // context)
        ends = [len(text) * number // count for number in range(count + 1)]
        before = 0
        for start, end in pairwise(ends):
            piece = text[start:end]
            yield before + 1, piece
            before += piece.count("\n") if isinstance(piece, str) else piece.count(b"\n")


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return a name for each path: its last part, or all of it where the last parts of different ones are equal."""
    paths = [path.absolute() for path in paths]
    count = Counter(path.name for path in set(paths))
    return tuple(path.name if count[path.name] == 1 else str(path) for path in paths)
