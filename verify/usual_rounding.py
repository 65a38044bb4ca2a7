"""What libraries compute with an absolute rounding error: the oracle made to answer with such errors.

Every library takes the derivative of cross-entropy as softmax − onehot, of tanh as 1 − tanh², of the sigmoid as
σ (1 − σ), of the GELU by way of 1 + erf. Each is a difference of numbers near 1, off by about u whatever its size: a
confident sample's gradient, or a saturated unit's, may lose all its digits. That is no mistake in attribution, and no
change of the inputs shows it. Bias correction is such a difference too: for β2 = 0.9999 at t = 1, 1 − β^t is off by a
part in 1700 in float32, in which optax computes it. The oracle itself avoids these differences (`reference.network`,
`reference.adam.bias_correction`), so that what they cost can be measured with it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from adamshap.reference import adam, network
from adamshap.reference.problem import Array
from adamshap.verify.replacing import replaced

_SATURATING = ("tanh", "sigmoid", "silu", "gelu")


@contextmanager
def usual_rounding(size: float, generator: np.random.Generator) -> Iterator[None]:
    """Within, the oracle's derivatives and bias corrections are off by an absolute ±`size`, with signs of their own.

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

    right_correction, right_cross_entropy = adam.bias_correction, network._cross_entropy
    with ExitStack() as stack:
        stack.enter_context(replaced("bias_correction", right_correction, rounded_correction))
        stack.enter_context(replaced("_cross_entropy", right_cross_entropy, rounded_cross_entropy))
        for name in _SATURATING:
            right = network.ACTIVATION_FUNCTIONS[name]
            stack.enter_context(replaced(name, right, rounded(right)))
        yield
