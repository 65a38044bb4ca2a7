"""The rounding errors of common libraries, added to the oracle's operations.

Common libraries compute the derivative of cross-entropy as softmax − onehot, of tanh as 1 − tanh², of the sigmoid as
σ (1 − σ), of the GELU by 1 + erf. Each is a difference of numbers near 1 with an absolute error of about u: the
gradient of a confident sample or a saturated unit may lose all its digits. That is not a mistake in attribution, and
perturbed inputs do not show it. Bias correction is such a difference too: for β2 = 0.9999 at t = 1, 1 − β^t has a
relative error of 1/1700 in float32, in which optax computes it. The oracle avoids these differences, so that their
effect can be measured: `reference.elementary` names its operations, and each has an inexact version here.

A layer's product is a sum, with an error of about u times the sum of its terms' absolute values, forwards and
backwards, independent for each sample. Perturbed weights, which all samples share, do not show that: if first a unit's
terms cancel and then the batch's, a common factor does not disturb the second cancellation.

A max pool compares results that are rounded: where two of a window differ by less than that, the maximum is the same
but another place has its gradient. The bias added to both, far larger than their difference, is rounded in the sums,
and perturbing it moves both alike. So each number compared has an error of its own, and equal numbers the same one:
which of them counts is the method's choice, not rounding.

A norm's backward pass subtracts two means over the axis from each gradient, that of a softmax one: at a width of two,
or where a softmax saturates, almost nothing remains of terms with an error of u each. Some libraries (Flax) compute the
variance as the mean square minus the squared mean; PyTorch subtracts mean/σ from x/σ, which leaves an error of u even
for LayerNorm over one number, and its attention subtracts a sum over the outputs, which leaves one for a single term.
The backward pass takes x̂ and 1/σ from the forward pass, errors included: those of x̂ are u |x|/σ, as the mean is
rounded, which may be far more than u, and they disturb the cancellation.

Most libraries compute the variance of a batch's contributions as Σ x² − g²/n, with an error of u Σ x²; other formulas
still have a relative error of u. Perturbed inputs do not show it if a single sample dominates both the variance and g:
they change together. At a node τ g − h s where the two cancel, this error is all that is left; and with v = 0 Adam's
map is steep there. It is also steep at 0, and a Gauss rule with almost as many nodes as positions has a node near 0:
solvers compute nodes of [0, 1] with an absolute error of u.

A clipping factor is C over a norm, the root of a sum of squares over all parameters in an order of the library's own: P
squares of one sign have a relative error of about u √P, and their root half of that. The error is common to all
contributions of a step, and so is no change of the inputs, whose errors are independent. λ₂ θ, the L2 decay, has no
error beyond one like that of θ, which perturbed inputs have: where λ₂ θ + g cancels, they show it.

If a difference of numbers near 1 is far below u, no library has an error of u: tanh and softmax round to exactly 1, and
the difference to exactly 0. Some approximations of tanh reach 1 only at |z| = 20 in float32, where 1 − tanh² is 2e-17,
far below u² = 4e-15. So where the derivative is below the cube of the errors' size, the error is about as large as the
derivative itself: a library's is 0, and other code's is right, as e^−471 of a confident sample, or the GELU by erfc.
For a unit with an input of 1e22, an error of u in the derivative would be one of 1e15 in the gradient, and the bound
would accept everything.

The sigmoid as (1 + tanh(z/2))/2 has an absolute error of u/2 in its value, and the SiLU one of u |z|/2: relative to a
small value, it may be large. The softmax as exp(z − log Σ exp z) has a relative error of u times the largest logit,
common to all classes. Libraries avoid both, other code does not, so that they are drawn only where an error is beyond
its bound already (`tolerance.CLOSE`).

Errors have random sizes, not only random signs: if an error has the same effect for either sign, or two errors oppose
each other, equal sizes would hide the effect. If terms saturate, errors that are all large hide it too
(`tolerance.Uneven`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import elementwise_grad
from autograd.extend import defvjp, primitive

from adamshap.reference.contract import Array, Clipped, Params
from adamshap.reference.elementary import OPERATIONS, computed_by
from adamshap.reference.losses import constant
from adamshap.reference.squares import in_units
from adamshap.verify.steps import Normal

__all__ = ["usual_rounding"]

Errors = Callable[[tuple[int, ...]], Array]
"""A function from a shape to random relative errors."""


@contextmanager
def usual_rounding(size: float, generator: Normal, by_hand: bool = False) -> Iterator[None]:
    """Add independent rounding errors of about `size` to the oracle's operations within the context.

    The errors are absolute in derivatives of losses and activations, bias corrections, and positions of arrival by a
    Gauss rule; relative to the sum of the terms' absolute values in a layer's products and in the backward passes of
    norms and softmax, to Σ x² in variances over a batch, to its argument in a GELU, and to the numbers that a max pool
    compares.

    Parameters
    ----------
    size : float
        Standard deviation of the errors: some u of the candidate's dtype.
    generator : numpy.random.Generator or Uneven
        Source of the errors.
    by_hand : bool
        Whether forms that libraries avoid are drawn, too: (1 + tanh(z/2))/2 for the sigmoid, with an absolute error of
        u/2 in its value; exp(z − log Σ exp z) for the softmax, with a relative error of u times the largest logit.
    """
    with computed_by(_Rounded(size, generator, by_hand).operations()):
        yield


@dataclass(frozen=True)
class _Rounded:
    """The oracle's elementary operations, with errors of about `size`."""

    size: float
    generator: Normal
    by_hand: bool = False

    def operations(self) -> dict[str, Callable[..., Any]]:
        """Return the operations, keyed by the names of the exact ones."""
        return {
            "product": self.product,
            "tanh": self.saturating("tanh"),
            "sigmoid": self.logistic("sigmoid", lambda z: np.ones_like(z)),
            "silu": self.logistic("silu", lambda z: z),
            "gelu": self.gelu,
            "cross_entropy": self.cross_entropy,
            "standardized": lambda x, eps: _norm(x, eps, self.errors, True),
            "over_root_mean_square": lambda x, eps: _norm(x, eps, self.errors, False),
            "products": lambda a, b: _rounded_products(a, b, self.errors),
            "causal_softmax": lambda scores: _rounded_softmax(scores, self.errors),
            "place_of_largest": self.place_of_largest,
            "bias_correction": self.bias_correction,
            "partial_sum_deviation": self.partial_sum_deviation,
            "own_spread": self.own_spread,
            "gauss_places": self.gauss_places,
            "clip_factor": self.clip_factor,
        }

    def errors(self, shape: tuple[int, ...]) -> Array:
        drawn: Array = self.size * self.generator.standard_normal(shape)
        return drawn

    def noise(self, z: Any, derivative: Array) -> Any:
        """Return a term with value 0 and an error as derivative."""
        fixed = constant(z)
        return self.absolute(derivative, np.ones_like(fixed)) * (z - fixed)

    def absolute(self, value: Array, unit: Array) -> Array:
        """Return errors of a difference of numbers near `unit` whose exact result is `value`."""
        visible = np.abs(value) >= self.size**3 * np.abs(unit)
        return self.errors(unit.shape) * np.where(visible, unit, value / self.size)

    def product(self, weight: Any, a: Any) -> Any:
        return _rounded_product(weight, a, self.errors)

    def saturating(self, name: str) -> Callable[[Any], Any]:
        exact = OPERATIONS[name]
        return lambda z: exact(z) + self.noise(z, elementwise_grad(exact)(constant(z)))

    def logistic(self, name: str, factor: Callable[[Array], Array]) -> Callable[[Any], Any]:
        """Return the operation ``factor(z)`` σ(z), with the error of σ by tanh in its value if `by_hand`."""
        exact, saturating = OPERATIONS[name], self.saturating(name)

        def rounded(z: Any) -> Any:
            result = saturating(z)
            if not self.by_hand:
                return result
            fixed = constant(z)
            return result + 0.5 * self.absolute(exact(fixed), factor(fixed))

        return rounded

    def gelu(self, z: Any) -> Any:
        result = self.saturating("gelu")(z)
        fixed = constant(z)
        return result + self.absolute(OPERATIONS["gelu"](fixed), fixed)

    def cross_entropy(self, logits: Any, labels: Array) -> Any:
        # In softmax − onehot, only the label's own component is a difference.
        own = np.arange(logits.shape[1]) == labels[:, None]
        losses = OPERATIONS["cross_entropy"](logits, labels)
        result = losses + self.noise(logits[own], np.expm1(-constant(losses)))
        if not self.by_hand:
            return result
        fixed = constant(logits)
        top = fixed.max(axis=1, keepdims=True)
        exponentials = np.exp(fixed - top)
        softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
        return result + anp.sum(self.errors(top.shape) * np.abs(top) * softmax * (logits - fixed), axis=1)

    def place_of_largest(self, each: Array) -> Array:
        # Equal numbers keep the same error: the choice among exact ties is part of the method.
        values, which = np.unique(each, return_inverse=True)
        moved = values + self.errors(values.shape) * np.abs(values)
        place: Array = OPERATIONS["place_of_largest"](moved[which].reshape(each.shape))
        return place

    def bias_correction(self, beta: float, t: int) -> float:
        # For β = 0 no rounding occurs; otherwise the error never removes more than half.
        right: float = OPERATIONS["bias_correction"](beta, t)
        return max(right + float(self.errors(())), right / 2) if beta else right

    def partial_sum_deviation(self, x: Array, g: Array) -> Array:
        return self._off(OPERATIONS["partial_sum_deviation"](x, g), x, len(x) / (len(x) - 1))

    def own_spread(self, x: Array) -> Array:
        return self._off(OPERATIONS["own_spread"](x), x, 1 / len(x))

    def _off(self, deviation: Array, x: Array, factor: float) -> Array:
        # In units of the largest x, as squares of x may overflow float64.
        scaled, unit = in_units(x)
        squares = factor * (scaled**2).sum(axis=0)
        moved: Array = np.maximum((deviation / unit) ** 2 + self.errors(squares.shape) * squares, 0.0)
        return unit * np.sqrt(moved)

    def clip_factor(self, clipped: Clipped, g: Params) -> float:
        # In the limit, so that the factor of a norm clearly within it stays 1.
        count = sum(array.size for array in g.values())
        off = 1 + max(1.0, np.sqrt(count) / 2) * float(self.errors(()))
        factor: float = OPERATIONS["clip_factor"](replace(clipped, norm=clipped.norm * off), g)
        return factor

    def gauss_places(self, n: int, count: int) -> tuple[Array, Array]:
        tau, weights = OPERATIONS["gauss_places"](n, count)
        return np.maximum(tau + self.errors(tau.shape), 0.0), weights


