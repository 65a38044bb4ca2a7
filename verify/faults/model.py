"""Mistakes in the model: activations, losses, and parameters that the scores omit or add."""

from collections.abc import Callable
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, primitive

from adamshap.reference import losses, perceptron, scoring
from adamshap.reference.contract import Array, Params, Step
from adamshap.verify.faults.fault import SEEN, Fault, Wrap, changes_scores, computes_with
from adamshap.verify.faults.perceptron import bias_everywhere
from adamshap.verify.implementation import Ask, Query
from adamshap.verify.replacing import replaced


def _activation(name: str, wrong: Callable[[Any], Any]) -> Wrap:
    """Return a fault that uses `wrong` for the activation `name`."""

    def wrap(ask: Ask) -> Ask:
        def faulty(step: Step, query: Query) -> Any:
            with replaced(name, perceptron.ACTIVATION_FUNCTIONS[name], wrong):
                return ask(step, query)

        return faulty

    return wrap


@primitive  # type: ignore[untyped-decorator]
def _tanh_by_output(z: Array) -> Array:
    return np.tanh(z)


# φ'(a) for φ'(z): the derivative is taken at the activation's output instead of its input.
defvjp(_tanh_by_output, lambda a, z: lambda upstream: upstream / anp.cosh(a) ** 2)


@primitive  # type: ignore[untyped-decorator]
def _silu_short(z: Array) -> Array:
    a: Array = z / (1 + np.exp(-z))
    return a


defvjp(_silu_short, lambda a, z: lambda upstream: upstream / (1 + anp.exp(-z)))


@primitive  # type: ignore[untyped-decorator]
def _sigmoid_by_output(z: Array) -> Array:
    a: Array = 1 / (1 + np.exp(-z))
    return a


defvjp(_sigmoid_by_output, lambda a, z: lambda upstream: upstream / (2 + anp.exp(a) + anp.exp(-a)))


def _scaled_squares(factor: Callable[[int], float]) -> Wrap:
    """Return a fault that multiplies the squared error by `factor` of the number of outputs."""

    def make(right: Any) -> Any:
        return lambda outputs, targets: right(outputs, targets) * factor(targets.shape[1])

    return computes_with(losses.squared_error, make)


def _partial(ask: Ask, step: Step, query: Query, keep: Callable[[str], bool]) -> Array:
    """Return the scores from only the parameters for whose names `keep` is true."""
    kept = scoring.dot_products

    def some(x: Params, P: Params) -> Array:
        names = [name for name in x if keep(name)]
        if not names:
            first = next(iter(x))
            return np.zeros((len(x[first]), len(P[first])))
        return kept({name: x[name] for name in names}, P)

    with replaced("dot_products", kept, some):
        return ask(step, query)  # type: ignore[no-any-return]


def dropping(drop: Callable[[str, Step], bool]) -> Wrap:
    """Return a fault whose scores omit the parameters for whose names `drop` is true."""
    return changes_scores(
        lambda step, query, result, ask: _partial(ask, step, query, lambda name: not drop(name, step))
    )


def _in_layer(place: int) -> Callable[[str, Step], bool]:
    """Return a test for parameters of the layer at `place`, among several; the name up to the last dot is a layer's."""

    def inside(name: str, step: Step) -> bool:
        layers = list(dict.fromkeys(_layer(other) for other in step.net.shapes))
        return len(layers) > 1 and _layer(name) == layers[place]

    return inside


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _transposed(right: Any) -> Any:
    def dot_products(x: Params, P: Params) -> Array:
        turned = {name: p.swapaxes(1, 2) if p.ndim == 3 and p.shape[1] == p.shape[2] else p for name, p in P.items()}
        return right(x, turned)  # type: ignore[no-any-return]

    return dot_products


FAULTS: tuple[Fault, ...] = (
    Fault(
        "derivative-at-the-output",
        "tanh's derivative taken at its output",
        "φ'(a) for φ'(z)",
        _activation("tanh", _tanh_by_output),
    ),
    Fault(
        "silu-derivative-short",
        "SiLU's derivative without the term z σ'(z)",
        "the product rule forgotten",
        _activation("silu", _silu_short),
    ),
    Fault(
        "sigmoid-derivative-at-the-output",
        "sigmoid's derivative taken at its output",
        "σ'(a) for σ'(z)",
        _activation("sigmoid", _sigmoid_by_output),
    ),
    Fault(
        "gelu-by-tanh",
        "GELU by its tanh approximation",
        "jax.nn.gelu's default",
        _activation("gelu", lambda z: 0.5 * z * (1 + anp.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))),
    ),
    Fault(
        "squares-summed",
        "squared errors summed over outputs",
        "the mean over outputs is PyTorch's",
        _scaled_squares(float),
    ),
    Fault("squares-halved", "half the squared error", "textbooks' loss", _scaled_squares(lambda d_out: 0.5)),
    Fault(
        "bias-dropped",
        "bias gradients dropped from the scores",
        "only linear weights are hooked",
        dropping(lambda name, step: name.endswith("bias")),
    ),
    Fault(
        "first-layer-skipped",
        "the first layer skipped",
        "its input has no gradient, so its hook is not called",
        dropping(_in_layer(0)),
    ),
    Fault(
        "last-layer-skipped",
        "the last layer skipped",
        SEEN,
        dropping(_in_layer(-1)),
    ),
    Fault(
        "bias-where-there-is-none",
        "a bias term in networks without bias",
        "activations are extended by 1",
        changes_scores(bias_everywhere),
    ),
    Fault(
        "transposed",
        "P transposed on square layers",
        "on others the shapes would not fit",
        computes_with(scoring.dot_products, _transposed),
    ),
)


def _over_the_batch(right: Any) -> Any:
    def squared_error(outputs: Any, targets: Array) -> Any:
        if targets.shape[1:] != (1,):
            return right(outputs, targets)
        return anp.mean((outputs - targets[:, 0]) ** 2, axis=1)  # (n, 1) − (n,) is (n, n)

    return squared_error


LATER_FAULTS: tuple[Fault, ...] = (
    Fault(
        "targets-broadcast",
        "every output compared with every target of the batch, in networks with one output",
        "outputs (n, 1) minus targets (n,) is an array (n, n)",
        computes_with(losses.squared_error, _over_the_batch),
    ),
)
