"""Forward and backward pass of the network, keeping for each layer its inputs a and output gradients b.

The gradient of sample i's loss in a layer's weight is the outer product ``b_i a_iᵀ``, and ``b_i`` in its bias; neither
is ever made for one sample. A `Trace` holds a and b of all rows; its rows may be run in parts, at different parameters.

======  ==================  =======================================
paper   name                meaning
======  ==================  =======================================
a       ``Trace.inputs``    per layer (rows, d_in)
b       ``Trace.grads``     per layer (rows, d_out), weighted
ℓ       ``Trace.losses``    (rows,), not weighted
======  ==================  =======================================
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from adamshap.gpu.backend import Backend, Buffers, Place, within_memory
from adamshap.gpu.kernels import Kernels, kernels_for
from adamshap.gpu.ops import Ops, ops_for
from adamshap.gpu.threads import in_parts, own_threads
from adamshap.reference.contract import Network

__all__ = [
    "CACHED",
    "EngineContext",
    "Trace",
    "as_matrix",
    "backward",
    "forward",
    "gradients",
    "new_trace",
    "product",
    "row_losses",
    "run_rows",
    "times_gradients",
    "weights_of",
    "with_gradients",
]

FEW_ROWS = 64
"""Below, rows are not shared out among threads: a product of few rows takes its time from reading the weights."""

CACHED = 1 << 16
"""Elements of a gradient that are made at a time and stay in the cache."""

A = TypeVar("A", bound=npt.NDArray[Any])

WITHOUT_DERIVATIVE = ("relu", "identity")  # ReLU's is read from the activation, the identity has none


@dataclass(frozen=True)
class EngineContext:
    """What every part of a step works with: the network, the backend, its kernels, array routines and buffers."""

    net: Network
    backend: Backend
    kernels: Kernels
    ops: Ops
    buffers: Buffers
    shapes: Mapping[str, tuple[int, ...]]
    place: Place = field(default_factory=Place)
    parts: int | None = None

    @classmethod
    def on(cls, net: Network, backend: Backend, parts: int | None = None) -> "EngineContext":
        """Return a workshop with no buffers yet, that shares out work into `parts` (None: one a processor)."""
        return cls(net, backend, kernels_for(backend), ops_for(backend), Buffers(backend), net.shapes, parts=parts)

    def loss(self, z: Any, y: Any, weight: Any) -> Any:
        """Return each row's loss and turn the network's output `z` into the gradient of ``weight · ℓ`` in it."""
        loss = _cross_entropy if self.net.loss == "cross_entropy" else _squared_error
        return loss(self.backend.xp, z, y, weight)

    def now(self, phase: str, samples: slice | str | None = None) -> None:
        """Note what is computed from here on, and of which samples: said where memory runs out."""
        self.place.phase = phase
        if samples is not None:
            self.place.samples = samples

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Return the context in which steps are taken: on the host, with the engine's own threads.

        Overflow is no warning here: the results are checked.
        """
        with within_memory(self.place), np.errstate(over="ignore", invalid="ignore"):
            if self.backend.on_cuda:
                yield
                return
            with own_threads(self.parts):
                yield


@dataclass(frozen=True)
class Trace:
    """What one forward and backward pass leaves behind, for rows that share nothing but the network."""

    inputs: list[Any]
    grads: list[Any]
    derivatives: list[Any]
    losses: Any

    def rows(self, which: slice) -> "Trace":
        """Return the trace of some rows, as views."""
        return Trace(
            [a[which] for a in self.inputs],
            [b[which] for b in self.grads],
            [None if d is None else d[which] for d in self.derivatives],
            self.losses[which],
        )


def as_matrix(array: A) -> A:
    """Return a weight as it is, and a bias as one row."""
    return array if array.ndim == 2 else cast(A, array[None, :])


