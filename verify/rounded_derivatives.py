"""The derivatives that libraries compute, whose rounding is absolute: the oracle made to answer with such errors.

Every library takes the derivative of cross-entropy as softmax − onehot, of tanh as 1 − tanh², of the sigmoid as
σ (1 − σ), of the GELU by way of 1 + erf. Each is a difference of numbers near 1, off by about u whatever its size: a
confident sample's gradient, or a saturated unit's, may lose all its digits. That is no mistake in attribution, and no
change of the inputs shows it. The oracle itself avoids these differences (`reference.network`), so that what they cost
can be measured with it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from adamshap.reference import network
from adamshap.reference.problem import Array

_SATURATING = ("tanh", "sigmoid", "silu", "gelu")


@contextmanager
def rounded_derivatives(size: float, generator: np.random.Generator) -> Iterator[None]:
    """Within, the oracle's derivatives are off by an absolute ±`size`, each with a sign of its own.

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

    right_activations, right_cross_entropy = dict(network.ACTIVATION_FUNCTIONS), network._cross_entropy
    network.ACTIVATION_FUNCTIONS.update({name: rounded(right_activations[name]) for name in _SATURATING})
    network._cross_entropy = rounded_cross_entropy
    try:
        yield
    finally:
        network.ACTIVATION_FUNCTIONS.update(right_activations)
        network._cross_entropy = right_cross_entropy
