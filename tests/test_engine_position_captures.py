"""Captures of samples of several positions against x_i itself: sums, dots, pairs, Σ x², norms."""

import dataclasses
import math
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from engine_devices import in_each_dtype, on_device, on_each_device

from adamshap.gpu import threads
from adamshap.gpu import windows as engine_windows
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.captures import (
    Captures,
    Dense,
    Gather,
    OuterProducts,
    WindowProducts,
    outer_products,
    roots,
    scale,
    sum_blocks,
    sums,
    window_products,
    write_sums,
)
from adamshap.gpu.layers import context_for
from adamshap.gpu.norms import Norms, add_norms
from adamshap.gpu.scores import contract, pair_dots
from adamshap.gpu.windows import Windows
from adamshap.reference.contract import Array, Network
from adamshap.verify.tolerance import assert_within, rounding

VOCAB, WIDTH, OUT, CONTEXT = 6, 4, 5, 7
CHANNELS, KERNEL = 2, (2, 3)
SHAPES = {
    "outer": {"w": (OUT, WIDTH), "p": (OUT,)},
    "no bias": {"w": (OUT, WIDTH)},
    "gather": {"e": (VOCAB, WIDTH)},
    "scale": {"g": (WIDTH,), "c": (WIDTH,)},
    "gain": {"g": (WIDTH,)},
    "positions": {"q": (CONTEXT, WIDTH)},
    "tied": {"e": (VOCAB, WIDTH)},
    "convolution": {"k": (OUT, CHANNELS, *KERNEL), "p": (OUT,)},
    "convolution in groups": {"k": (2 * OUT, CHANNELS, *KERNEL), "p": (2 * OUT,)},
    "two uses": {"w": (OUT, WIDTH), "p": (OUT,)},
    "tied and dense": {"e": (VOCAB, WIDTH)},
    "model": {"e": (VOCAB, WIDTH), "w": (OUT, WIDTH), "p": (OUT,), "g": (WIDTH,), "c": (WIDTH,)},
}
SIZES = [(3, 4), (3, 1), (1, 4), (1, 1), (4, 3)]


