"""The pictures in a folder: which examples and groups they have, and how an image of one channel is drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import TINY, Command
from matplotlib.axes import Axes
from matplotlib.image import imread

from adamshap.reference.command import pictures, sources
from adamshap.reference.contract import Array


@pytest.fixture
def photos(here: Path) -> Path:
    """Return an archive of 60 images of two classes and three sites; the pixels of each are its own."""
    generator = np.random.default_rng(0)
    kinds = generator.integers(0, 2, 60)
    x = generator.uniform(0, 100, (60, 4, 4)) + 100 * kinds[:, None, None]
    site = np.array(["north", "south", "west"])[np.arange(60) % 3]
    np.savez(here / "photos.npz", x=x, y=np.array(["cat", "elephant"])[kinds], site=site)
    return here / "photos.npz"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the images that are drawn from now on, with their options, one after another."""
    found: list[dict[str, Any]] = []
    imshow = Axes.imshow

    def noted(axes: Axes, image: Array, **options: Any) -> Any:
        found.append({"image": image, "axes": axes, **options})
        return imshow(axes, image, **options)

    monkeypatch.setattr(Axes, "imshow", noted)
    return found


@pytest.mark.parametrize(("top", "each"), [(3, 3), (10, 10), (13, 13), (99, 24)])
def test_the_picture_has_the_examples_of_both_lists(
    here: Path, command: Command, photos: Path, drawn: list[dict[str, Any]], top: int, each: int
) -> None:
    result = command("attribute", photos, *TINY, "--top", top, "--out", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    with np.load(photos) as archive, np.load(here / "o" / "scores.npz") as columns:
        x, index, order = archive["x"], columns["index"], np.argsort(columns["score"], kind="stable")
    expected = [*order[::-1][:each], *order[:each]]
    assert len(drawn) == len(expected)
    for one, member in zip(drawn, expected, strict=True):
        assert np.array_equal(one["image"], x[index[member]])
        assert one["axes"].get_title() in ("cat", "elephant")
        assert f"row {index[member]}\n" in one["axes"].get_xlabel()


def test_long_lists_are_cut_and_short_ones_are_no_wider_than_they_need(
    here: Path, command: Command, photos: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(pictures, "MOST_ROWS", 1)
    assert command("attribute", photos, *TINY, "--top", "20", "--out", "o").exit_code == 0
    assert len(drawn) == 2 * pictures.COLUMNS
    assert command("attribute", photos, *TINY, "--top", "3", "--out", "short").exit_code == 0
    wide, narrow = (imread(here / name / "examples.png").shape for name in ("o", "short"))
    assert narrow[1] < wide[1] / 2


def test_labels_of_groups_do_not_touch_the_next_image(
    here: Path, command: Command, photos: Path, drawn: list[dict[str, Any]]
) -> None:
    assert command("attribute", photos, *TINY, "--group", "site", "--out", "o").exit_code == 0
    of_groups = [one for one in drawn if "extent" in one]
    assert len(of_groups) == 15
    axes = of_groups[0]["axes"]
    labels = [text.get_text() for text in axes.texts]
    assert set(labels) == {"cat", "elephant"}
    starts = sorted({one["extent"][0] for one in of_groups})
    for text in axes.texts:
        end = axes.transData.inverted().transform(text.get_window_extent())[1][0]
        assert end < min((start for start in starts if start > text.get_position()[0]), default=len(starts))


def test_a_folder_of_several_seeds_has_the_pictures_too(
    here: Path, command: Command, photos: Path, drawn: list[dict[str, Any]]
) -> None:
    result = command("attribute", photos, *TINY, "--group", "site", "--seeds", "2", "--top", "4", "--out", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    assert (here / "o" / "groups.png").is_file()
    with np.load(photos) as archive, np.load(here / "o" / "scores.npz") as columns:
        x, index, order = archive["x"], columns["index"], np.argsort(columns["score"], kind="stable")
    assert np.array_equal(drawn[0]["image"], x[index[order[-1]]])
    assert [one["axes"].get_xlabel().split("\n")[2] for one in drawn[:8]] == [
        ("north", "south", "west")[index[member] % 3] for member in [*order[::-1][:4], *order[:4]]
    ]
    photos.unlink()
    again = command("attribute", "--resume", "o", "--json")
    assert (again.exit_code, again.stderr) == (0, "")
    assert "No pictures: cannot read" in again.stdout


def test_the_cards_of_the_page_name_the_group(here: Path, command: Command, photos: Path) -> None:
    assert command("attribute", photos, *TINY, "--group", "site", "--out", "o").exit_code == 0
    assert command("show", "o", "--html", "p.html").exit_code == 0
    cards = (here / "p.html").read_text(encoding="utf-8").split('class="cards"')[1:]
    assert sum(card.count(f"<br>{site}</li>") for card in cards for site in ("north", "south", "west")) == 20


def test_ink_is_dark_and_light_is_bright(command: Command, photos: Path, drawn: list[dict[str, Any]]) -> None:
    assert command("attribute", photos, *TINY, "--out", "o").exit_code == 0
    assert {one["cmap"] for one in drawn} == {"gray"}
    assert sources.greys_of("digits") == sources.greys_of("trusted_digits") == "gray_r"
