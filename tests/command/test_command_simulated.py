"""The built-in data of simulated sources: each changes what its name says, and the README's sources are found."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_helpers import Command
from matplotlib import image
from numpy.testing import assert_array_equal

from adamshap import gpu
from adamshap.reference import Adam, Network
from adamshap.reference.command import datasets, preparation, simulated_sources
from adamshap.reference.command.simulated_sources import GROUP, SOURCES, TRAINING, TRUSTED
from adamshap.reference.command.table import Reading
from adamshap.reference.contract import Array

Refused = Callable[..., None]


def _of(name: str) -> tuple[Array, Array, Array, Array]:
    """Return images and labels of a source, and those that it was dealt."""
    split, ((x, y), *_) = simulated_sources.split(3), simulated_sources.upright(3)
    mine = split.source == name
    return split.x[mine].reshape(-1, 8, 8), split.y[mine], x[mine].reshape(-1, 8, 8), y[mine]


@pytest.mark.parametrize(
    ("name", "dealt"),
    [
        ("upright 1", lambda x: x),
        ("mirrored", lambda x: x[:, :, ::-1]),
        ("rotated", lambda x: x.transpose(0, 2, 1)[:, ::-1]),
        ("inverted", lambda x: 16 - x),
        ("shifted", lambda x: np.concatenate([x[:, :, 6:], x[:, :, :6]], axis=2)),
        ("careless", lambda x: x),
        ("swaps 4/9", lambda x: x),
    ],
)
def test_a_source_changes_its_images(name: str, dealt: Callable[[Array], Array]) -> None:
    images, _, before, _ = _of(name)
    assert_array_equal(images, dealt(before))


@pytest.mark.parametrize("name", SOURCES)
def test_labels_are_wrong_where_the_name_says_so(name: str) -> None:
    _, labels, _, right = _of(name)
    if name == "careless":
        assert 0.25 < np.mean(labels != right) < 0.55
    elif name == "swaps 4/9":
        assert_array_equal(labels, np.select([right == 4, right == 9], [9, 4], right))
        assert np.any(labels != right)
    else:
        assert_array_equal(labels, right)


def test_training_trusted_and_test_digits_are_all_digits_once() -> None:
    parts = simulated_sources.upright()
    assert [len(x) for x, _ in parts] == [1197, 200, 400]
    from sklearn.datasets import load_digits

    together = np.concatenate([x for x, _ in parts])
    assert_array_equal(np.sort(together, axis=0), np.sort(load_digits().data, axis=0))


@pytest.mark.parametrize(("data", "group"), [(TRAINING, "scanner"), (TRUSTED, GROUP)])
def test_a_group_that_the_data_lack_is_refused(data: str, group: str, refused: Refused) -> None:
    refused(("attribute", data, "--group", group), f"--group: got {group!r}", data, GROUP)


def test_the_sources_of_the_readme_have_scores_below_0_and_no_others() -> None:
    dataset = datasets.load(TRAINING, reading=Reading(group=GROUP), held_out=False)
    trusted = datasets.load_valid(TRUSTED, None, dataset)
    prepared = preparation.prepare(dataset, flip=0.0, seed=5, valid=trusted)
    network = Network((64, 64, 64, 10), "tanh")
    run = gpu.attribute(network, Adam(), prepared.train, prepared.valid, epochs=2, batch_size=32, seed=5, device="cpu")
    assert prepared.groups is not None
    below = [name for name in SOURCES if run.scores[prepared.groups == name].mean() < 0]
    assert below == ["rotated", "inverted", "shifted"]


def test_groups_of_images_have_a_picture(command: Command, here: Path) -> None:
    few = ("--hidden", "4", "--steps", "2", "--out", here / "run")
    result = command("attribute", TRAINING, "--valid", TRUSTED, "--group", GROUP, *few)
    assert result.exit_code == 0, result.output
    picture = image.imread(here / "run" / "groups.png")
    colours = {tuple(np.round(pixel * 255)[:3]) for pixel in picture.reshape(-1, 4)}
    assert len(colours) > 30  # grey images, and bars of at least one colour
    assert any(max(colour) - min(colour) > 60 for colour in colours) or (153, 153, 153) in colours
