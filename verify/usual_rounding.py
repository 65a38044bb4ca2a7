"""What libraries compute with an absolute rounding error: the oracle made to answer with such errors.

Every library takes the derivative of cross-entropy as softmax − onehot, of tanh as 1 − tanh², of the sigmoid as
σ (1 − σ), of the GELU by way of 1 + erf. Each is a difference of numbers near 1, off by about u whatever its size: a
confident sample's gradient, or a saturated unit's, may lose all its digits. That is no mistake in attribution, and no
change of the inputs shows it. Bias correction is such a difference too: for β2 = 0.9999 at t = 1, 1 − β^t is off by a
part in 1700 in float32, in which optax computes it. The oracle itself avoids these differences (`reference.network`,
`reference.adam.bias_correction`), so that what they cost can be measured with it.

The variance of a batch's contributions is Σ x² − g²/n to most, off by u Σ x². Where it is not, it still is off by a
relative u of its own. No change of the inputs shows that where a single sample makes both it and g: they change
together. At a node τ g − h s, where the two cancel, this error is all that is left; and with v = 0 Adam's map is steep
there. So it is at 0, near which a Gauss rule of almost as many nodes as places has one of its nodes: solvers give
nodes of [0, 1] to an absolute u.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from adamshap.reference import adam, ghost, network, two_term
from adamshap.reference.problem import Array
from adamshap.verify.replacing import replaced

_SATURATING = ("tanh", "sigmoid", "silu", "gelu")


@contextmanager
def usual_rounding(size: float, generator: np.random.Generator) -> Iterator[None]:
    """Within, the oracle's derivatives and bias corrections are off by an absolute ±`size`, with signs of their own.

    And variances over a batch by ±`size` Σ x², and places of arrival by ±`size` where they are no counts.

    Parameters
    ----------
    size : float
        The error: u of the candidate's dtype.
    generator : numpy.random.Generator
        Of the signs.
    """

    def noise(z: Any) -> Any:
        # A term whose value is 0 and whose derivative is ±size.
        fixed = network._constant(z)
        return size * generator.choice((-1.0, 1.0), fixed.shape) * (z - fixed)

    def rounded(activation: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda z: activation(z) + noise(z)

    def rounded_cross_entropy(logits: Any, labels: Array) -> Any:
        # Of softmax − onehot only the label's own component is a difference.
        own = np.arange(logits.shape[1]) == labels[:, None]
        return right_cross_entropy(logits, labels) + noise(logits[own])

    def rounded_correction(beta: float, t: int) -> float:
        # β = 0 leaves nothing to round; and of what is left, never all.
        right = right_correction(beta, t)
        return max(right + size * generator.choice((-1.0, 1.0)), right / 2) if beta else right

    def rounded_variance(x: Array, g: Array) -> Array:
        return off(right_variance(x, g), len(x) / (len(x) - 1) * (x**2).sum(axis=0))

    def rounded_spread(x: Array) -> Array:
        return np.sqrt(off(right_spread(x) ** 2, (x**2).mean(axis=0)))

    def rounded_places(n: int, count: int) -> tuple[Array, Array]:
        tau, weights = right_places(n, count)
        noise = size * generator.choice((-1.0, 1.0), tau.shape)
        return (np.maximum(tau + noise, 0.0) if n > count else tau), weights

    def off(variance: Array, squares: Array) -> Array:
        return np.maximum(variance + size * generator.choice((-1.0, 1.0), squares.shape) * squares, 0.0)

    right_correction, right_cross_entropy = adam.bias_correction, network._cross_entropy
    right_variance, right_spread, right_places = ghost.partial_sum_variance, two_term.own_spread, two_term.place_rule
    with ExitStack() as stack:
        stack.enter_context(replaced("bias_correction", right_correction, rounded_correction))
        stack.enter_context(replaced("_cross_entropy", right_cross_entropy, rounded_cross_entropy))
        stack.enter_context(replaced("partial_sum_variance", right_variance, rounded_variance))
        stack.enter_context(replaced("own_spread", right_spread, rounded_spread))
        stack.enter_context(replaced("place_rule", right_places, rounded_places))
        for name in _SATURATING:
            right = network.ACTIVATION_FUNCTIONS[name]
            stack.enter_context(replaced(name, right, rounded(right)))
        yield
