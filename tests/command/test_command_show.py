"""``adamshap show`` agrees with the run's files, on the terminal, as JSON and as a page."""

import base64
import io
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import TINY, Command
from matplotlib.image import imread

from adamshap.reference.command import folder, overview
from adamshap.reference.command.folder import SavedRun

Refused = Callable[..., None]
COLUMNS = {
    "index": np.array([2, 3, 5, 7, 11, 13]),
    "label": np.array([0, 1, 0, 1, 1, 0]),
    "flipped": np.array([False, True, False, False, True, False]),
    "score": np.array([0.5, -0.25, 1.0, 0.0, -2.0, 0.25]),
    "sgd_score": np.arange(6.0),
    "seen": np.full(6, 3),
    "total": np.array([0.5, -0.25, 1.0, 0.0, -2.0, 0.25]),
}


def saved(classes: tuple[str, ...] = ("a", "<b>"), **columns: Any) -> SavedRun:
    config = {
        "options": {"data": "nowhere.npz", "label": None, "task": "auto", "slope": "sgd", "gradient": "start"}
        | {"batch_size": 2, "seed": 0},
        "dataset": {
            "name": "<i>",
            "examples": 20,
            "classes": list(classes),
            "targets": [] if classes else ["target"],
            "image_shape": None,
            "train_examples": 6,
            "validation_examples": 4,
        },
        "network": {"sizes": [3, 2]},
        "flips": [{"index": 3, "from": "a", "to": "<b>"}] if classes else [],
    }
    history = {"epoch": np.zeros(2, int), "train_loss": np.ones(2), "valid_loss": np.ones(2)}
    return SavedRun(Path("d"), config, [], "unfinished", 2, 9, COLUMNS | columns, history, None)


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_groups_are_the_classes() -> None:
    a, b = overview.groups_of(saved())
    assert a == overview.Group("a", 3, 0, 0, 1.75, 1.75 / 3)
    assert b == overview.Group("<b>", 3, 2, 2, -2.25, -0.75)


def test_groups_of_a_regression_are_quarters_of_its_target() -> None:
    target = np.array([5.0, 1.0, 9.0, 1.0, 2.0, 7.0])
    groups = overview.groups_of(saved((), label=target))
    assert [(group.name, group.count) for group in groups] == [
        ("1 to 1", 2),
        ("2 to 5", 2),
        ("7 to 7", 1),
        ("9 to 9", 1),
    ]
    assert [group.total for group in groups] == [-0.25, -1.5, 0.25, 1.0]
    same = overview.groups_of(saved((), label=np.ones(6)))
    assert [(group.name, group.count, group.total) for group in same] == [("1 to 1", 6, -0.5)]
    assert overview.groups_of(saved((), label=np.ones((6, 2)))) == []


def test_bins_hold_all_scores_on_their_side_of_zero() -> None:
    bins = overview.bins_of(COLUMNS["score"])
    assert sum(bin_.count for bin_ in bins) == 6
    assert sum(bin_.count for bin_ in bins if bin_.low < 0) == 2
    assert all(one.high == other.low for one, other in pairwise(bins))


# --- the command -----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects the links of a page, and the text of its body."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


@pytest.fixture
def run(here: Path, command: Command, blobs: Path) -> Path:
    """Return the folder of a finished run on images, with characters in its name that a page must escape."""
    result = command("attribute", blobs, *TINY, "--flip-labels", "0.25", "--out", "o")
    assert result.exit_code == 0, result.stderr
    return here / "o"


def test_the_terminal_the_json_and_the_page_say_the_same(here: Path, command: Command, run: Path, blobs: Path) -> None:
    read = folder.read(run)
    shown, told = command("show", "o"), json.loads(command("show", "o", "--json").stdout)
    assert command("show", "o", "--html", "page.html").stdout == "Written: page.html\n"
    text = (here / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    # Nothing is fetched: everything that the page refers to is embedded.
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text.split("<svg")[0])
    assert shown.stdout.startswith("blobs: finished, 4 of 4 steps; 32 training examples, 8 with flipped")
    order = np.argsort(read.columns["score"], kind="stable")
    for name, members in (("helpful", order[::-1][:10]), ("harmful", order[:10])):
        assert [row["index"] for row in told[name]] == read.columns["index"][members].tolist()
        assert [row["score"] for row in told[name]] == read.columns["score"][members].tolist()
        part = shown.stdout.split(f"Most {name}")[1].split("\n\n\n")[0]
        for row in members:
            assert f"{read.columns['score'][row]:+.3f}" in part
            assert f"{read.columns['score'][row]:+.3f}" in page.words
    for group in told["groups"]:
        for said in (group["name"], str(group["count"]), f"{group['total']:+.3f}"):
            assert said in shown.stdout.split("Classes")[1]
            assert said in page.words
    assert sum(group["flipped"] for group in told["groups"]) == 8
    assert sum(bin_["count"] for bin_ in told["histogram"]) == 32
    assert told["results"] == json.loads((run / "results.json").read_text())
    # Each example has its own picture, bright where the numbers are large.
    pictures = [link for link in page.links if link.startswith("data:")]
    with np.load(blobs) as archive:
        images = archive["x"]
    for link, row in zip(pictures, [*order[::-1][:10], *order[:10]], strict=True):
        drawn = imread(io.BytesIO(base64.b64decode(link.split(",")[1])), format="png")[:, :, 0]
        own = images[read.columns["index"][row]]
        assert np.array_equal(drawn, np.sort(drawn, axis=None)[np.argsort(np.argsort(own, axis=None))].reshape(2, 3))


