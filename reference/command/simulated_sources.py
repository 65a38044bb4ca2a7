"""Two data sets made of scikit-learn's digits: training digits of eight simulated sources, and trusted digits.

The training digits are dealt out to `SOURCES`, each of which changes its images or its labels. The trusted digits, and
those to test with, are upright with right labels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.table import Table
from adamshap.reference.contract import Array, needed

TRAINING, TRUSTED = "simulated_sources", "trusted_digits"
NAMES = (TRAINING, TRUSTED)
GROUP = "source"

VALID, TEST = 200, 400
CARELESS = 0.4
"""Share of wrong labels of the source "careless"."""

CHANGES: Mapping[str, Callable[[Array], Array]] = {
    "upright": lambda x: x,
    "mirrored": lambda x: _images(x)[:, :, ::-1].reshape(x.shape),
    "rotated": lambda x: np.rot90(_images(x), axes=(1, 2)).reshape(x.shape),
    "inverted": lambda x: 16 - x,
    "shifted": lambda x: np.roll(_images(x), 2, axis=2).reshape(x.shape),
}
"""How a source changes its images (n, 64): a quarter turn to the left, dark for light, two pixels to the right."""

SOURCES = ("upright 1", "upright 2", "careless", "swaps 4/9", "mirrored", "rotated", "inverted", "shifted")


@dataclass(frozen=True, eq=False)
class Split:
    """Training images (n, 64) with values from 0 to 16, labels and sources (n,); trusted images, and images to test."""

    x: Array
    y: Array
    source: Array
    valid_x: Array
    valid_y: Array
    test_x: Array
    test_y: Array


def split(seed: int = 0) -> Split:
    """Return the data; `seed` deals the digits out and draws the wrong labels."""
    (x, y), (valid_x, valid_y), (test_x, test_y) = upright(seed)
    generator = np.random.default_rng([seed, 1])
    source = np.array(SOURCES)[np.arange(len(x)) % len(SOURCES)]
    for name, change in CHANGES.items():
        x[source == name] = change(x[source == name])
    wrong = (source == "careless") & (generator.random(len(source)) < CARELESS)
    y[wrong] = (y[wrong] + generator.integers(1, 10, wrong.sum())) % 10
    swapped = (source == "swaps 4/9") & np.isin(y, (4, 9))
    y[swapped] = 13 - y[swapped]
    return Split(x, y, source, valid_x, valid_y, test_x, test_y)


def upright(seed: int = 0) -> tuple[tuple[Array, Array], ...]:
    """Return images and labels of training, trusted and test digits before any source changes them."""
    with needed("scikit-learn", by=TRAINING, extra="demo", error=CommandError):
        from sklearn.datasets import load_digits
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    at_test, at_valid, at_train = np.split(order, [TEST, TEST + VALID])
    return tuple((x[part], y[part]) for part in (at_train, at_valid, at_test))


def table(name: str, group: str | None) -> Table:
    """Return one of `NAMES` as a table, with its sources as groups if `group` is `GROUP`.

    Raises
    ------
    CommandError
        There is no such group, or no scikit-learn.
    """
    if group is not None and (name, group) != (TRAINING, GROUP):
        has = repr(GROUP) if name == TRAINING else "no groups"
        raise CommandError(f"--group: got {group!r} with {name!r}, which has {has}; needs {GROUP!r} of {TRAINING!r}")
    digits = split()
    x, y = (digits.x, digits.y) if name == TRAINING else (digits.valid_x, digits.valid_y)
    features = tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8))
    groups = None if group is None else digits.source
    return Table(name, name, x, [str(label) for label in y], features, (8, 8), "classification", groups=groups)


def _images(x: Array) -> Array:
    return x.reshape(-1, 8, 8)
