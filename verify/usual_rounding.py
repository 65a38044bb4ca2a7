"""What libraries compute with an absolute rounding error: the oracle made to answer with such errors.

Every library takes the derivative of cross-entropy as softmax − onehot, of tanh as 1 − tanh², of the sigmoid as σ (1 −
σ), of the GELU by way of 1 + erf. Each is a difference of numbers near 1, off by about u whatever its size: a confident
sample's gradient, or a saturated unit's, may lose all its digits. That is no mistake in attribution, and no change of
the inputs shows it. Bias correction is such a difference too: for β2 = 0.9999 at t = 1, 1 − β^t is off by a part in
1700 in float32, in which optax computes it. The oracle itself avoids these differences, so that what they cost can be
measured with it: `reference.elementary` names its operations, and here each has a version that is off.

A layer's product is a sum too, off by about u times the sum of its terms' absolute values, forwards and backwards, in
each sample by an error of its own. Changes of the weights, which all samples share, do not show that: where first a
unit's terms cancel and then the batch's, the common factor leaves the second cancellation as it was.

The variance of a batch's contributions is Σ x² − g²/n to most, off by u Σ x². Where it is not, it still is off by a
relative u of its own. No change of the inputs shows that where a single sample makes both it and g: they change
together. At a node τ g − h s, where the two cancel, this error is all that is left; and with v = 0 Adam's map is steep
there. So it is at 0, near which a Gauss rule of almost as many nodes as places has one of its nodes: solvers give
nodes of [0, 1] to an absolute u.

Where a difference of numbers near 1 is far below u, no library has an error of u: tanh and softmax round to exactly 1
there, and the difference to exactly 0. Some approximations of tanh reach 1 only at |z| = 20 in float32, where 1 − tanh²
is 2e-17, far below u² = 4e-15. So no error is drawn where the derivative is below the cube of the errors' size. In the
derivative of a unit whose input is 1e22, an error of u would be one of 1e15 in the gradient, and the bound would let
everything through.

Errors are drawn with sizes of their own, not only signs: where one acts alike to either side of 0, or two act against
each other, equal sizes would hide what they do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from autograd import elementwise_grad
from autograd.extend import defvjp, primitive

from adamshap.reference.contract import Array
from adamshap.reference.elementary import OPERATIONS, computed_by
from adamshap.reference.losses import constant
from adamshap.reference.squares import in_units

__all__ = ["usual_rounding"]

Errors = Callable[[tuple[int, ...]], Array]
"""From a shape to random errors, relative ones."""


@contextmanager
def usual_rounding(size: float, generator: np.random.Generator) -> Iterator[None]:
    """Within, the oracle is off as libraries are, by errors of about `size`, each drawn by itself.

    Derivatives of losses and activations and bias corrections by an absolute error; a layer's products by one times
    the sum of their terms' absolute values, variances over a batch by one times Σ x², a GELU by one times its
    argument; places of arrival, where they are no counts, by an absolute one.

    Parameters
    ----------
    size : float
        The errors' standard deviation: some u of the candidate's dtype.
    generator : numpy.random.Generator
        Of the errors.
    """
    with computed_by(_Rounded(size, generator).operations()):
        yield


@dataclass(frozen=True)
class _Rounded:
    """The oracle's elementary operations, each off by errors of about `size`."""

    size: float
    generator: np.random.Generator

    def operations(self) -> dict[str, Callable[..., Any]]:
        """Return them by the names of the exact ones."""
        return {
            "product": self.product,
            "tanh": self.saturating("tanh"),
            "sigmoid": self.saturating("sigmoid"),
            "silu": self.saturating("silu"),
            "gelu": self.gelu,
            "cross_entropy": self.cross_entropy,
            "bias_correction": self.bias_correction,
            "partial_sum_deviation": self.partial_sum_deviation,
            "own_spread": self.own_spread,
            "gauss_places": self.gauss_places,
        }

    def errors(self, shape: tuple[int, ...]) -> Array:
        return self.size * self.generator.standard_normal(shape)

    def noise(self, z: Any, derivative: Array) -> Any:
        """A term whose value is 0 and whose derivative is an error, but for derivatives that vanish."""
        fixed = constant(z)
        return self.errors(fixed.shape) * (np.abs(derivative) >= self.size**3) * (z - fixed)

    def product(self, weight: Any, a: Any) -> Any:
        return _rounded_product(weight, a, self.errors)

    def saturating(self, name: str) -> Callable[[Any], Any]:
        exact = OPERATIONS[name]
        return lambda z: exact(z) + self.noise(z, elementwise_grad(exact)(constant(z)))

    def gelu(self, z: Any) -> Any:
        result = self.saturating("gelu")(z)
        fixed = constant(z)
        visible = np.abs(OPERATIONS["gelu"](fixed)) >= self.size**3 * np.abs(fixed)
        return result + self.errors(fixed.shape) * visible * fixed

    def cross_entropy(self, logits: Any, labels: Array) -> Any:
        # Of softmax − onehot only the label's own component is a difference.
        own = np.arange(logits.shape[1]) == labels[:, None]
        losses = OPERATIONS["cross_entropy"](logits, labels)
        return losses + self.noise(logits[own], np.expm1(-constant(losses)))

    def bias_correction(self, beta: float, t: int) -> float:
        # β = 0 leaves nothing to round; and of what is left, never all.
        right: float = OPERATIONS["bias_correction"](beta, t)
        return max(right + float(self.errors(())), right / 2) if beta else right

    def partial_sum_deviation(self, x: Array, g: Array) -> Array:
        return self._off(OPERATIONS["partial_sum_deviation"](x, g), x, len(x) / (len(x) - 1))

    def own_spread(self, x: Array) -> Array:
        return self._off(OPERATIONS["own_spread"](x), x, 1 / len(x))

    def _off(self, deviation: Array, x: Array, factor: float) -> Array:
        # In units of the largest x, whose squares may be beyond float64.
        scaled, unit = in_units(x)
        squares = factor * (scaled**2).sum(axis=0)
        moved: Array = np.maximum((deviation / unit) ** 2 + self.errors(squares.shape) * squares, 0.0)
        return unit * np.sqrt(moved)

    def gauss_places(self, n: int, count: int) -> tuple[Array, Array]:
        tau, weights = OPERATIONS["gauss_places"](n, count)
        return np.maximum(tau + self.errors(tau.shape), 0.0), weights


