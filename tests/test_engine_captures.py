"""Captures against the gradients that they represent, and parameters that are used twice."""

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from engine_devices import in_each_dtype, on_device, on_each_device

from adamshap.gpu.backend import pick_backend
from adamshap.gpu.captures import Captures, OuterProduct, multiply_by_sums, sum_blocks, write_sums
from adamshap.gpu.captures import sums as captures_module
from adamshap.gpu.layers import context_for, stack_for
from adamshap.gpu.norms import Norms, add_norms
from adamshap.gpu.scores import contract, pair_dots
from adamshap.reference.contract import Array, Network
from adamshap.verify.tolerance import assert_within, rounding

N, SIZES = 7, (5, 4, 5)
NAMES = ("0.weight", "0.bias", "1.weight", "1.bias")


def arrays(seed: int, n: int = N) -> list[tuple[Array, Array]]:
    """Return a and b of each layer."""
    generator = np.random.default_rng(seed)
    return [
        (generator.standard_normal((n, d_in)), generator.standard_normal((n, d_out))) for d_in, d_out in pairwise(SIZES)
    ]


def captured(device: str, dtype: Any, pairs: list[tuple[Array, Array]], names: Any = NAMES) -> Captures:
    weights, biases = names[::2], names[1::2]
    return Captures(
        tuple(
            OuterProduct(weight, bias, on_device(device, a.astype(dtype)), on_device(device, b.astype(dtype)))
            for weight, bias, (a, b) in zip(weights, biases, pairs, strict=True)
        )
    )


def contributions(pairs: list[tuple[Array, Array]], names: Any = NAMES) -> dict[str, Array]:
    """Return every x_i, (n, …), of each parameter: summed over its uses."""
    found: dict[str, Array] = {}
    for weight, bias, (a, b) in zip(names[::2], names[1::2], pairs, strict=True):
        for name, x in ((weight, np.einsum("no,ni->noi", b, a)), (bias, b)):
            if name is not None:
                found[name] = found.get(name, 0) + x
    return found


def context_of(device: str, dtype: Any, sizes: tuple[int, ...] = SIZES) -> Any:
    return context_for(Network(sizes), pick_backend(device, dtype))


# Two uses of one weight with a bias each, of one weight and one bias, and of a weight with and without a bias.
SQUARE = (4, 4)
TWICE = [("w", "p", "w", "q"), ("w", "p", "w", "p"), ("w", "p", "w", None)]


def twice(seed: int) -> list[tuple[Array, Array]]:
    generator = np.random.default_rng(seed)
    return [(generator.standard_normal((N, 4)), generator.standard_normal((N, 4))) for _ in range(2)]


def context_of_two_uses(device: str, dtype: Any, names: Any) -> Any:
    shapes = {name: (4, 4) if name == "w" else (4,) for name in names if name is not None}
    return dataclasses.replace(context_of(device, dtype), shapes=shapes)


def magnitude(pairs: list[tuple[Array, Array]], names: Any = NAMES) -> dict[str, Array]:
    return contributions([(np.abs(a), np.abs(b)) for a, b in pairs], names)