@primitive  # type: ignore[untyped-decorator]
def _rounded_product(weight: Array, a: Array, errors: Errors) -> Array:
    """Return the exact `product` a Wᵀ, each sum with an error relative to the sum of its terms' absolute values."""
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


@primitive  # type: ignore[untyped-decorator]
def _rounded_products(a: Array, b: Array, errors: Errors) -> Array:
    """Return the exact `products`, each sum with an error relative to the sum of its terms' absolute values."""
    return _rounded_matmul(a, b, errors)


def _rounded_matmul(a: Array, b: Array, errors: Errors) -> Array:
    exact = a @ b
    return exact + errors(exact.shape) * (np.abs(a) @ np.abs(b))  # type: ignore[no-any-return]


defvjp(
    _rounded_products,
    lambda ans, a, b, errors: lambda g: _rounded_matmul(g, np.swapaxes(b, -2, -1), errors),
    lambda ans, a, b, errors: lambda g: _rounded_matmul(np.swapaxes(a, -2, -1), g, errors),
    argnums=(0, 1),
)


def _mean(x: Array) -> Array:
    return x.mean(axis=-1, keepdims=True)  # type: ignore[no-any-return]


def _normed(x: Array, eps: float, centred: bool) -> tuple[Array, Array]:
    """Return the norm's exact result and its factor 1/√(… + ε)."""
    terms = x - _mean(x) if centred else x
    factor = 1 / np.sqrt(_mean(terms**2) + eps)
    return terms * factor, factor


