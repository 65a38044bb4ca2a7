"""The preparation of data: the split, the standardised inputs of the network, and the flipped labels."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from sklearn.preprocessing import StandardScaler

from adamshap.reference import Network
from adamshap.reference.command.datasets import Dataset, load, load_valid
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.job import Fit
from adamshap.reference.command.preparation import (
    ROUNDINGS,
    VALIDATION_SHARE,
    Prepared,
    flip_labels,
    hold_out,
    is_constant,
    prepare,
)
from adamshap.reference.command.training import measure

# The significance level of statistical tests: they fail by chance once in a million runs; the seeds are fixed.
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


@given(st.lists(st.integers(2, 400), min_size=2, max_size=6), st.integers(1, 90), st.integers(0, 2**32))
def test_a_limit_holds_out_fewer_of_each_class_in_proportion(sizes: list[int], limit: int, seed: int) -> None:
    y = _labels(sizes, seed)
    whole, held_out = (hold_out(y, np.random.default_rng(seed), limit=most) for most in (None, limit))
    assert not (held_out & ~whole).any()
    assert held_out.sum() == min(max(limit, len(sizes)), whole.sum())
    if whole.sum() > limit:
        for label in range(len(sizes)):
            count, all_of_them = int(held_out[y == label].sum()), int(whole[y == label].sum())
            exact = limit * all_of_them / whole.sum()
            assert count >= 1
            # One example of each small class comes from the shares of the others.
            assert exact - len(sizes) < count < exact + 1 or count == 1


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
    # The peer computes the same mean and deviation of the training part with the same arithmetic: the same bits.
    peer = StandardScaler().fit(x[train][:, [0, 1, 3]])
    for part, rows in ((prepared.train, train), (prepared.valid, valid)):
        wanted = peer.transform(x[rows][:, [0, 1, 3]])
        rounding = 8 * len(y) * np.finfo(np.float64).eps * (1 + np.abs(wanted) + np.abs(peer.mean_ / peer.scale_))
        assert (np.abs(part.x[:, [0, 1, 3]] - wanted) <= rounding).all()


def test_a_constant_feature_is_0_in_validation_too() -> None:
    """Its weights keep their initial values, so any other input would add noise to the network's outputs."""
    y = np.repeat([0, 1], 10)
    x = np.random.default_rng(0).normal(size=(20, 3))
    x[:, 1], x[:, 2] = 3.0, _alternating(0.3, 0.1 + 0.2)[:20]
    other = np.random.default_rng(1).normal(size=(20, 3)) * 1e6
    prepared = prepare(_dataset(x, y), flip=0.0, seed=0, valid=_dataset(other, y))
    assert prepared.constant.tolist() == [False, True, True]
    assert not prepared.valid.x[:, 1:].any()
    assert prepared.valid.x[:, 0].all()


def test_flips_leave_the_hold_out_alone() -> None:
    y = _labels([30, 30], 0)
    x = np.random.default_rng(0).normal(size=(60, 2))
    plain, flipped = (prepare(_dataset(x, y), flip=flip, seed=3) for flip in (0.0, 0.4))
    assert np.array_equal(plain.valid_index, flipped.valid_index)
    assert not np.array_equal(plain.valid_index, prepare(_dataset(x, y), flip=0.0, seed=4).valid_index)


@pytest.mark.parametrize("values", [(-1e308, 1e308), (1e-320, 2e-320), (1e-200, 2e-200)])
def test_a_spread_beyond_float64_is_refused(values: tuple[float, float]) -> None:
    x = np.tile(np.array(values), 10)[:, None]
    with pytest.raises(CommandError, match=r"feature 'f0' ranges from .* needs a spread"):
        prepare(_dataset(x, np.repeat([0, 1], 10)), flip=0.0, seed=0)


# --- constant up to rounding -----------------------------------------------------------------------------------------

COUNT = 40
CLASSES = np.arange(COUNT) % 2
FLOAT64, FLOAT32 = np.float64, np.float32


