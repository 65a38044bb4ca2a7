"""Mistakes specific to perceptrons; answers for other models stay right."""

from dataclasses import replace
from typing import Any

import numpy as np

from adamshap.reference import models, perceptron
from adamshap.reference.contract import AdamState, Array, Batch, Model, Network, Params, Step
from adamshap.verify.implementation import Ask, Query


def summed_separately(right: Any) -> Any:
    """Return Σ_j b_j times Σ_j a_j for Σ_j b_j a_jᵀ; right for one validation sample, wrong for two."""

    def gradient(net: Model, params: Params, batch: Batch) -> Params:
        wrong: Params = dict(right(net, params, batch))
        if not isinstance(net, Network):
            return wrong
        with_bias = replace(net, bias=True)
        padded = {name: params.get(name, np.zeros(shape)) for name, shape in with_bias.shapes.items()}
        each = models.each_gradient(with_bias, padded, batch)
        for layer in range(net.depth):
            a = batch.x
            if layer:
                below = Network(net.sizes[: layer + 1], net.activation, "mse")
                a = perceptron.ACTIVATION_FUNCTIONS[net.activation](models.outputs(below, padded, batch.x))
            b = each[f"{layer}.bias"]
            wrong[f"{layer}.weight"] = np.outer(b.sum(axis=0), a.sum(axis=0)) / batch.n
        return wrong

    return gradient


def bias_everywhere(step: Step, query: Query, result: Array, ask: Ask) -> Array:
    """Return scores with activations extended by a 1 for the bias, even if the network has none."""
    net = step.net
    if not isinstance(net, Network) or net.bias:
        return result
    net = replace(net, bias=True)

    def extend(arrays: Params) -> Params:
        return {name: arrays.get(name, np.zeros(shape)) for name, shape in net.shapes.items()}

    state = AdamState(step.state.step, extend(step.state.m), extend(step.state.v))
    padded = Step(net, extend(step.params), step.adam, state, step.train, step.valid, step.reduction)
    return ask(padded, query)  # type: ignore[no-any-return]