def _norm(x: Any, eps: float, errors: Errors, centred: bool) -> Any:
    """Return `standardized` or `over_root_mean_square`, with errors that its derivative has, too."""
    variance = errors((*x.shape[:-1], 1)) if centred else np.zeros((*x.shape[:-1], 1))
    return _rounded_norm(x, eps, variance, errors(x.shape), errors, centred)


def _computed_norm(x: Array, eps: float, variance: Array, division: Array, centred: bool) -> tuple[Array, Array]:
    """Return the norm's result and its factor 1/√(… + ε) with the errors of the mean, the variance and the division."""
    y, factor = _normed(x, eps, centred)
    if not centred:
        return y * (1 + division), factor
    off = variance * _mean(x**2) * factor**2  # relative to the variance, which it may exceed
    less = 1 / np.sqrt(np.maximum(1 + off, 0.5))
    return y * less + division * np.abs(x).max(axis=-1, keepdims=True) * factor, factor * less


@primitive  # type: ignore[untyped-decorator]
def _rounded_norm(x: Array, eps: float, variance: Array, division: Array, errors: Errors, centred: bool) -> Array:
    """Return the norm with the errors `variance` and `division`; `errors` are for its derivative."""
    return _computed_norm(x, eps, variance, division, centred)[0]


def _norm_back(
    ans: Array, x: Array, eps: float, variance: Array, division: Array, errors: Errors, centred: bool
) -> Callable[[Array], Array]:
    # By the computed result and factor: the errors of x̂ disturb the cancellation of g and x̂ mean(g ⊙ x̂).
    y, factor = _computed_norm(x, eps, variance, division, centred)

    def back(g: Array) -> Array:
        exact, sizes = g - y * _mean(g * y), np.abs(g) + np.abs(y) * _mean(np.abs(g * y))
        if centred:
            exact, sizes = exact - _mean(g), sizes + _mean(np.abs(g))
        return factor * (exact + errors(g.shape) * sizes)  # type: ignore[no-any-return]

    return back


defvjp(_rounded_norm, _norm_back, argnums=(0,))


@primitive  # type: ignore[untyped-decorator]
def _rounded_softmax(scores: Array, errors: Errors) -> Array:
    """Return the exact `causal_softmax` with the errors of the exponents and of the division."""
    weights = OPERATIONS["causal_softmax"](scores)
    exponents = np.abs(scores - np.where(weights > 0, scores, -np.inf).max(axis=-1, keepdims=True))
    return weights * (1 + errors(weights.shape) * (1 + exponents))  # type: ignore[no-any-return]


def _softmax_back(ans: Array, scores: Array, errors: Errors) -> Callable[[Array], Array]:
    weights = OPERATIONS["causal_softmax"](scores)

    def back(g: Array) -> Array:
        exact, sizes = (
            part - (weights * part).sum(axis=-1, keepdims=True) * sign for part, sign in ((g, 1), (np.abs(g), -1))
        )
        return weights * (exact + errors(g.shape) * sizes)  # type: ignore[no-any-return]

    return back


defvjp(_rounded_softmax, _softmax_back, argnums=(0,))