def _alternating(*values: float) -> np.ndarray[Any, Any]:
    """Return a column that cycles through `values`, with each value in both classes."""
    return np.array(values)[np.arange(COUNT) // 2 % len(values)]


def _ulps(value: float, count: int, dtype: type = FLOAT64) -> float:
    """Return the number `count` floating-point steps of `dtype` above `value`."""
    return float(dtype(value) + count * np.spacing(dtype(value)))


ROUNDED = {
    "the sum that everybody knows": (FLOAT64, [0.3, 0.1 + 0.2]),
    "a difference": (FLOAT64, [0.1, 1 - 0.9]),
    "a sum of ten": (FLOAT64, [1.0, sum([0.1] * 10)]),
    "Celsius, Fahrenheit and back": (FLOAT64, [36.6, (36.6 * 1.8 + 32 - 32) / 1.8, (36.6 * 9 / 5 + 32 - 32) * 5 / 9]),
    "negative": (FLOAT64, [-0.3, -0.1 - 0.2]),
    "at a large size": (FLOAT64, [3e20, _ulps(3e20, 2)]),
    "below the normal numbers": (FLOAT64, [0.0, 5e-324]),
    "float32": (FLOAT32, [0.7, 0.1 * 7 + 3e-8]),
    "float32 at a large size": (FLOAT32, [1013.25, _ulps(1013.25, 3, FLOAT32)]),
    "integers that float64 must round": (FLOAT64, [2.0**60, _ulps(2.0**60, 1)]),
}
REAL = {
    "a clock": (FLOAT64, list(1.7e9 + np.linspace(-1, 1, 5))),
    "a clock that ticks once": (FLOAT64, [1.7e9, 1.7e9 + 1e-5]),
    "identities": (FLOAT64, list(2.0**53 - np.arange(1.0, 4.0))),
    "neighbouring identities": (FLOAT64, [2.0**53 - 1, 2.0**53]),
    "identities as integers beyond float64's": (np.int64, [2**60, 2**60 + 256]),
    "identities in float32": (FLOAT32, [2.0**24 - 1, 2.0**24]),
    "0.3 and its like, in float64": (FLOAT64, [0.3, float(np.float32(0.3))]),
    "as far apart as rounding cannot bring them": (FLOAT64, [1.5, _ulps(1.5, 2 * ROUNDINGS)]),
    "tiny": (FLOAT64, [1e-150, 2e-150]),
    "booleans": (np.bool_, [False, True]),
}


@pytest.fixture
def prepared_of(tmp_path: Path) -> Callable[..., Prepared]:
    """Return a function that prepares a file with a column of noise and a column of the given values."""

    def prepared(dtype: type, values: list[float], form: str) -> Prepared:
        column = np.array(values).astype(dtype)[np.arange(COUNT) // 2 % len(values)]
        noise = np.random.default_rng(0).normal(size=COUNT).astype(dtype)
        if form == "parquet":
            pandas = pytest.importorskip("pandas", reason="extra `tables`: pandas")
            frame = pandas.DataFrame({"noise": np.arange(COUNT) * 0.7, "x": column, "label": CLASSES})
            frame.to_parquet(tmp_path / "a.parquet")
            return prepare(load(str(tmp_path / "a.parquet")), flip=0.0, seed=0)
        x = np.stack([noise, column], axis=1)
        np.savez(tmp_path / "a.npz", x=x, y=CLASSES)
        np.save(tmp_path / "x.npy", x)
        np.save(tmp_path / "y.npy", CLASSES)
        data = f"{tmp_path}/x.npy,{tmp_path}/y.npy" if form == "npy" else f"{tmp_path}/a.npz"
        return prepare(load(data), flip=0.0, seed=0)

    return prepared


@pytest.mark.parametrize("form", ["npz", "npy", "parquet"])
@pytest.mark.parametrize("name", ROUNDED)
def test_constant_but_for_rounding_is_constant(prepared_of: Callable[..., Prepared], name: str, form: str) -> None:
    dtype, values = ROUNDED[name]
    prepared = prepared_of(dtype, values, form)
    assert prepared.constant[1]
    # The network sees only its rounding errors, compared with inputs of size 1.
    for part in (prepared.train, prepared.valid):
        assert (np.abs(np.asarray(part.x)[:, 1]) <= ROUNDINGS * np.finfo(dtype).eps).all()


@pytest.mark.parametrize("form", ["npz", "npy", "parquet"])
@pytest.mark.parametrize("name", REAL)
def test_a_small_spread_at_a_large_offset_is_not_lost(
    prepared_of: Callable[..., Prepared], name: str, form: str
) -> None:
    dtype, values = REAL[name]
    prepared = prepared_of(dtype, values, form)
    assert not prepared.constant[1]
    x = np.asarray(prepared.train.x)[:, 1]
    raw = np.array(values).astype(dtype).astype(np.float64)
    # All values stay distinct and in order; the deviation is 1 and the mean 0, within the precision of float64.
    assert len(np.unique(x)) == len(np.unique(raw))
    half_a_step = np.spacing(np.abs(raw).max()) / 2 / prepared.scale[1]
    rounding = COUNT * np.finfo(np.float64).eps
    assert abs(x.mean()) <= half_a_step + rounding
    assert abs(np.sqrt(np.square(x - x.mean()).mean()) - 1) <= rounding


@pytest.mark.parametrize("size", [1e40, 1e300])
def test_validation_examples_beyond_float32_are_refused_by_their_feature(size: float) -> None:
    y = np.repeat([0, 1], 10)
    x = np.random.default_rng(0).normal(size=(20, 2))
    with pytest.raises(
        CommandError, match=r"^data: feature 'f1' ranges from .*; needs numbers nearer to those of the tr"
    ):
        prepare(_dataset(x, y), flip=0.0, seed=0, valid=_dataset(x * [1, size], y))


POSITIVE = st.fractions(Fraction(1, 10**6), 10**6, max_denominator=10**6)


@given(POSITIVE, POSITIVE, POSITIVE, st.integers(1, 100), st.sampled_from([FLOAT64, FLOAT32]))
def test_four_roundings_make_no_spread_and_more_than_they_can_does(
    x: Fraction, a: Fraction, b: Fraction, further: int, dtype: type
) -> None:
    """Values of a x + b with every number and result rounded count as equal to the exact value, rounded once."""
    computed = float(dtype(float(a)) * dtype(float(x)) + dtype(float(b)))
    exact = float(dtype(float(a * x + b)))
    low, high = np.array([min(computed, exact)]), np.array([max(computed, exact)])
    eps = float(np.finfo(dtype).eps)
    assert is_constant(low, high, eps).all()
    assert is_constant(-high, -low, eps).all()
    apart = low + (ROUNDINGS + further) * eps * np.maximum(high, low) * 2
    assert not is_constant(low, apart, eps).any()
    assert not is_constant(-apart, -low, eps).any()


@pytest.mark.parametrize("name", ROUNDED)
def test_targets_that_are_constant_but_for_rounding_are_refused(tmp_path: Path, name: str) -> None:
    dtype, values = ROUNDED[name]
    y = np.array(values).astype(dtype)[np.arange(COUNT) % len(values)]
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(COUNT, 2)), y=y)
    with pytest.raises(CommandError, match="'target' is the same in all training examples, to rounding; needs"):
        prepare(load(str(tmp_path / "a.npz"), None, "regression"), flip=0.0, seed=0)


def test_nothing_is_explained_of_validation_targets_that_are_constant_but_for_rounding(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(2, COUNT, 1))
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", x=x, y=_alternating(0.3, 0.1 + 0.2)[:, None])
    dataset = load(str(tmp_path / "a.npz"))
    prepared = prepare(dataset, flip=0.0, seed=0, valid=load_valid(str(tmp_path / "b.npz"), None, dataset))
    network = Network((1, 1), loss="mse")
    fit = measure(network, network.init(0), prepared)
    assert isinstance(fit, Fit)
    assert fit.r_squared is None