def new_trace(context: EngineContext, name: str, rows: int, x: Any = None) -> Trace:
    """Return a trace with room for `rows`; with `x` (rows, d_in) the first layer's inputs are that array itself."""
    net, get = context.net, context.buffers.get
    sizes = net.sizes
    first = get(f"{name} inputs 0", (rows, sizes[0])) if x is None else x
    inputs = [first, *(get(f"{name} inputs {layer}", (rows, d)) for layer, d in enumerate(sizes[1:-1], 1))]
    grads = [get(f"{name} gradients {layer}", (rows, d)) for layer, d in enumerate(sizes[1:])]
    kept = net.activation not in WITHOUT_DERIVATIVE
    derivatives = [
        get(f"{name} derivatives {layer}", (rows, d)) if kept else None for layer, d in enumerate(sizes[1:-1], 1)
    ]
    return Trace(inputs, grads, derivatives, get(f"{name} losses", (rows,)))


def run_rows(context: EngineContext, trace: Trace, params: Mapping[str, Any], y: Any, weight: Any) -> None:
    """Fill the trace from its first inputs: losses, and b for the loss ``Σ weight · ℓ``.

    `weight` is a number, or an array (rows, 1).
    """

    def some(low: int, high: int) -> None:
        rows = slice(low, high)
        part = trace if high - low == len(trace.losses) else trace.rows(rows)
        forward(context, part, params)
        part.losses[...] = context.loss(part.grads[-1], y[rows], weight if isinstance(weight, float) else weight[rows])
        backward(context, part, params)

    rows = len(trace.losses)
    if rows < FEW_ROWS:
        some(0, rows)
    else:
        in_parts(some, rows, 4 * rows * weights_of(context.net))


def product(context: EngineContext, a: Any, b: Any, out: Any) -> None:
    """Write ``a b``, shared out by the columns of `b`: of few rows, each thread would else read all of `b`."""

    def some(low: int, high: int) -> None:
        context.backend.xp.matmul(a, b[:, low:high], out=out[:, low:high])

    if len(a) < FEW_ROWS:
        in_parts(some, b.shape[1], 2 * a.size * b.shape[1])
    else:
        context.backend.xp.matmul(a, b, out=out)


def forward(context: EngineContext, trace: Trace, params: Mapping[str, Any]) -> None:
    """Fill the inputs of every layer and write the network's output where the last layer's b will stand."""
    context.now("forward pass")
    net = context.net
    last = net.depth - 1
    for layer in range(net.depth):
        z = trace.grads[last] if layer == last else trace.inputs[layer + 1]
        product(context, trace.inputs[layer], params[f"{layer}.weight"].T, z)
        bias = params.get(f"{layer}.bias")
        if layer == last:
            if bias is not None:
                z += bias
        else:
            context.ops.activate(net.activation, z, bias, trace.derivatives[layer])


def backward(context: EngineContext, trace: Trace, params: Mapping[str, Any]) -> None:
    """Carry b from the last layer to the first."""
    context.now("backward pass")
    net = context.net
    for layer in range(net.depth - 1, 0, -1):
        b = trace.grads[layer - 1]
        product(context, trace.grads[layer], params[f"{layer}.weight"], b)
        kept = trace.inputs[layer] if net.activation == "relu" else trace.derivatives[layer - 1]
        context.ops.scale_by_derivative(net.activation, b, kept)


