"""Rounding errors enter the oracle by all of its elementary operations, by each of them, and only temporarily."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from autograd import elementwise_grad, make_vjp

from adamshap import reference
from adamshap.reference import (
    Adam,
    AdamState,
    Batch,
    Clipped,
    Conv2d,
    Flatten,
    MaxPool2d,
    Network,
    Sequential,
    Step,
    images,
    layers,
    losses,
    perceptron,
    transformer,
)
from adamshap.reference.contract import Array
from adamshap.reference.elementary import OPERATIONS, computed_by
from adamshap.verify.tolerance import DRAWN, MORE_DRAWS, SAFETY, unit_roundoff
from adamshap.verify.usual_rounding import _Rounded, usual_rounding


def step(activation: Any, loss: Any) -> Step:
    generator = np.random.default_rng(0)
    net = Network((3, 4, 2), activation, loss)
    params = net.init(0)
    moments = [{name: 0.1 + generator.random(p.shape) for name, p in params.items()} for _ in range(2)]

    def batch(n: int) -> Batch:
        y = generator.integers(0, 2, n) if loss == "cross_entropy" else generator.standard_normal((n, 2))
        return Batch(generator.standard_normal((n, 3)), y)

    return Step(net, params, Adam(), AdamState(3, *moments), batch(6), batch(2))


def all_scores(given: Step) -> Array:
    return np.array([reference.scores(given, slope) for slope in ("random_order", "two_term")])


def test_every_elementary_operation_has_a_rounded_version() -> None:
    assert _Rounded(1e-8, np.random.default_rng(0)).operations().keys() == OPERATIONS.keys()


def stack_step(net: Sequential, batch: Callable[[np.random.Generator, int], Batch]) -> Step:
    generator = np.random.default_rng(1)
    params = {name: p + generator.standard_normal(p.shape) for name, p in net.init(0).items()}
    moments = [{name: 0.1 + generator.random(p.shape) for name, p in params.items()} for _ in range(2)]
    return Step(net, params, Adam(), AdamState(3, *moments), batch(generator, 6), batch(generator, 2))


def sequence_step(norm: Any) -> Step:
    net = transformer(vocab=5, context=3, width=4, depth=1, heads=2, norm=norm)
    return stack_step(net, lambda generator, n: Batch(*generator.integers(0, 5, (2, n, 3))))


def pool_step() -> Step:
    """Return a step whose pool meets pairs of numbers that differ by a billionth."""

    def batch(generator: np.random.Generator, n: int) -> Batch:
        x = generator.standard_normal((n, 1, 4, 1)) * np.array([1.0, 1 + 1e-9])
        return Batch(x, generator.standard_normal((n, 4)))

    return stack_step(Sequential((Conv2d(1, 1, (1, 1)), MaxPool2d((1, 2)), Flatten()), loss="mse"), batch)


STEPS = [
    pool_step(),
    sequence_step("layer"),
    sequence_step("rms"),
    step("tanh", "cross_entropy"),
    *(step(activation, "mse") for activation in ("sigmoid", "silu", "gelu")),
    replace(step("tanh", "mse"), adam=Clipped(Adam(), 1e-3)),
]


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_moves_the_scores(name: str) -> None:
    rounded = _Rounded(1e-8, np.random.default_rng(0)).operations()[name]
    nodes = (4, 2)  # fewer nodes than samples
    right = [reference.scores(one, slope, nodes=nodes) for one in STEPS for slope in ("random_order", "two_term")]
    with computed_by({name: rounded}):
        off = [reference.scores(one, slope, nodes=nodes) for one in STEPS for slope in ("random_order", "two_term")]
    moved = np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in zip(off, right, strict=True)])
    assert 0 < moved < 1e-4


def test_the_exact_operations_are_back_afterwards() -> None:
    one = step("tanh", "cross_entropy")
    right = all_scores(one)
    with usual_rounding(1e-6, np.random.default_rng(0)):
        assert not np.array_equal(all_scores(one), right)
    np.testing.assert_array_equal(all_scores(one), right)
    with pytest.raises(ValueError, match="slope: got 'unknown'"), usual_rounding(1e-6, np.random.default_rng(0)):
        reference.scores(one, "unknown")
    np.testing.assert_array_equal(all_scores(one), right)


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(KeyError, match="no elementary operations: prodcut"), computed_by({"prodcut": min}):
        pass


def test_a_block_within_a_block_replaces_what_it_names() -> None:
    z = np.zeros(2)
    with computed_by({"tanh": lambda z: z + 1, "silu": lambda z: z + 2}):
        with computed_by({"tanh": lambda z: z + 3}):
            assert (perceptron.tanh(z)[0], perceptron.silu(z)[0]) == (3, 2)
        assert perceptron.tanh(z)[0] == 1
    assert perceptron.tanh(z)[0] == 0


@pytest.mark.parametrize(("name", "factor"), [("sigmoid", 1.0), ("silu", 17.0)])
def test_a_sigmoid_by_tanh_has_an_error_in_its_value_too(name: str, factor: float) -> None:
    """(1 + tanh(z/2))/2 loses the digits of a value far below 1; a fully saturated unit is exactly 0 in any form."""
    operation, z, size = getattr(perceptron, name), np.full(1000, -17.0), 1e-6
    right = operation(z)
    for by_hand, expected in ((False, 0.0), (True, 0.5 * size * factor)):
        with usual_rounding(size, np.random.default_rng(0), by_hand):
            deviation = np.std(operation(z) - right)
            assert operation(np.array([-1e3]))[0] == OPERATIONS[name](np.array([-1e3]))[0]
        assert deviation == pytest.approx(expected, rel=0.1)


def derivative(operation: Any, z: Array) -> Array:
    return np.array(elementwise_grad(operation)(z))


def cross_entropy_slope(z: Array) -> Array:
    logits = np.stack([z, np.zeros_like(z)], axis=1)
    labels = np.zeros(len(z), np.int64)
    return np.array(elementwise_grad(lambda x: losses.cross_entropy(x, labels))(logits))[:, 0]


@pytest.mark.parametrize(
    ("slope", "z"),
    [
        (lambda z: derivative(perceptron.tanh, z), 60.0),  # 1 − tanh² = 3e-52
        (lambda z: derivative(perceptron.sigmoid, z), 100.0),
        (cross_entropy_slope, 471.0),
        (perceptron.gelu, -12.0),  # z (1 + erf)/2 = −2e-32
    ],
    ids=["tanh", "sigmoid", "cross_entropy", "gelu"],
)
def test_what_some_libraries_round_to_0_has_an_error_of_its_own_size(slope: Any, z: float) -> None:
    """Far below u³: right implementations have 0, or all digits."""
    size = 1e-8
    right = slope(np.full(1000, z))
    assert 0 < np.abs(right[0]) < size**3
    with usual_rounding(size, np.random.default_rng(0)):
        assert np.std(slope(np.full(1000, z)) / right) == pytest.approx(1, rel=0.1)


def test_a_softmax_by_the_logarithm_of_the_sum_is_off_by_the_largest_logit() -> None:
    """In the gradient of a confident sample's own logit, and only where the further draws are."""
    size, z = 1e-8, 50.0 + np.zeros(1000)

    def slope(z: Any) -> Array:
        logits = np.stack([z, z - 20], axis=1)
        return np.array(elementwise_grad(lambda x: losses.cross_entropy(x, np.zeros(len(z), np.int64)))(logits))[:, 0]

    right = slope(z)
    for by_hand, expected in ((False, size), (True, 50 * size)):
        with usual_rounding(size, np.random.default_rng(0), by_hand):
            assert np.std(slope(z) - right) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("apart", "other"),
    [(1e-9, True), (1e-5, False), (0.0, False)],
    ids=["within rounding", "beyond rounding", "equal"],
)
@pytest.mark.parametrize("size", [1.0, -1e6, 1e-6])
def test_a_max_pool_may_choose_another_place_within_rounding(size: float, apart: float, other: bool) -> None:
    """Equal numbers are equal in every implementation, and the first of them is right."""
    numbers, right = size + np.array([0.0, 0.0, apart * abs(size)]), 2 if apart else 0
    with usual_rounding(1e-8, np.random.default_rng(0)):
        chosen = {int(images.place_of_largest(numbers)) for _ in range(1000)}
    assert chosen == ({0, right} if other else {right})