class Drawn:
    """The captures of one kind, each x_i, and the sum of the absolute values of its terms."""

    def __init__(self, kind: str, n: int, positions: int, seed: int, device: str, dtype: Any) -> None:
        self.generator, self.n, self.positions = np.random.default_rng(seed), n, positions
        self.device, self.dtype = device, dtype
        self.x = {name: np.zeros((n, *shape)) for name, shape in SHAPES[kind].items()}
        self.size = {name: np.zeros((n, *shape)) for name, shape in SHAPES[kind].items()}
        uses = {
            "outer": lambda: [self.outer("w", "p", OUT, WIDTH)],
            "no bias": lambda: [self.outer("w", None, OUT, WIDTH)],
            "gather": lambda: [self.gather()],
            "scale": lambda: self.scale("c"),
            "gain": lambda: self.scale(None),
            "positions": lambda: [self.dense("q", positions)],
            "tied": lambda: [self.gather(), self.outer("e", None, VOCAB, WIDTH)],
            "convolution": lambda: [self.windows(1)],
            "convolution in groups": lambda: [self.windows(2)],
            "two uses": lambda: [self.outer("w", "p", OUT, WIDTH), self.outer("w", "p", OUT, WIDTH)],
            "tied and dense": lambda: [self.gather(), self.dense("e", VOCAB), self.outer("e", None, VOCAB, WIDTH)],
            "model": lambda: [self.gather(), self.outer("w", "p", OUT, WIDTH), *self.scale("c")],
        }
        self.captures = Captures(tuple(uses[kind]()))

    def normal(self, *shape: int) -> Array:
        return self.generator.standard_normal(shape).astype(self.dtype)

    def add(self, name: str, x: Array, size: Array) -> None:
        self.x[name] += x
        self.size[name] += size

    def outer(self, weight: str, bias: str | None, d_out: int, d_in: int) -> Any:
        a, b = self.normal(self.n, self.positions, d_in), self.normal(self.n, self.positions, d_out)
        wide_a, wide_b = a.astype(float), b.astype(float)
        for i in range(self.n):
            for t in range(self.positions):
                x = np.outer(wide_b[i, t], wide_a[i, t])
                self.x[weight][i] += x
                self.size[weight][i] += abs(x)
                if bias is not None:
                    self.x[bias][i] += wide_b[i, t]
                    self.size[bias][i] += abs(wide_b[i, t])
        return outer_products(weight, bias, on_device(self.device, a), on_device(self.device, b))

    def windows(self, groups: int) -> Any:
        """Return a capture of images of one row, above and below which a window sees zeros."""
        windows, c_out = Windows(KERNEL, (2, 1), (1, 0)), groups * OUT
        a = self.normal(self.n, groups * CHANNELS, 1, self.positions + KERNEL[1] - 1)
        b = self.normal(self.n, c_out, self.positions)
        padded = np.pad(a.astype(float), ((0, 0), (0, 0), (1, 1), (0, 0)))
        for i in range(self.n):
            for t in range(self.positions):
                for o in range(c_out):
                    seen = slice(o // OUT * CHANNELS, (o // OUT + 1) * CHANNELS)
                    x = float(b[i, o, t]) * padded[i, seen, : KERNEL[0], t : t + KERNEL[1]]
                    self.x["k"][i, o] += x
                    self.size["k"][i, o] += abs(x)
        self.add("p", b.sum(axis=2, dtype=float), abs(b).sum(axis=2, dtype=float))
        return WindowProducts("k", "p", windows, groups, on_device(self.device, a), on_device(self.device, b))

    def gather(self) -> Any:
        """Return a capture of few tokens, so that some are repeated."""
        ids = self.generator.integers(1, 4, (self.n, self.positions))
        b = self.normal(self.n, self.positions, WIDTH)
        for i in range(self.n):
            for t in range(self.positions):
                self.x["e"][i, ids[i, t]] += b[i, t]
                self.size["e"][i, ids[i, t]] += abs(b[i, t])
        return Gather("e", on_device(self.device, ids), on_device(self.device, b))

    def scale(self, bias: str | None) -> Any:
        inputs, b = self.normal(self.n, self.positions, WIDTH), self.normal(self.n, self.positions, WIDTH)
        terms = inputs.astype(float) * b
        self.add("g", terms.sum(axis=1), abs(terms).sum(axis=1))
        if bias is not None:
            self.add(bias, b.astype(float).sum(axis=1), abs(b).astype(float).sum(axis=1))
        xp = pick_backend(self.device, self.dtype).xp
        arrays = on_device(self.device, inputs), on_device(self.device, b)
        return scale(xp, "g", bias, *arrays, lambda _: xp.empty((self.n, WIDTH), self.dtype))

    def dense(self, name: str, units: int) -> Any:
        x = self.normal(self.n, units, WIDTH)
        self.x[name][:, :units] += x
        self.size[name][:, :units] += abs(x)
        return Dense(name, on_device(self.device, x))


def context_of(kind: str, device: str, dtype: Any) -> Any:
    context = context_for(Network((WIDTH, OUT)), pick_backend(device, dtype))
    return dataclasses.replace(context, shapes=SHAPES[kind])


def rows_of(arrays: dict[str, Array], names: Any = None) -> Array:
    """Return every x_i as one row."""
    return np.concatenate([x.reshape(len(x), -1) for name, x in arrays.items() if names is None or name in names], 1)


in_every_case = pytest.mark.parametrize("kind", SHAPES)
in_every_size = pytest.mark.parametrize(("n", "positions"), SIZES)


@on_each_device
@in_each_dtype
@in_every_case
@in_every_size
@pytest.mark.parametrize("block", [1, 1 << 16])
def test_sums(
    device: Any, dtype: Any, kind: str, n: int, positions: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "CACHED", block)
    for limit in ("UNFOLDED_ON_HOST", "UNFOLDED_ON_DEVICE"):
        monkeypatch.setattr(engine_windows, limit, block)
    context, drawn = context_of(kind, device, dtype), Drawn(kind, n, positions, 0, device, dtype)
    host, xp = context.backend.host, context.backend.xp
    into = {name: xp.full(shape, 2.0, dtype) for name, shape in context.shapes.items()}
    blocks = {name: np.zeros(shape) for name, shape in context.shapes.items()}

    def keep(name: str, units: slice, gradient: Any) -> None:
        blocks[name][units] += host(gradient)

    sum_blocks(context, drawn.captures, keep, 0)
    for times, add in ((1, False), (2, True)):
        write_sums(context, drawn.captures, into, add=add)
        for name, array in into.items():
            wanted, size = times * drawn.x[name].sum(axis=0), times * drawn.size[name].sum(axis=0)
            assert_within(host(array), wanted, rounding(size, n * positions + 4, dtype), name)
    for name, array in blocks.items():
        size = drawn.size[name].sum(axis=0)
        assert_within(array, drawn.x[name].sum(axis=0), rounding(size, n * positions + 4, dtype), name)


@on_each_device
@in_each_dtype
@in_every_case
@in_every_size
def test_dots_with_a_matrix_and_with_its_factors(device: Any, dtype: Any, kind: str, n: int, positions: int) -> None:
    context, drawn = context_of(kind, device, dtype), Drawn(kind, n, positions, 0, device, dtype)
    generator, xp = np.random.default_rng(1), context.backend.xp
    factors = {
        name: (generator.standard_normal((shape[0], 2)), generator.standard_normal((2, math.prod(shape[1:]))))
        for name, shape in context.shapes.items()
        if name in drawn.captures.products
    }
    products = {name: (q @ c, abs(q) @ abs(c)) for name, (q, c) in factors.items()}
    matrix = {
        name: products[name][0].reshape(shape) if name in products else generator.standard_normal(shape)
        for name, shape in context.shapes.items()
    }
    size_of = {name: products[name][1].reshape(p.shape) if name in products else abs(p) for name, p in matrix.items()}
    wanted = sum((drawn.x[name] * p).reshape(n, -1).sum(axis=1) for name, p in matrix.items())
    size = sum((drawn.size[name] * p).reshape(n, -1).sum(axis=1) for name, p in size_of.items())
    on = {name: on_device(device, p.astype(dtype)) for name, p in matrix.items()}
    pairs = {name: tuple(on_device(device, part.astype(dtype)) for part in pair) for name, pair in factors.items()}
    for given in (None, pairs):
        out = xp.ones(n, dtype)
        contract(context, drawn.captures, on, out, given)
        assert_within(
            context.backend.host(out), 1 + wanted, rounding(1 + size, 200, dtype), f"factors {given is not None}"
        )


@on_each_device
@in_each_dtype
@in_every_case
@pytest.mark.parametrize(("n", "positions", "others"), [(3, 4, 2), (1, 1, 3), (2, 1, 1), (2, 9, 9), (2, 3, 1)])
def test_pairs(device: Any, dtype: Any, kind: str, n: int, positions: int, others: int) -> None:
    """Also of passes of different lengths, and by products of positions as by x'_j itself."""
    others = min(others, CONTEXT) if kind == "positions" else others
    positions = min(positions, CONTEXT) if kind == "positions" else positions
    context = context_of(kind, device, dtype)
    one, two = Drawn(kind, n, positions, 0, device, dtype), Drawn(kind, 2, others, 1, device, dtype)
    first = next(iter(context.shapes))
    for names in (None, [first]):
        wanted, size = (rows_of(a, names) @ rows_of(b, names).T for a, b in ((one.x, two.x), (one.size, two.size)))
        got = context.backend.host(pair_dots(context, one.captures, two.captures, names))
        assert got.dtype == dtype
        assert_within(got, wanted, rounding(size, 300, dtype), f"pairs over {names}")


@on_each_device
@in_each_dtype
@in_every_case
@in_every_size
@pytest.mark.parametrize("chunks", [1, 2])
def test_roots_of_sums_of_squares(
    device: Any, dtype: Any, kind: str, n: int, positions: int, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each element is right to the rounding of its x_i, whose terms may cancel."""
    monkeypatch.setattr(roots, "CACHED", 8)
    context, drawn = context_of(kind, device, dtype), Drawn(kind, n, positions, 0, device, dtype)
    norms = Norms()
    for chunk in range(chunks):
        part = slice(n * chunk // chunks, n * (chunk + 1) // chunks)
        if part.start < part.stop:
            add_norms(context, norms, drawn.captures.rows(part), "exact")
    for name, x in drawn.x.items():
        root = context.backend.host(norms.of(name, n).root)
        wanted, size = (np.sqrt((one**2).sum(axis=0)) for one in (x, drawn.size[name]))
        assert_within(root.reshape(wanted.shape), wanted, rounding(size, 4 * positions + 2 * n + 20, dtype), name)


@on_each_device
@in_each_dtype
@pytest.mark.parametrize("kind", ["outer", "gather", "tied", "model", "positions", "convolution"])
def test_roots_of_squares_beyond_the_range(device: Any, dtype: Any, kind: str) -> None:
    """x_i may be of any size that the dtype holds, beside others far smaller."""
    far = {"float32": 1e15, "float64": 1e140}[dtype]
    context, drawn = context_of(kind, device, dtype), Drawn(kind, 3, 4, 0, device, dtype)
    weights = np.array([[far], [1 / far], [1.0]])
    norms = Norms()
    for scale_of, x_scale in ((weights, weights[:, 0]), (weights[::-1] * far, weights[::-1, 0] * far)):
        norms = Norms()
        scaled = drawn.captures.weighted(on_device(device, scale_of.astype(dtype)))
        add_norms(context, norms, scaled, "exact")
        for name, x in drawn.x.items():
            unit = x_scale.astype(dtype).astype(np.longdouble).reshape(-1, *(1,) * (x.ndim - 1))
            wanted, size = (np.sqrt(((one * unit) ** 2).sum(axis=0)).astype(float) for one in (x, drawn.size[name]))
            root = context.backend.host(norms.of(name, 3).root).reshape(wanted.shape)
            assert_within(root, wanted, rounding(size, 60, dtype), name)


@on_each_device
@in_each_dtype
@in_every_case
@in_every_size
def test_norms_of_rows(device: Any, dtype: Any, kind: str, n: int, positions: int) -> None:
    """Exact for one use of each parameter, a bound for several; the rounding is relative to Σ |b| |a|."""
    context, drawn = context_of(kind, device, dtype), Drawn(kind, n, positions, 0, device, dtype)
    wanted, size = (np.linalg.norm(rows_of(arrays), axis=1) for arrays in (drawn.x, drawn.size))
    got = context.backend.host(drawn.captures.row_norms(context.backend.xp)).astype(float)
    close = rounding(size, 100, dtype) * np.maximum(1, size / np.maximum(wanted, 1e-300))
    assert (got >= wanted - close).all()
    if not drawn.captures.used_twice:
        assert_within(got, wanted, close, "norms")


@on_each_device
@in_each_dtype
@pytest.mark.parametrize("positions", [2, 9])  # by pairs of positions, and by x_i
@pytest.mark.parametrize("powers", [(0, 0, 0), (-1, 0, 1), (-1, -1, -1), (1, 1, 1), (0, None, 0)])
def test_norms_of_rows_beyond_the_range_of_squares(device: Any, dtype: Any, positions: int, powers: Any) -> None:
    """Rows whose squares the dtype does not hold, all of them or beside ordinary ones; None is a row of zeros."""
    context, random = context_of("no bias", device, dtype), np.random.default_rng(0)
    far = {"float32": 22, "float64": 170}[dtype]
    scales = np.array([0.0 if power is None else 10.0 ** (far * power) for power in powers])
    a, b = (random.standard_normal((3, positions, width)).astype(dtype) for width in (6, 7))
    small = np.asarray(scales[:, None, None], dtype) * b
    capture = OuterProducts("w", None, on_device(device, a), on_device(device, small))
    own = np.asarray(scales, dtype).astype(float)
    x = np.einsum("nto,nti->noi", b.astype(float), a.astype(float)).reshape(3, -1)
    wanted = np.linalg.norm(x, axis=1) * own
    size = np.linalg.norm(a.astype(float), axis=(1, 2)) * np.linalg.norm(b.astype(float), axis=(1, 2)) * own
    got = context.backend.host(capture.row_norms(context.backend.xp)).astype(float)
    close = rounding(size, 100, dtype) * np.maximum(1, size / np.where(wanted > 0, wanted, 1))
    assert_within(got, wanted, close, "norms")


@on_each_device
@in_each_dtype
@pytest.mark.parametrize(("n", "positions"), [(3, 4), (1, 4), (3, 1), (3, 9)])
def test_the_rank_one_form(device: Any, dtype: Any, n: int, positions: int) -> None:
    """The norms' product over positions, with the total of all samples; at one position it is today's."""
    context, drawn = context_of("no bias", device, dtype), Drawn("no bias", n, positions, 0, device, dtype)
    norms = Norms()
    for low in range(0, n, 2):
        add_norms(context, norms, drawn.captures.rows(slice(low, low + 2)), "rank_one")
    given, capture = norms.of("w", n), drawn.captures.uses[0]
    assert given.root is None
    got = np.outer(*(context.backend.host(part).astype(float) for part in (given.row, given.col)))
    a, b = (context.backend.host(x).astype(float).reshape(n, positions, -1) for x in (capture.a, capture.b))
    wanted = np.sqrt(np.outer((b**2).sum(axis=(0, 1)), (a**2).sum(axis=(0, 1))) / n)
    total = (drawn.x["w"] ** 2).sum() / ((a**2).sum(axis=(1, 2)) * (b**2).sum(axis=(1, 2))).sum()
    assert_within(got, wanted * math.sqrt(total), rounding(wanted, 100, dtype), "rank one")


@on_each_device
@pytest.mark.parametrize("kind", ["outer", "gather", "model", "convolution in groups"])
def test_signed_roots_are_refused_for_several_positions(device: Any, kind: str) -> None:
    context = context_of(kind, device, "float64")
    with pytest.raises(ValueError, match=r"slope: got 'two_term' for samples of 4 positions, .* needs another slope"):
        Drawn(kind, 3, 4, 0, device, "float64").captures.signed_roots(context)
    drawn = Drawn(kind, 3, 1, 0, device, "float64")
    xp = context.backend.xp
    into = {name: xp.empty(shape) for name, shape in context.shapes.items()}
    write_sums(context, drawn.captures.signed_roots(context), into)
    for name, x in drawn.x.items():
        wanted = np.sign(x) * np.sqrt(abs(x))
        close = rounding(abs(wanted).sum(axis=0), 20)
        assert_within(context.backend.host(into[name]), wanted.sum(axis=0), close, name)


@on_each_device
@in_every_case
def test_weights_rows_and_rebuilding(device: Any, kind: str) -> None:
    context, drawn = context_of(kind, device, "float64"), Drawn(kind, 3, 4, 0, device, "float64")
    xp, host = context.backend.xp, context.backend.host
    weights = np.array([[0.0], [2.0], [-3.0]])
    captures = drawn.captures.weighted(on_device(device, weights)).rows(slice(1, 3))
    inputs = next((use.ids for use in captures.uses if isinstance(use, Gather)), None)
    if isinstance(use := captures.uses[0], WindowProducts):
        captures, inputs = Captures((dataclasses.replace(use, a_is_input=True),)), use.a
    kept = {name: array.copy() for name, array in captures.kept().items()}
    for one in (captures, captures.rows(slice(0, 0)).rebuilt(kept, inputs)):
        into = {name: xp.empty(shape) for name, shape in context.shapes.items()}
        write_sums(context, one, into)
        for name, x in drawn.x.items():
            wanted = np.tensordot(weights[1:, 0], x[1:], 1)
            close = rounding(np.tensordot(abs(weights[1:, 0]), drawn.size[name][1:], 1), 20)
            assert_within(host(into[name]), wanted, close, name)


def test_one_position_makes_single_outer_products() -> None:
    a, b = np.ones((2, 1, 3)), np.ones((2, 1, 4))
    capture = outer_products("w", "p", a, b)
    assert not isinstance(capture, OuterProducts)
    assert (capture.a.shape, capture.b.shape) == ((2, 3), (2, 4))  # type: ignore[attr-defined]
    four = outer_products("w", None, np.ones((2, 2, 5, 3)), np.ones((2, 2, 5, 4)))
    assert four.a.shape == (2, 10, 3)  # type: ignore[attr-defined]


@on_each_device
@in_each_dtype
def test_the_rank_one_form_of_a_convolution_is_that_of_a_linear_layer_on_its_windows(device: Any, dtype: Any) -> None:
    context, drawn = context_of("convolution", device, dtype), Drawn("convolution", 3, 4, 0, device, dtype)
    (use,) = drawn.captures.uses
    columns = use.windows.unfolded(context.backend.xp, use.a)
    a, b = columns.reshape(len(columns), 3, 4).transpose(1, 2, 0), use.b.swapaxes(1, 2)
    linear = Captures((outer_products("k", "p", *map(context.backend.xp.ascontiguousarray, (a, b))),))
    got, wanted = Norms(), Norms()
    for low in range(0, 3, 2):
        for norms, captures in ((got, drawn.captures), (wanted, linear)):
            add_norms(context, norms, captures.rows(slice(low, low + 2)), "rank_one")
    for ours, theirs in zip(*((one.of("k", 3).row, one.of("k", 3).col) for one in (got, wanted)), strict=True):
        theirs = context.backend.host(theirs).astype(float)
        assert_within(context.backend.host(ours), theirs, rounding(theirs, 200, dtype), "rank one")


@on_each_device
@pytest.mark.parametrize("units", [(0, 10), (3, 10), (3, 4), (5, 10), (2, 7), (0, 6), (4, 4)])
def test_sums_of_some_output_channels_of_several_groups(device: Any, units: tuple[int, int]) -> None:
    """Whole groups, and parts of them at either end."""
    kind = "convolution in groups"
    context, drawn = context_of(kind, device, "float64"), Drawn(kind, 3, 4, 0, device, "float64")
    (use,) = drawn.captures.uses
    for name in ("k", "p"):
        got = context.backend.host(use.sum_of(context.backend.xp, name, slice(*units)))
        wanted, size = (one[name][:, slice(*units)].sum(axis=0) for one in (drawn.x, drawn.size))
        assert_within(got, wanted, rounding(size, 20), name)


@on_each_device
def test_of_rank_one_several_groups_are_exact_all_the_same(device: Any) -> None:
    kind = "convolution in groups"
    context, drawn, norms = context_of(kind, device, "float64"), Drawn(kind, 3, 4, 0, device, "float64"), Norms()
    add_norms(context, norms, drawn.captures, "rank_one")
    root = context.backend.host(norms.of("k", 3).root)
    wanted, size = (np.sqrt((one["k"] ** 2).sum(axis=0)).reshape(root.shape) for one in (drawn.x, drawn.size))
    assert_within(root, wanted, rounding(size, 40), "roots")


@in_each_dtype
@pytest.mark.parametrize("variance", ["exact", "rank_one"])
@pytest.mark.parametrize(
    ("kind", "name", "positions"), [("convolution", "k", 4), ("outer", "w", 2), ("outer", "w", 9)]
)  # of linear layers by pairs of positions, and by x_i
def test_samples_divided_among_threads(
    dtype: Any, variance: str, kind: str, name: str, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three parts of seven samples, computed one at a time, against all of them at once."""
    context, drawn = context_of(kind, "cpu", dtype), Drawn(kind, 7, positions, 0, "cpu", dtype)
    whole, parts = Norms(), Norms()
    add_norms(context, whole, drawn.captures, variance)
    wanted = [np.array(one) for one in vars(whole[name]).values() if one is not None]
    monkeypatch.setattr(window_products, "CACHED", 1)
    monkeypatch.setattr(import_module("adamshap.gpu.captures.outer_products"), "POSITION_PAIRS", 1)
    monkeypatch.setattr(threads, "FLOPS_WORTH_A_THREAD", 1)
    with threads.own_threads(3):
        add_norms(context, parts, drawn.captures, variance)
    got = [one for one in vars(parts[name]).values() if one is not None]
    for ours, theirs in zip(got, wanted, strict=True):
        assert_within(ours, theirs.astype(float), rounding(theirs.astype(float), 60, dtype), variance)