def test_the_page_of_a_regression_measures_it_as_the_terminal_does(here: Path, command: Command) -> None:
    told = command("attribute", "diabetes", *TINY, "--out", "o").stdout
    assert command("show", "o", "--html", "page.html").exit_code == 0
    words = Page((here / "page.html").read_text(encoding="utf-8")).words
    for name in ("loss", "R²", "RMSE"):
        assert name in told
        assert name in words


def test_a_page_without_the_data_says_so(here: Path, command: Command, run: Path, blobs: Path) -> None:
    blobs.unlink()
    assert command("show", run, "--html", "page.html").exit_code == 0
    page = Page((here / "page.html").read_text(encoding="utf-8"))
    assert any("No pictures: cannot read" in word for word in page.words)
    np.savez(blobs, x=np.ones((5, 2, 3)) * np.arange(5)[:, None, None], y=np.array([0, 1, 0, 1, 1]))
    assert overview.pictures_of(folder.read(run)).missing.endswith("has changed since the run started")


def test_words_of_the_data_are_no_html(monkeypatch: pytest.MonkeyPatch, here: Path, command: Command) -> None:
    monkeypatch.setattr(folder, "read", lambda path: saved())
    assert command("show", "d", "--html", "page.html").exit_code == 0
    text = (here / "page.html").read_text(encoding="utf-8")
    assert "<b>a" not in text
    assert "<i>" not in text
    assert "&lt;b&gt;" in text
    assert "<i>: unfinished, 2 of 9 steps" in command("show", "d").stdout


def test_before_the_first_checkpoint(monkeypatch: pytest.MonkeyPatch, here: Path, command: Command) -> None:
    early = saved()
    monkeypatch.setattr(folder, "read", lambda path: SavedRun(**{**vars(early), "step": 0}))
    assert "No scores yet" in command("show", "d").stdout
    assert command("show", "d", "--html", "page.html").exit_code == 0
    assert "No scores yet" in (here / "page.html").read_text(encoding="utf-8")


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_is_no_run(here: Path, refused: Refused) -> None:
    (here / "empty").mkdir()
    refused(("show", "empty"), "'empty' is not a run folder", "config.json")
    refused(("show", "missing"), "'missing' is not a run folder")
    refused(("show",), "DIR", "see 'adamshap show --help'")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--html", "page.txt"), ["--html", "'page.txt'", "FILE.html"]),
        (("--html", "p.html", "--json"), ["--html", "--json"]),
        (("--html", "no/where/p.html"), ["--html", "cannot write", "No such file"]),
    ],
)
def test_pages_that_are_refused(
    monkeypatch: pytest.MonkeyPatch, refused: Refused, options: tuple[str, ...], words: list[str]
) -> None:
    monkeypatch.setattr(folder, "read", lambda path: saved())
    refused(("show", "d", *options), *words)


def test_a_page_without_matplotlib_has_a_sentence_and_all_tables(
    monkeypatch: pytest.MonkeyPatch, here: Path, command: Command, run: Path
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = command("show", run, "--html", "p.html")
    assert result.exit_code == 0
    page = Page((here / "p.html").read_text(encoding="utf-8"))
    for what in ("No plots", "No pictures"):
        sentence = next(line for line in result.stdout.splitlines() if line.startswith(f"{what}: "))
        assert 'pip install "adamshap[demo]"' in sentence
        assert sentence in page.words
    assert result.stdout.endswith("Written: p.html\n")
    assert page.links == []
    for example in json.loads(command("show", run, "--json").stdout)["harmful"]:
        assert f"{example['score']:+.3f}" in page.words


@pytest.mark.parametrize("weighting", ["unit", "sum"])
def test_bars_fit_a_narrow_terminal(
    here: Path, command: Command, blobs: Path, monkeypatch: pytest.MonkeyPatch, weighting: str
) -> None:
    assert command("attribute", blobs, *TINY, "--weighting", weighting, "--out", "o").exit_code == 0
    counts = [bin_["count"] for bin_ in json.loads(command("show", "o", "--json").stdout)["histogram"]]
    for width, longest in ((60, 22), (100, 40)):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = command("show", "o").stdout.splitlines()
        first = 2 + next(at for at, line in enumerate(lines) if line.split() == ["from", "to", "examples"])
        bars = [line.count("█") for line in lines[first : first + len(counts)]]
        assert bars == [-(-longest * count // max(counts)) for count in counts]
        assert "…" not in "".join(lines[first : first + len(counts)])