def mean(x: Array) -> Array:
    return np.array(x.mean(axis=1, keepdims=True))


def norm_back(x: Array, g: Array, gradient_mean: float = 1.0) -> Array:
    """Return the gradient below a norm by x̂, as PyTorch and textbooks have it."""
    centred = x - mean(x)
    factor = 1 / np.sqrt(mean(centred * centred))
    y = centred * factor
    return np.array(factor * (g - x.dtype.type(gradient_mean) * mean(g) - y * mean(g * y)))


def norm_back_by_squares(x: Array, g: Array) -> Array:
    """Return the same through the variance as the mean square minus the squared mean, as Flax computes it."""
    average = mean(x)
    factor = 1 / np.sqrt(mean(x * x) - average * average)
    in_variance = -mean(g * (x - average)) * factor**3  # twice, divided by the width
    return np.array(factor * (g - mean(g)) + in_variance * (x - average))


def test_the_gradient_below_a_norm_has_the_errors_of_its_result() -> None:
    """At a width of two g − mean(g) − x̂ mean(g ⊙ x̂) is 0, and rounding x − mean leaves an error of u |x|/σ in x̂."""
    generator = np.random.default_rng(0)
    x, g = ((2 - generator.random((300, 2))).astype(np.float32) for _ in range(2))
    x[:, 1] = x[:, 0] * np.float32(1 + 1 / 150)  # |x|/σ = 300

    def exact(x: Array) -> Array:
        return np.array(make_vjp(lambda x: layers.standardized(x, 0.0))(x)[0](g.astype(np.float64)))

    right, moved = exact(x.astype(np.float64)), np.zeros(x.shape)
    for seed in range(MORE_DRAWS):
        with usual_rounding(DRAWN * unit_roundoff(np.float32), np.random.default_rng(seed)):
            moved = np.maximum(moved, np.abs(exact(x.astype(np.float64)) - right))
    for back in (norm_back, norm_back_by_squares):
        assert np.all(np.abs(back(x, g) - right) < SAFETY / DRAWN * moved), back.__name__
    assert np.all(np.abs(norm_back(x, g, gradient_mean=0.5) - right) > SAFETY / DRAWN * moved)
