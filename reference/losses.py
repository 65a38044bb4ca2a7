"""Losses of single samples, from a model's outputs, in autograd."""

from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.tracer import getval, isbox

from adamshap.reference.contract import NOT_COUNTED, Array
from adamshap.reference.elementary import elementary


def constant(x: Any) -> Any:
    """Return the value of x without its history, so that autograd treats it as a constant at any depth."""
    while isbox(x):
        x = getval(x)
    return x


@elementary
def cross_entropy(logits: Any, labels: Array) -> Any:
    """Return −log softmax of the label, in nats: (n,) of logits (n, d_out) and labels (n,)."""
    # −log softmax as log(1 + Σ_{j≠y} exp(z_j − z_y)): if the label is nearly certain, neither the loss nor its
    # gradient is a difference of two numbers near 1. Values are shifted by the largest logit, while derivatives are
    # those of z_j − z_y: subtracting a label logit far below the others would round away their differences.
    own = np.arange(logits.shape[1]) == labels[:, None]
    label = logits[own][:, None]
    largest = np.max(constant(logits), axis=1, keepdims=True)
    exponents = (logits - largest) - (label - constant(label))
    others = anp.sum(anp.exp(exponents) * ~own, axis=1)
    top = (largest - constant(label))[:, 0]
    return top + anp.log1p(np.expm1(-top) + others)


def mean_cross_entropy(logits: Any, labels: Array) -> Any:
    """Return the mean cross-entropy over the counted positions: (n,) of logits (n, T, d_out) and labels (n, T)."""
    counted = labels != NOT_COUNTED
    each = cross_entropy(logits.reshape(labels.size, -1), np.where(counted, labels, 0).ravel()).reshape(labels.shape)
    return anp.sum(anp.where(counted, each, 0.0), axis=1) / counted.sum(axis=1)


def squared_error(outputs: Any, targets: Array) -> Any:
    """Return the mean over outputs of the squared error: (n,) of outputs and targets (n, d_out)."""
    return anp.mean((outputs - targets) ** 2, axis=1)
