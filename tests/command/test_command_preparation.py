"""Split, standardisation and flips: what is held out, what the network is given, which labels change and how."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from sklearn.preprocessing import StandardScaler

from adamshap.reference.command.datasets import Dataset
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.preparation import VALIDATION_SHARE, flip_labels, hold_out, prepare

# A test of chance that fails by chance once in a million runs; the seeds are fixed.
CHANCE = 1e-6
SIZES = st.lists(st.integers(2, 60), min_size=2, max_size=6)


def _labels(sizes: list[int], seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def _dataset(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Dataset:
    names = tuple(f"class {label}" for label in range(y.max() + 1))
    return Dataset("data", x, y, names, tuple(f"f{column}" for column in range(x.shape[1])))


@given(SIZES, st.integers(0, 2**32))
def test_every_class_is_split_in_the_same_way(sizes: list[int], seed: int) -> None:
    y = _labels(sizes, seed)
    held_out = hold_out(y, np.random.default_rng(seed))
    for label, size in enumerate(sizes):
        count = int(held_out[y == label].sum())
        assert 1 <= count <= size - 1
        assert count == max(1, round(VALIDATION_SHARE * size))
    assert np.array_equal(held_out, hold_out(y, np.random.default_rng(seed)))


def test_every_example_can_be_held_out() -> None:
    y = _labels([5, 10], 0)
    assert np.any([hold_out(y, np.random.default_rng(seed)) for seed in range(200)], axis=0).all()


@given(SIZES, st.floats(0, 0.99), st.integers(0, 2**32))
def test_flipped_labels_are_other_classes(sizes: list[int], share: float, seed: int) -> None:
    y = _labels(sizes, seed)
    before = y.copy()
    count = round(share * len(y))
    if share and not 0 < count < len(y):
        with pytest.raises(CommandError, match="--flip-labels"):
            flip_labels(y, len(sizes), share, np.random.default_rng(seed))
        return
    flipped, labels = flip_labels(y, len(sizes), share, np.random.default_rng(seed))
    assert flipped.sum() == count
    assert np.array_equal(labels != y, flipped)
    assert labels.min() >= 0
    assert labels.max() < len(sizes)
    assert np.array_equal(y, before)


def test_flips_are_uniform() -> None:
    y = np.repeat(np.arange(4), 5000)
    flipped, labels = flip_labels(y, 4, 0.5, np.random.default_rng(1))
    assert chisquare([flipped[y == label].sum() for label in range(4)]).pvalue > CHANCE
    for label in range(4):
        others = np.bincount(labels[flipped & (y == label)], minlength=4)
        assert others[label] == 0
        assert chisquare(np.delete(others, label)).pvalue > CHANCE


@given(SIZES, st.integers(0, 2**32), st.sampled_from([0.0, 0.5]))
def test_what_is_prepared_is_the_data(sizes: list[int], seed: int, flip: float) -> None:
    y = _labels(sizes, seed)
    generator = np.random.default_rng(seed)
    x = generator.normal(generator.normal(size=4) * 10, generator.uniform(0.1, 100, 4), (len(y), 4))
    x[:, 2] = 0.1  # its mean over 3, 6, ... examples is not 0.1 in floating point
    prepared = prepare(_dataset(x, y), flip=flip, seed=seed)
    train, valid = prepared.train_index, prepared.valid_index
    assert sorted([*train, *valid]) == list(range(len(y)))
    assert np.array_equal(prepared.labels, y[train])
    assert np.array_equal(prepared.valid.y, y[valid])
    assert np.array_equal(prepared.train.y != y[train], prepared.flipped)
    assert prepared.constant.tolist() == [False, False, True, False]
    assert not prepared.train.x[:, 2].any()
    # The peer takes the same mean and deviation, of the training part; the same arithmetic, so the same bits.
    peer = StandardScaler().fit(x[train][:, [0, 1, 3]])
    for part, rows in ((prepared.train, train), (prepared.valid, valid)):
        wanted = peer.transform(x[rows][:, [0, 1, 3]])
        rounding = 8 * len(y) * np.finfo(np.float64).eps * (1 + np.abs(wanted) + np.abs(peer.mean_ / peer.scale_))
        assert (np.abs(part.x[:, [0, 1, 3]] - wanted) <= rounding).all()


def test_flips_leave_the_hold_out_alone() -> None:
    y = _labels([30, 30], 0)
    x = np.random.default_rng(0).normal(size=(60, 2))
    plain, flipped = (prepare(_dataset(x, y), flip=flip, seed=3) for flip in (0.0, 0.4))
    assert np.array_equal(plain.valid_index, flipped.valid_index)
    assert not np.array_equal(plain.valid_index, prepare(_dataset(x, y), flip=0.0, seed=4).valid_index)


@pytest.mark.parametrize("values", [(-1e308, 1e308), (1e-320, 2e-320), (1e-200, 2e-200)])
def test_a_spread_beyond_float64_is_refused(values: tuple[float, float]) -> None:
    x = np.tile(np.array(values), 10)[:, None]
    with pytest.raises(CommandError, match=r"feature 'f0' goes from .* needs a spread"):
        prepare(_dataset(x, np.repeat([0, 1], 10)), flip=0.0, seed=0)
