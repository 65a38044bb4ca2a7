"""Text as data: passages, lines and documents, their tokens, a transformer of them, and refusals."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import Command
from hypothesis import given
from hypothesis import strategies as st

from adamshap import gpu
from adamshap.reference import Adam, Batch, transformer
from adamshap.reference.command import texts, trainers
from adamshap.reference.command.errors import CommandError
from adamshap.reference.contract import NOT_COUNTED
from adamshap.reference.models import sample_losses

Refused = Callable[..., None]
TINY = ("--width", "4", "--depth", "1", "--heads", "1", "--context", "8", "--epochs", "1", "--batch-size", "8")
A = "the cat sat on the mat\nand the dog sat on the log\n" * 3
B = "<b>zq\x1b[31m</b> & xj\tqz \n" * 6


@pytest.fixture
def book(here: Path) -> Path:
    """Return a folder of two text files, one of which holds markup and control characters."""
    folder = here.parent / "book"
    folder.mkdir()
    (folder / "a.txt").write_text(A, encoding="utf-8")
    (folder / "b.txt").write_text(B, encoding="utf-8")
    return folder


def _columns(folder: Path) -> dict[str, Any]:
    with np.load(folder / "scores.npz", allow_pickle=False) as archive:
        return dict(archive)


# --- examples and tokens ---------------------------------------------------------------------------------------------


@given(text=st.text("ab \n", min_size=1, max_size=60).filter(str.strip), context=st.integers(2, 20))
def test_passages_are_the_whole_text_in_parts_of_almost_the_same_length(scratch: Path, text: str, context: int) -> None:
    (scratch / "a.txt").write_text(text, encoding="utf-8")
    passages = texts.read("DATA", [str(scratch / "a.txt")], "passage", "characters", context).passages
    assert "".join(passage.shown for passage in passages) == text
    sizes = [len(passage.text) for passage in passages]
    assert max(sizes) <= context
    assert max(sizes) - min(sizes) <= 1
    before = 0
    for passage in passages:
        assert passage.line == 1 + text[:before].count("\n")
        before += len(passage.text)


def test_lines_and_documents(here: Path) -> None:
    (here / "a.txt").write_bytes(b"one\r\n\r\n  two and more\r\n")
    (here / "b.txt").write_text("three", encoding="utf-8")
    found = texts.read("DATA", ["a.txt", "b.txt"], "line", "characters", 6)
    assert [(p.text, p.file, p.line) for p in found.passages] == [("one", 0, 1), ("  two ", 0, 3), ("three", 1, 1)]
    assert found.notes == ("1 of 3 lines are longer than --context 6; the rest is left out",)
    found = texts.read("DATA", ["a.txt", "b.txt"], "document", "bytes", 100)
    assert [p.text for p in found.passages] == [b"one\r\n\r\n  two and more\r\n", b"three"]
    assert found.groups == (here.name, here.name)


def test_each_token_is_predicted_from_those_before_it() -> None:
    passages = [texts.Passage("abca", 0, 1), texts.Passage("b", 0, 2)]
    inputs, labels = texts.tokens_of(passages, ("a", "b", "c"), 4)
    assert inputs.tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]
    assert labels.tolist() == [[1, 2, 3, 1], [2, NOT_COUNTED, NOT_COUNTED, NOT_COUNTED]]
    inputs, labels = texts.tokens_of([texts.Passage(b"\x00\xff", 0, 1)], texts.vocabulary_of([], "bytes"), 2)
    assert (inputs.tolist(), labels.tolist()) == ([[0, 1]], [[1, 256]])


def test_files_of_the_same_name_are_told_apart(here: Path) -> None:
    for folder in ("x", "y"):
        (here / folder).mkdir()
        (here / folder / "a.txt").write_text("some text", encoding="utf-8")
    found = texts.read("DATA", ["x", "y"], "passage", "characters", 8)
    assert found.groups == (str(here / "x" / "a.txt"), str(here / "y" / "a.txt"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(here: Path, encoding: str) -> None:
    (here / "a.txt").write_text("naïve café", encoding=encoding)
    (passage,) = texts.read("DATA", ["a.txt"], "document", "characters", 20).passages
    assert passage.text == "naïve café"


# --- the run ---------------------------------------------------------------------------------------------------------


def test_the_files_of_a_run(here: Path, command: Command, book: Path) -> None:
    result = command("attribute", book, *TINY, "--out", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    columns = _columns(here / "o")
    config = json.loads((here / "o" / "config.json").read_text(encoding="utf-8"))
    found = texts.read("DATA", [str(book)], "passage", "characters", 8)
    held_out = config["dataset"]["validation_index"]
    train = columns["index"].tolist()
    assert sorted(train + held_out) == list(range(len(found.passages)))
    files = ("a.txt", "b.txt")
    of_files = [files[passage.file] for passage in found.passages]
    assert columns["group"].tolist() == [of_files[row] for row in train]
    shares = [sum(of_files[row] == file for row in held_out) / of_files.count(file) for file in files]
    assert np.allclose(shares, 0.2, atol=0.05)
    vocabulary = tuple(sorted({*A, *B}))
    assert config["dataset"]["text"]["vocabulary"] == list(vocabulary)
    inputs, labels = texts.tokens_of(found.passages, vocabulary, 8)
    parts = [Batch(inputs[rows], labels[rows]) for rows in (train, held_out)]
    network = transformer(vocab=1 + len(vocabulary), context=8, width=4, depth=1, heads=1)
    run = gpu.attribute(network, Adam(), *parts, epochs=1, batch_size=8)
    assert np.array_equal(columns["total"], run.scores)
    results = json.loads((here / "o" / "results.json").read_text(encoding="utf-8"))
    loss = sample_losses(network, run.params, parts[1]).mean()
    assert np.isclose(results["after"]["loss"], loss, rtol=1e-12)
    assert np.isclose(results["after"]["bits"], loss / np.log(2), rtol=1e-12)
    assert np.isclose(results["after"]["perplexity"], np.exp(loss), rtol=1e-12)
    with (here / "o" / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == [found.passages[row].text for row in train]
    assert [row["group"] for row in rows] == columns["group"].tolist()
    said = " ".join(result.stdout.split())
    assert "transformer of 1 block, width 4, 1 head, context 8" in said
    assert "Groups by file" in said
    assert "bits per token" in said
    assert "\x1b[31m" not in result.stdout


def test_the_page_shows_passages_as_text(here: Path, command: Command, book: Path) -> None:
    assert command("attribute", book, *TINY, "--out", "o").exit_code == 0
    assert command("show", "o", "--top", "20", "--html", "p.html").exit_code == 0
    page = (here / "p.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page
    assert "<b>zq" not in page
    assert "\x1b" not in page
    assert "Groups by file" in page
    shown = " ".join(command("show", "o").stdout.split())
    assert "transformer of 1 block" in shown
    assert "perplexity" in shown


def test_a_passage_has_the_room_that_there_is(
    here: Path, command: Command, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("attribute", book / "a.txt", *TINY, "--context", "60", "--out", "o").exit_code == 0
    with (here / "o" / "scores.csv").open(newline="", encoding="utf-8") as file:
        passage = " ".join(next(csv.DictReader(file))["text"].split())
    assert passage[:40] in command("show", "o", "--top", "20").stdout
    monkeypatch.setenv("COLUMNS", "200")
    shown = command("show", "o", "--top", "20").stdout
    assert passage in shown
    assert "SGD score" in shown
    assert command("show", "o", "--top", "20", "--html", "p.html").exit_code == 0
    assert passage in (here / "p.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("options", [("--examples", "line"), ("--tokens", "bytes"), ("--valid",)])
def test_other_examples_and_tokens(here: Path, command: Command, book: Path, options: tuple[str, ...]) -> None:
    if options == ("--valid",):
        (here / "v.txt").write_text("unseen: Ω", encoding="utf-8")
        options = ("--valid", "v.txt")
    result = command("attribute", book / "a.txt", book / "b.txt", *TINY, *options, "--out", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    assert set(_columns(here / "o")["group"]) <= {"a.txt", "b.txt"}


def test_documents_are_grouped_by_folder(here: Path, command: Command) -> None:
    for folder, word in (("spam", "buy now "), ("ham", "see you ")):
        (here / folder).mkdir()
        for number in range(5):
            (here / folder / f"{number}.txt").write_text(word * (number + 1), encoding="utf-8")
    assert command("attribute", "spam", "ham", *TINY, "--examples", "document", "--out", "o").exit_code == 0
    assert sorted(_columns(here / "o")["group"]) == 4 * ["ham"] + 4 * ["spam"]


def test_a_run_goes_on_unless_a_file_has_changed(
    here: Path, command: Command, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (book / "a.txt", book / "b.txt")
    trainer = trainers.installed_trainer()

    def engine(*arguments: Any, on_step: Callable[[Any], None], **options: Any) -> Any:
        def fail(progress: Any) -> None:
            on_step(progress)
            if progress.step > 1:
                raise CommandError("stopped", 1)

        return trainer.attribute(*arguments, on_step=fail, **options)

    assert command("attribute", *files, *TINY, "--out", "whole").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(trainers, "installed_trainer", lambda: trainers.Trainer("a test", engine))
        assert command("attribute", *files, *TINY, "--checkpoint-seconds", "0", "--out", "o").exit_code == 1
    (book / "a.txt").write_text(A.replace("cat", "tac"), encoding="utf-8")
    result = command("attribute", "--resume", "o")
    assert result.exit_code == 2
    assert "has changed since the run started" in result.stderr
    (book / "a.txt").write_text(A, encoding="utf-8")
    assert command("attribute", "--resume", "o").exit_code == 0
    assert np.array_equal(_columns(here / "o")["score"], _columns(here / "whole")["score"])


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"", (), ("the file is empty", "needs text")),
        (b" \n\n", (), ("the file is empty",)),
        (b"short", (), ("too short, one passage of --context 64 characters", "--valid")),
        (b"one line of text", ("--examples", "line"), ("too short, one line",)),
        (b"one document of text", ("--examples", "document"), ("got one document",)),
        (b"caf\xe9 " * 40, (), ("bytes that are not utf-8 text", "at byte 3", "iconv", "--tokens bytes")),
        (b"text\0text" * 40, (), ("a binary file (a byte 0)",)),
        (b"\x89PNG\xff\0" * 40, (), ("a binary file",)),
        (b"text " * 40, ("--heads", "3"), ("--heads: got 3; needs a divisor of the width, 32",)),
        (b"text " * 40, ("--flip-labels", "0.1"), ("--flip-labels: got 0.1 for text",)),
        (b"text " * 40, ("--task", "regression"), ("--task: got regression for text",)),
        (b"text " * 40, ("--group", "page"), ("--group: got page for text",)),
        (b"text " * 40, ("--label", "page"), ("--label: got 'page'", "needs a file with columns")),
        (b"text " * 40, ("--model", "mlp"), ("--model: got 'mlp' with 'a.txt', which is text",)),
        (b"text " * 40, ("--hidden", "4"), ("--hidden: got it with the model transformer",)),
        (b"text " * 40, ("a.txt",), ("'a.txt' more than once",)),
        (b"text " * 40, ("none.txt",), ("cannot read 'none.txt'",)),
        (b"text " * 40, ("--valid", "none.txt"), ("cannot read 'none.txt'",)),
    ],
)
def test_texts_that_are_refused(
    here: Path, refused: Refused, content: bytes, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    (here / "a.txt").write_bytes(content)
    refused(("attribute", "a.txt", *options), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("wine", "digits"), ("DATA: got 'wine', 'digits'", "needs one name, or several files of text")),
        (("wine", "--model", "transformer"), ("--model: got 'transformer' with 'wine'; needs text",)),
        (("wine", "--context", "8"), ("--context: got it with the model mlp; needs --model transformer",)),
        (("wine", "--tokens", "bytes"), ("--tokens: got it with the model mlp",)),
        (("empty",), ("DATA: got 'empty', a folder without text",)),
    ],
)
def test_data_that_is_no_text(here: Path, refused: Refused, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    (here / "empty").mkdir()
    refused(("attribute", *arguments), *words)


def test_a_folder_in_which_another_vanishes_is_refused(
    here: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Path.rglob

    def vanishing(self: Path, pattern: str) -> Iterator[Path]:
        if self.name == "texts":
            raise OSError(22, "Invalid argument", str(self / "gone"))
        yield from look(self, pattern)

    (here / "texts").mkdir()
    monkeypatch.setattr(Path, "rglob", vanishing)
    refused(("attribute", "texts"), "cannot read 'texts': Invalid argument")


def test_a_folder_does_not_hide_a_bundled_data_set(here: Path) -> None:
    (here / "wine").mkdir()
    assert not texts.is_text(["wine"])