def gradients(context: EngineContext, trace: Trace, into: Mapping[str, Any], add: bool = False) -> None:
    """Write the gradient summed over the trace's rows, ``bᵀ a`` and Σ b, or add it to what stands there."""
    context.now("gradient")
    xp, parts = context.backend.xp, max(context.net.sizes[1:])

    def some(low: int, high: int) -> None:
        for layer, (a, all_b) in enumerate(zip(trace.inputs, trace.grads, strict=True)):
            units = slice(all_b.shape[1] * low // parts, all_b.shape[1] * high // parts)
            b, weight, bias = all_b[:, units], into[f"{layer}.weight"][units], into.get(f"{layer}.bias")
            if add:
                weight += xp.matmul(b.T, a)
            else:
                xp.matmul(b.T, a, out=weight)
            if bias is not None:
                if add:
                    bias[units] += b.sum(axis=0)
                else:
                    xp.sum(b, axis=0, out=bias[units])

    in_parts(some, parts, 2 * len(trace.losses) * weights_of(context.net))


def times_gradients(context: EngineContext, trace: Trace, into: Mapping[str, Any]) -> None:
    """Multiply what stands in `into` by the gradient summed over the trace's rows."""

    def multiply(key: str, units: slice, gradient: Any) -> None:
        product = into[key][units]
        product *= gradient

    with_gradients(context, trace, multiply, 4 * len(trace.losses) * weights_of(context.net))


def with_gradients(context: EngineContext, trace: Trace, use: Callable[[str, slice, Any], None], flops: float) -> None:
    """Call ``use(key, units, gradient)`` for all units, with the gradient summed over the trace's rows.

    On the host the gradient is made of some units at a time, in the cache, and never as a whole.
    """
    context.now("validation gradient")
    xp, parts = context.backend.xp, max(context.net.sizes[1:])

    def some(low: int, high: int) -> None:
        for layer, (a, b) in enumerate(zip(trace.inputs, trace.grads, strict=True)):
            block = parts if context.backend.on_cuda else max(CACHED // a.shape[1], 1)
            units = range(b.shape[1] * low // parts, b.shape[1] * high // parts)
            for first in units[::block]:
                some_units = slice(first, min(first + block, units.stop))
                use(f"{layer}.weight", some_units, xp.matmul(b[:, some_units].T, a))
            if context.net.bias and len(units):
                some_units = slice(units.start, units.stop)
                use(f"{layer}.bias", some_units, b[:, some_units].sum(axis=0))

    in_parts(some, parts, flops)


def weights_of(net: Network) -> int:
    """Return the number of the network's weights."""
    return sum(d_in * d_out for d_in, d_out in pairwise(net.sizes))


def row_losses(context: EngineContext, trace: Trace, params: Mapping[str, Any], y: Any) -> Any:
    """Return each row's loss at other parameters; fills the trace's inputs anew."""
    forward(context, trace, params)
    trace.losses[...] = context.loss(trace.grads[-1], y, 1.0)
    return trace.losses


def _cross_entropy(xp: Any, z: Any, y: Any, weight: Any) -> Any:
    """Return −log softmax(z)_y and turn `z` into its gradient, softmax(z) − onehot(y), times `weight`.

    Where the label's probability is nearly 1, neither is made by subtraction: with e the exponentials less their
    largest's, the label's own gradient is −Σ_{j≠y} e_j / Σ e, and the loss log1p(Σ_{j≠y} e_j).
    """
    f = z.dtype.type
    hit = xp.arange(z.shape[1]) == y[:, None]
    top = z.max(axis=1, keepdims=True)
    gap = top - xp.where(hit, z, f(0)).sum(axis=1, keepdims=True)
    e = xp.exp(z - top)
    rest = xp.where(hit, f(0), e).sum(axis=1, keepdims=True)
    total = rest + xp.exp(-gap)
    xp.multiply(xp.where(hit, -rest, e), _typed(z, weight) / total, out=z)
    return xp.where(gap > 0, xp.log(total) + gap, xp.log1p(rest))[:, 0]


def _squared_error(xp: Any, z: Any, y: Any, weight: Any) -> Any:
    """Return the mean over outputs of (z − y)² and turn `z` into its gradient, times `weight`."""
    z -= y
    losses = xp.einsum("no,no->n", z, z) / z.dtype.type(z.shape[1])
    z *= _typed(z, weight) * z.dtype.type(2 / z.shape[1])
    return losses


def _typed(z: Any, weight: Any) -> Any:
    """Return a weight in `z`'s dtype, which an array has already."""
    return z.dtype.type(weight) if isinstance(weight, float) else weight