@primitive  # type: ignore[untyped-decorator]
def _rounded_product(weight: Array, a: Array, errors: Errors) -> Array:
    """Return a Wᵀ as the exact `product`, each sum off by an error times the sum of its terms' absolute values."""
    t, copy = _axes(weight, a)
    sums = _rounded_sums(f"n{t}i,{copy}oi->n{t}o", _rows(a), weight, errors)
    return sums.reshape(*a.shape[:-1], -1)


def _axes(weight: Array, a: Array) -> tuple[str, str]:
    """Return einsum's letter for the positions of a sample, and that for copies of the weight, "" without them."""
    return "t" if a.ndim > 2 else "", "n" if weight.ndim > 2 else ""


def _rows(a: Array) -> Array:
    """Return `a` (n, …, d) with a sample's positions in one axis."""
    return a if a.ndim == 2 else a.reshape(len(a), -1, a.shape[-1])


def _rounded_sums(indices: str, first: Array, second: Array, errors: Errors) -> Array:
    sums, sizes = (np.einsum(indices, *pair) for pair in ((first, second), (np.abs(first), np.abs(second))))
    return sums + errors(sums.shape) * sizes  # type: ignore[no-any-return]


def _weight_back(ans: Array, weight: Array, a: Array, errors: Errors) -> Callable[[Array], Array]:
    t, copy = _axes(weight, a)
    return lambda b: _rounded_sums(f"n{t}o,n{t}i->{copy}oi", _rows(b), _rows(a), errors)


def _input_back(ans: Array, weight: Array, a: Array, errors: Errors) -> Callable[[Array], Array]:
    t, copy = _axes(weight, a)
    return lambda b: _rounded_sums(f"n{t}o,{copy}oi->n{t}i", _rows(b), weight, errors).reshape(a.shape)


defvjp(_rounded_product, _weight_back, _input_back, argnums=(0, 1))
