"""Layers, losses and models: one module per layer or loss, and one per kind of model, which stacks them.

A new kind of model is one more line of `STACKS`. Scoring imports nothing from here: it reads captures.

======================  =====================================================================
module                  holds
======================  =====================================================================
`linear`                a linear layer: forward, backward, capture
`activation`            activations and their derivatives
`cross_entropy`         losses, and their gradients in the model's output
`squared_error`
`perceptron`            the stack of `Network`
`stage`                 the interface of a layer of `Sequential`, and its arrays
`positionwise_linear`   linear layers at every position, also with another layer's weight
`activation_layer`      activations as layers
`embedding`             embedding, learned positions
`norm`                  LayerNorm, RMSNorm
`attention`             causal multi-head attention
`convolution`           convolutions of images
`pooling`               average and maximum of windows
`reshaping`             flatten, mean over positions
`chain`                 layers one after the other, residual
`sequence_losses`       losses of sequences
`sequential`            the stack of `Sequential`
======================  =====================================================================
"""

from collections.abc import Callable, Mapping
from typing import Any

from adamshap.gpu.backend import Backend, Buffers
from adamshap.gpu.context import EngineContext
from adamshap.gpu.kernels import kernels_for
from adamshap.gpu.layers.perceptron import Perceptron
from adamshap.gpu.layers.sequential import SequentialStack
from adamshap.gpu.ops import ops_for
from adamshap.gpu.stack import Stack
from adamshap.reference.contract import Model, refuse

__all__ = ["STACKS", "context_for", "stack_for"]

STACKS: Mapping[str, Callable[[Any], Stack]] = {"perceptron": Perceptron.of, "sequential": SequentialStack.of}
"""Function that builds a model's stack, by the model's kind."""


def stack_for(model: Model) -> Stack:
    """Return the forward and backward pass of `model`."""
    build = STACKS.get(model.kind)
    if build is None:
        refuse("model.kind", repr(model.kind), "one of " + ", ".join(STACKS) + ", which the engine has layers for")
    return build(model)


def context_for(model: Model, backend: Backend, parts: int | None = None) -> EngineContext:
    """Return a context without buffers, which divides work into `parts` (None: one per processor)."""
    kernels, ops = kernels_for(backend), ops_for(backend)
    return EngineContext(model, stack_for(model), backend, kernels, ops, Buffers(backend), model.shapes, parts=parts)