@on_each_device
@in_each_dtype
@pytest.mark.parametrize("names", TWICE)
@pytest.mark.parametrize("block", [1, 1 << 16])
def test_the_uses_of_a_parameter_add_up(
    device: Any, dtype: Any, names: Any, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums, blocks of sums, products, dots with P and pairs: those of Σ over uses, for every row."""
    monkeypatch.setattr(captures_module, "CACHED", block)
    context, pairs, others = context_of_two_uses(device, dtype, names), twice(0), twice(1)
    host, xp = context.backend.host, context.backend.xp
    captures, validation = captured(device, dtype, pairs, names), captured(device, dtype, others, names)
    x, size = contributions(pairs, names), magnitude(pairs, names)
    into = {name: xp.full(shape, 2.0, dtype) for name, shape in context.shapes.items()}
    for add, rest in ((False, 0), (True, 1)):
        write_sums(context, captures, into, add=add)
        for name, array in into.items():
            close = rounding(size[name].sum(axis=0), 4 * N, dtype)
            assert_within(host(array), (1 + rest) * x[name].sum(axis=0), (1 + rest) * close, name)
    products = {name: xp.full(shape, 3.0, dtype) for name, shape in context.shapes.items()}
    multiply_by_sums(context, captures, products)
    blocks = {name: np.zeros(shape) for name, shape in context.shapes.items()}

    def keep(name: str, units: slice, gradient: Any) -> None:
        blocks[name][units] += host(gradient)

    sum_blocks(context, captures, keep, 0)
    for name in context.shapes:
        close = rounding(size[name].sum(axis=0), 4 * N, dtype)
        assert_within(host(products[name]), 3 * x[name].sum(axis=0), 3 * close, name)
        assert_within(blocks[name], x[name].sum(axis=0), close, name)
    matrix = {name: np.random.default_rng(2).standard_normal(shape) for name, shape in context.shapes.items()}
    out = xp.zeros(N, dtype)
    contract(context, captures, {name: on_device(device, p.astype(dtype)) for name, p in matrix.items()}, out)
    wanted, terms = (
        sum((y[name] * p(matrix[name])).reshape(N, -1).sum(axis=1) for name in matrix)
        for y, p in ((x, np.asarray), (size, np.abs))
    )
    assert_within(host(out), wanted, rounding(terms, 100, dtype), "dots")
    y, y_size = contributions(others, names), magnitude(others, names)
    for chosen in (None, ["w"], [name for name in context.shapes if name != "w"]):
        dots = host(pair_dots(context, captures, validation, chosen))
        used = list(context.shapes) if chosen is None else chosen
        wanted, terms = (
            sum(np.tensordot(one[k].reshape(N, -1), two[k].reshape(N, -1), (1, 1)) for k in used)
            for one, two in ((x, y), (size, y_size))
        )
        assert_within(dots, wanted, rounding(terms, 200, dtype), f"pairs over {chosen}")


def test_pairs_with_a_capture_of_another_form_need_no_formula_where_they_share_no_parameter() -> None:
    @dataclasses.dataclass
    class Foreign:
        names: tuple[str, ...]

    ((a, b), _) = arrays(0)
    capture = OuterProduct("w", "p", a, b)
    assert capture.pair_dots(np, Foreign(("gain",))) is None


@on_each_device
def test_a_quantity_quadratic_in_two_uses_sums_them_first_or_is_refused_or_bounded(device: Any) -> None:
    names = TWICE[0]
    context, pairs = context_of_two_uses(device, "float64", names), twice(0)
    captures = captured(device, "float64", pairs, names)
    for variance in ("exact", "rank_one"):
        norms = Norms()
        add_norms(context, norms, captures, variance)
        x, size = contributions(pairs, names)["w"], magnitude(pairs, names)["w"]
        wanted, terms = (np.sqrt((one**2).sum(axis=0)) for one in (x, size))
        assert_within(context.backend.host(norms.of("w", N).root), wanted, rounding(terms, 2 * N), variance)
    with pytest.raises(ValueError, match="slope: got 'two_term' for parameters that are used more than once, w; needs"):
        captures.signed_roots(context)
    for both in (pairs, [pairs[0]] * 2):  # the second: both uses are of one direction
        exact = np.sqrt(sum((x.reshape(N, -1) ** 2).sum(axis=1) for x in contributions(both, names).values()))
        bound = captured(device, "float64", both, names).row_norms(context.backend.xp)
        assert (context.backend.host(bound) + rounding(exact, 100) >= exact).all()


@on_each_device
@in_each_dtype
def test_norms_of_rows_and_signed_roots(device: Any, dtype: Any) -> None:
    context, pairs = context_of(device, dtype), arrays(0)
    captures, x = captured(device, dtype, pairs), contributions(pairs)
    host, xp = context.backend.host, context.backend.xp
    norms = np.sqrt(sum((one.reshape(N, -1) ** 2).sum(axis=1) for one in x.values()))
    assert_within(host(captures.row_norms(xp)), norms, rounding(norms, 50, dtype), "norms")
    roots = captures.signed_roots(context)
    into = {name: xp.empty(shape, dtype) for name, shape in context.shapes.items()}
    write_sums(context, roots, into)
    for name, one in x.items():
        each = np.sign(one) * np.sqrt(np.abs(one))
        assert_within(host(into[name]), each.sum(axis=0), rounding(np.abs(each).sum(axis=0), N, dtype), name)


@on_each_device
def test_weights_of_rows_and_views_of_rows(device: Any) -> None:
    context, pairs = context_of(device, "float64"), arrays(0)
    captures, x = captured(device, "float64", pairs), contributions(pairs)
    weights = np.random.default_rng(1).standard_normal((N, 1))
    into = {name: context.backend.xp.empty(shape) for name, shape in context.shapes.items()}
    write_sums(context, captures.weighted(on_device(device, weights)).rows(slice(2, 6)), into)
    for name, one in x.items():
        wanted = np.tensordot(weights[2:6, 0], one[2:6], 1)
        close = rounding(np.tensordot(np.abs(weights[2:6, 0]), np.abs(one[2:6]), 1), N)
        assert_within(context.backend.host(into[name]), wanted, close, name)


@on_each_device
def test_captures_are_rebuilt_from_the_arrays_they_keep(device: Any) -> None:
    """The model's own inputs are not kept: they are given again."""
    context = context_of(device, "float64")
    backend, net, stack = context.backend, Network(SIZES), context.stack
    x = backend.real(np.random.default_rng(0).standard_normal((N, SIZES[0])))
    y = backend.labels(np.arange(N) % SIZES[-1])
    captures = stack.run(context, stack.workspace(context, "train", x), backend.reals(net.init(0)), y, 1.0)
    kept = {name: backend.host(array).copy() for name, array in captures.kept().items()}
    assert {name: array.shape for name, array in kept.items()} == {"b/0": (N, 4), "a/1": (N, 4), "b/1": (N, 5)}
    empty = stack.workspace(context, "kept", x[:0]).captures
    again = empty.rebuilt({name: on_device(device, array) for name, array in kept.items()}, x)
    for one, other in zip(captures.uses, again.uses, strict=True):
        assert one.names == other.names
        for array in ("a", "b"):
            np.testing.assert_array_equal(backend.host(getattr(one, array)), backend.host(getattr(other, array)))


def test_a_model_without_a_stack_is_refused_by_its_kind() -> None:
    class Unknown:
        kind = "transformer"

    with pytest.raises(ValueError, match=r"model.kind: got 'transformer'; needs one of perceptron"):
        stack_for(Unknown())  # type: ignore[arg-type]


class WithoutForm:
    """A capture that does not say what a bias's x_i is, as an array."""

    def __init__(self, capture: OuterProduct) -> None:
        self.names, self.weight, self.bias, self.n = capture.names, capture.weight, capture.bias, capture.n
        self.capture = capture

    def rows(self, which: slice) -> OuterProduct:
        return self.capture.rows(which)


@on_each_device
@in_each_dtype
@pytest.mark.parametrize(
    ("names", "has_form"),
    [(NAMES, True), (NAMES[:2], True), (("0.bias", "1.weight"), True), (("1.bias",), True), (("1.bias",), False)],
)
def test_captures_of_some_parameters_are_theirs_alone(device: Any, dtype: Any, names: Any, has_form: bool) -> None:
    context, pairs = context_of(device, dtype), arrays(0)
    captures: Any = captured(device, dtype, pairs)
    if not has_form:
        captures = Captures(tuple(WithoutForm(one) for one in captures.uses))  # type: ignore[arg-type]
    some, x = captures.of(context, names), contributions(pairs)
    assert {name for one in some.uses for name in one.names} == set(names)
    matrix = {name: np.random.default_rng(2).standard_normal(x[name].shape[1:]) for name in names}
    out = context.backend.xp.zeros(N, dtype)
    contract(context, some, {name: on_device(device, p.astype(dtype)) for name, p in matrix.items()}, out)
    wanted = sum((x[name] * matrix[name]).reshape(N, -1).sum(axis=1) for name in names)
    terms = sum(np.abs(x[name] * matrix[name]).reshape(N, -1).sum(axis=1) for name in names)
    assert_within(context.backend.host(out), wanted, rounding(terms, 100, dtype), "dots")
    norms = np.sqrt(sum((x[name] ** 2).reshape(N, -1).sum(axis=1) for name in names))
    assert_within(context.backend.host(some.row_norms(context.backend.xp)), norms, rounding(norms, 100, dtype), "norms")
