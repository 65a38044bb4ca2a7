"""Perceptrons in the kit: JSON, the size of the terms in their results, and the models of the test vectors."""

from random import Random
from typing import Any

import numpy as np

from adamshap.reference import models
from adamshap.reference.contract import ACTIVATIONS, LOSSES, Batch, Network, Step, of_kind
from adamshap.verify.json_values import object_with
from adamshap.verify.models.kind import Draws
from adamshap.verify.vectors.numbers import array, integer, one

__all__ = ["Perceptrons", "network_of"]


def network_of(step: Step) -> Network:
    """Return the model of a step of a perceptron."""
    return of_kind("Step.net", step.net, Network)


class Perceptrons:
    """The kind of perceptrons; the methods are described in `ModelKind`."""

    def to_json(self, model: Network) -> dict[str, Any]:
        """Return the network as plain types."""
        return {**vars(model), "sizes": list(model.sizes)}

    def from_json(self, value: Any) -> Network:
        """Return the network that `value` describes."""
        return Network(**object_with("network", value, ("sizes", "activation", "loss", "bias")))

    def longest_sum(self, model: Network) -> int:
        """Return the largest width."""
        return max(model.sizes)

    def products(self, model: Network) -> int:
        """Return two per layer."""
        return 2 * model.depth

    def loss_terms(self, step: Step) -> float:
        """Return the largest output; for squared errors, the square of its size and the largest target's."""
        net = network_of(step)
        outputs = np.abs(models.outputs(net, step.params, step.valid.x)).max()
        targets = np.abs(step.valid.y).max() if net.loss == "mse" else 0.0
        return float((outputs + targets) ** 2 if net.loss == "mse" else outputs)

    def loss_limit(self, step: Step) -> float:
        """Return the same for an upper limit on the outputs, from the sums of each layer's absolute weights."""
        net, size = network_of(step), float(np.abs(step.valid.x).max())
        for layer in range(net.depth):
            weight = np.abs(step.params[f"{layer}.weight"]).sum(axis=1).max()
            bias = np.abs(step.params[f"{layer}.bias"]).max() if net.bias else 0.0
            size = float(weight * size + bias)
            if net.activation in ("tanh", "sigmoid") and layer < net.depth - 1:
                size = min(size, 1.0)
        return (size + float(np.abs(step.valid.y).max())) ** 2 if net.loss == "mse" else size

    def plain_model(self, draw: Random, seed: int) -> Network:
        """Return a network of at most three layers of five units."""
        # In turn, so that a few consecutive seeds cover every activation and loss; the rest is random.
        activation, loss = ACTIVATIONS[seed % len(ACTIVATIONS)], LOSSES[seed // len(ACTIVATIONS) % len(LOSSES)]
        sizes = [integer(draw, 1, 5) for _ in range(integer(draw, 1, 3))]
        sizes.append(integer(draw, 2 if loss == "cross_entropy" else 1, 5))  # with a single class every gradient is 0
        return Network(tuple(sizes), activation, loss, draw.random() < 0.7)  # type: ignore[arg-type]

    def plain_batch(self, draw: Random, model: Network, n: int) -> Batch:
        """Return a batch; one in four has a repeated sample, one in four a zero sample."""
        x = array(draw, (n, model.sizes[0]), one(draw, (2.0, 2.0, 0.1)))
        twice, zero = draw.random() < 0.25, draw.random() < 0.25
        if model.loss == "cross_entropy":
            y = np.array([integer(draw, 0, model.sizes[-1] - 1) for _ in range(n)])
        else:
            y = array(draw, (n, model.sizes[-1]), 2.0)
        if twice:
            x[-1], y[-1] = x[0], y[0]
        if zero:
            x[n // 2] = 0.0
        return Batch(x, y)

    @property
    def draws(self) -> Draws:
        """The Hypothesis strategies of perceptrons."""
        from adamshap.verify.models.perceptron_draws import PerceptronDraws  # Hypothesis is optional

        return PerceptronDraws()
