"""The multilayer perceptron in autograd: its activations, forward pass and sample losses.

autograd differentiates all of it; a derivative is defined here only where autograd has none or an inaccurate one.
"""

import math
from collections.abc import Callable
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defjvp, defvjp, primitive

from adamshap.reference import losses
from adamshap.reference.contract import Array, Batch, Network, Params
from adamshap.reference.elementary import elementary

_erfc_each = np.vectorize(math.erfc, otypes=[np.float64])


@primitive  # type: ignore[untyped-decorator]
def _erfc(x: Array) -> Array:
    """Complementary error function, from the standard library, since NumPy has none."""
    return _erfc_each(x) if x.size else x


defvjp(_erfc, lambda ans, x: lambda g: -g * 2 / math.sqrt(math.pi) * anp.exp(-x * x))
defjvp(_erfc, lambda g, ans, x: -2 * anp.exp(-(x**2)) * g / math.sqrt(math.pi))


@primitive  # type: ignore[untyped-decorator]
def _tanh(z: Array) -> Array:
    """Hyperbolic tangent; autograd's derivative uses cosh², which overflows from |z| = 355 on."""
    return np.tanh(z)


def _sech_squared(z: Any) -> Any:
    decay = anp.exp(-2 * anp.abs(z))
    return 4 * decay / (1 + decay) ** 2


defvjp(_tanh, lambda ans, z: lambda g: g * _sech_squared(z))
defjvp(_tanh, lambda g, ans, z: g * _sech_squared(z))


@elementary
def tanh(z: Any) -> Any:
    """Return tanh z."""
    return _tanh(z)


def _relu(z: Any) -> Any:
    # `where`, not `maximum`: at a tie, autograd halves the derivative of `maximum`; PyTorch's is 0.
    return anp.where(z > 0, z, 0.0)


def _logistic(z: Any) -> Any:
    return anp.exp(-anp.logaddexp(0.0, -z))


@elementary
def sigmoid(z: Any) -> Any:
    """Return σ(z) = 1/(1 + exp(−z))."""
    return _logistic(z)


@elementary
def silu(z: Any) -> Any:
    """Return z σ(z)."""
    return z * _logistic(z)


@elementary
def gelu(z: Any) -> Any:
    """Return z Φ(z), Φ by erfc: 1 + erf cancels for negative z."""
    return z * 0.5 * _erfc(-z / math.sqrt(2))


ACTIVATION_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "relu": _relu,
    "tanh": tanh,
    "gelu": gelu,
    "silu": silu,
    "sigmoid": sigmoid,
    "identity": lambda z: z,
}


@elementary
def product(weight: Any, a: Any) -> Any:
    """Return a Wᵀ over the last axis of `a` (n, …, d_in); a `weight` (n, d_out, d_in) has one copy per sample."""
    if a.ndim == 2:
        return a @ weight.T if weight.ndim == 2 else anp.einsum("noi,ni->no", weight, a)
    rows = a.reshape(len(a), -1, a.shape[-1])
    return (rows @ anp.swapaxes(weight, -2, -1)).reshape(*a.shape[:-1], weight.shape[-2])


def linear(weight: Any, bias: Any, a: Any) -> Any:
    """Return a Wᵀ + b, with `product`."""
    z = product(weight, a)
    return z if bias is None else z + bias


def outputs(net: Network, params: Params, x: Array) -> Array:
    """Return the network's outputs (logits, for cross-entropy).

    Parameters
    ----------
    net : Network
    params : dict of arrays
        Each of its shape in ``net.shapes``, or all with a leading axis n, one copy for each row of `x`.
    x : array (n, d_in)

    Returns
    -------
    array (n, d_out)
    """
    activation = ACTIVATION_FUNCTIONS[net.activation]
    a: Any = x
    for layer in range(net.depth):
        z = linear(params[f"{layer}.weight"], params.get(f"{layer}.bias"), a)
        a = z if layer == net.depth - 1 else activation(z)
    return a  # type: ignore[no-any-return]


def sample_losses(net: Network, params: Params, batch: Batch) -> Array:
    """Return ℓ(θ; z_i) for each sample of `batch`: array (n,), in nats ("cross_entropy") or squared units ("mse")."""
    loss = losses.cross_entropy if net.loss == "cross_entropy" else losses.squared_error
    return loss(outputs(net, params, batch.x), batch.y)  # type: ignore[no-any-return]
