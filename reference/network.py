"""The network: forward pass, losses, per-sample gradients. Every gradient is autograd's; none is written by hand.

=======  =======================  ==================================================
paper    name                     meaning
=======  =======================  ==================================================
θ        ``params``               parameters
ℓ(θ; z)  ``sample_losses``        loss of one sample
L(θ)     ``mean_loss``            mean loss over a batch
∇L(θ)    ``loss_gradient``        its gradient, one array a parameter
x_i      ``sample_gradients``     sample i's contribution to the batch gradient, w∇ℓ(θ; z_i)
=======  =======================  ==================================================
"""

import math
from collections.abc import Callable
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, primitive
from autograd.tracer import getval, isbox

from adamshap.reference.contract import Array, Batch, Network, Params, Step

_erfc_each = np.vectorize(math.erfc, otypes=[np.float64])


@primitive  # type: ignore[untyped-decorator]
def _erfc(x: Array) -> Array:
    """Complementary error function; the standard library's, since NumPy has none."""
    return _erfc_each(x) if x.size else x


defvjp(_erfc, lambda ans, x: lambda g: -g * 2 / math.sqrt(math.pi) * anp.exp(-x * x))


@primitive  # type: ignore[untyped-decorator]
def _tanh(z: Array) -> Array:
    """Hyperbolic tangent; autograd's own has a derivative by cosh², which overflows from |z| = 355 on."""
    return np.tanh(z)


def _sech_squared(z: Any) -> Any:
    decay = anp.exp(-2 * anp.abs(z))
    return 4 * decay / (1 + decay) ** 2


defvjp(_tanh, lambda ans, z: lambda g: g * _sech_squared(z))


def _relu(z: Any) -> Any:
    # `where`, not `maximum`: autograd halves the derivative at a tie, PyTorch makes it 0.
    return anp.where(z > 0, z, 0.0)


def _sigmoid(z: Any) -> Any:
    return anp.exp(-anp.logaddexp(0.0, -z))


def _gelu(z: Any) -> Any:
    # zΦ(z), Φ by erfc: 1 + erf cancels for negative z.
    return z * 0.5 * _erfc(-z / math.sqrt(2))


ACTIVATION_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "relu": _relu,
    "tanh": _tanh,
    "gelu": _gelu,
    "silu": lambda z: z * _sigmoid(z),
    "sigmoid": _sigmoid,
    "identity": lambda z: z,
}


def _linear(weight: Any, bias: Any, a: Any) -> Any:
    """Return a Wᵀ + b; a `weight` of shape (n, d_out, d_in) holds one copy for each row of `a`."""
    z = a @ weight.T if weight.ndim == 2 else anp.einsum("noi,ni->no", weight, a)
    return z if bias is None else z + bias


def outputs(net: Network, params: Params, x: Array) -> Array:
    """Return the network's outputs (logits, for cross-entropy).

    Parameters
    ----------
    net : Network
    params : dict of arrays
        Each of its shape in ``net.shapes``, or all with a leading axis n: then row i of `x` meets its own copy i.
    x : array (n, d_in)

    Returns
    -------
    array (n, d_out)
    """
    activation = ACTIVATION_FUNCTIONS[net.activation]
    a: Any = x
    for layer in range(net.depth):
        z = _linear(params[f"{layer}.weight"], params.get(f"{layer}.bias"), a)
        a = z if layer == net.depth - 1 else activation(z)
    return a  # type: ignore[no-any-return]


def _constant(x: Any) -> Any:
    """Return x without its history: a value that autograd, at any depth, does not differentiate."""
    while isbox(x):
        x = getval(x)
    return x


def _cross_entropy(logits: Any, labels: Array) -> Any:
    # −log softmax as log(1 + Σ_{j≠y} exp(z_j − z_y)): where the label is nearly certain, neither the loss nor its
    # gradient is the difference of two numbers near 1. Values are shifted by the largest logit and derivatives are
    # those of z_j − z_y: a label far below the others, subtracted first, would cost these their differences.
    own = np.arange(logits.shape[1]) == labels[:, None]
    label = logits[own][:, None]
    largest = np.max(_constant(logits), axis=1, keepdims=True)
    exponents = (logits - largest) - (label - _constant(label))
    others = anp.sum(anp.exp(exponents) * ~own, axis=1)
    top = (largest - _constant(label))[:, 0]
    return top + anp.log1p(np.expm1(-top) + others)


def _squared_error(outputs_: Any, targets: Array) -> Any:
    return anp.mean((outputs_ - targets) ** 2, axis=1)


def sample_losses(net: Network, params: Params, batch: Batch) -> Array:
    """Return ℓ(θ; z_i) for each sample of `batch`: array (n,), in nats ("cross_entropy") or squared units ("mse")."""
    loss = _cross_entropy if net.loss == "cross_entropy" else _squared_error
    return loss(outputs(net, params, batch.x), batch.y)  # type: ignore[no-any-return]


def mean_loss(net: Network, params: Params, batch: Batch) -> float:
    """Return L(θ), the mean loss over `batch`."""
    return anp.mean(sample_losses(net, params, batch))  # type: ignore[no-any-return]


def loss_gradient(net: Network, params: Params, batch: Batch) -> Params:
    """Return ∇L(θ), the gradient of `mean_loss`: one array a parameter, of its shape."""
    return autograd.grad(lambda p: mean_loss(net, p, batch))(params)  # type: ignore[no-any-return]


def each_gradient(net: Network, params: Params, batch: Batch) -> Params:
    """Return ∇ℓ(θ; z_i) of every sample: one array a parameter, (n, …), materialised on purpose.

    Every sample gets its own copy of the parameters, and the summed loss is differentiated in the copies: the copy i
    meets sample i only, so its gradient is the gradient of that sample's loss.
    """
    copies = {name: np.repeat(p[None], batch.n, axis=0) for name, p in params.items()}
    return autograd.grad(lambda p: anp.sum(sample_losses(net, p, batch)))(copies)  # type: ignore[no-any-return]


def sample_gradients(step: Step) -> Params:
    """Return x_i = w∇ℓ(θ; z_i) for each sample of the step's batch (docs/method.md 2): one array a parameter, (n, …).

    w is 1/n for reduction "mean" and 1 for "sum"; the batch gradient is Σ_i x_i.
    """
    weight = 1 / step.n if step.reduction == "mean" else 1.0
    return {name: weight * x for name, x in each_gradient(step.net, step.params, step.train).items()}


def batch_gradient(step: Step) -> Params:
    """Return g = Σ_i x_i, the gradient that Adam is given."""
    return {name: x.sum(axis=0) for name, x in sample_gradients(step).items()}
