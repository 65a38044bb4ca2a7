"""Models: names, shapes and initial values of the parameters, and the batches that a model accepts."""

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np

from adamshap.reference.contract.arrays import Params
from adamshap.reference.contract.batch import Batch
from adamshap.reference.contract.checks import one_of, positive_integer, seed_of, shown, true_or_false
from adamshap.reference.contract.refusal import refuse

__all__ = ["ACTIVATIONS", "LOSSES", "ActivationName", "Loss", "Model", "Network", "model_of", "real_parts"]

ActivationName = Literal["relu", "tanh", "gelu", "silu", "sigmoid", "identity"]
Loss = Literal["cross_entropy", "mse"]
ACTIVATIONS: tuple[str, ...] = get_args(ActivationName)
LOSSES: tuple[str, ...] = get_args(Loss)


@runtime_checkable
class Model(Protocol):
    """The interface that a step and a run need of a model.

    A model may also have ``integers``: the arrays of a batch, "x" or "y", whose integers are identifiers, such as
    tokens or labels, and must not be converted to real numbers.
    """

    @property
    def kind(self) -> str:
        """Name of the kind of model, such as "perceptron", as written to saved cases."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each parameter, in their order."""

    def init(self, seed: int = 0) -> Params:
        """Return fresh float64 parameters for `seed`."""

    def check_batch(self, field: str, batch: Batch) -> None:
        """Refuse a batch that does not fit the model; `field` is its name in errors."""


def model_of(field: str, value: object) -> Model:
    """Return `value` if it is a model."""
    if isinstance(value, type) or not isinstance(value, Model):  # a class has the names of its instances
        refuse(field, type(value).__name__, "a Network", TypeError)
    return value


def real_parts(model: Model, batch: Batch) -> tuple[str, ...]:
    """Return which of "x" and "y" the model uses as real numbers, and not as tokens or labels."""
    integers = [name for name in getattr(model, "integers", ()) if getattr(batch, name).dtype.kind in "iu"]
    return tuple(name for name in ("x", "y") if name not in integers and (name == "x" or batch.y.ndim > 1))


@dataclass(frozen=True)
class Network:
    """A multilayer perceptron: linear layers with one activation between them, none after the last.

    Parameters
    ----------
    sizes : tuple of int
        Widths from input to output, at least two; layer ``l`` maps ``sizes[l]`` to ``sizes[l + 1]``.
    activation : {"relu", "tanh", "gelu", "silu", "sigmoid", "identity"}
        As in PyTorch: ReLU's derivative at 0 is 0, GELU is exact (with the error function).
    loss : {"cross_entropy", "mse"}
        "cross_entropy" takes integer labels (n,) and logits; "mse" takes targets (n, d_out), and a sample's loss is the
        *mean* over outputs of the squared error, as in PyTorch.
    bias : bool
        Whether the layers have biases.
    """

    sizes: tuple[int, ...]
    activation: ActivationName = "tanh"
    loss: Loss = "cross_entropy"
    bias: bool = True

    def __post_init__(self) -> None:
        zero_dimensional = isinstance(self.sizes, np.ndarray) and self.sizes.ndim == 0
        no_sequence = isinstance(self.sizes, str | Set | Mapping)
        if no_sequence or zero_dimensional or not hasattr(self.sizes, "__iter__"):
            refuse("Network.sizes", shown(self.sizes), "at least two positive integers", TypeError)
        sizes = tuple(positive_integer(f"Network.sizes[{i}]", size) for i, size in enumerate(self.sizes))
        if len(sizes) < 2:
            refuse("Network.sizes", shown(self.sizes), "at least two positive integers")
        object.__setattr__(self, "sizes", sizes)
        one_of("Network.activation", self.activation, ACTIVATIONS)
        one_of("Network.loss", self.loss, LOSSES)
        object.__setattr__(self, "bias", true_or_false("Network.bias", self.bias))

    @property
    def kind(self) -> str:
        """The kind of model, "perceptron"."""
        return "perceptron"

    @property
    def depth(self) -> int:
        """Number of linear layers."""
        return len(self.sizes) - 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each parameter: ``"0.weight"`` (d_out, d_in), ``"0.bias"`` (d_out,), ``"1.weight"``, ..."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (d_in, d_out) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            shapes[f"{layer}.weight"] = (d_out, d_in)
            if self.bias:
                shapes[f"{layer}.bias"] = (d_out,)
        return shapes

    def init(self, seed: int = 0) -> Params:
        """Return fresh float64 parameters, uniform on ±1/√d_in as PyTorch's ``nn.Linear`` (not its random numbers).

        Parameters
        ----------
        seed : int
            Seed of the random numbers.

        Returns
        -------
        dict of arrays
            One array per parameter, with the names and shapes of `shapes`.
        """
        generator = np.random.default_rng(seed_of(seed))
        bounds = {layer: 1 / math.sqrt(d_in) for layer, d_in in enumerate(self.sizes[:-1])}
        return {
            name: generator.uniform(-bounds[int(name.split(".")[0])], bounds[int(name.split(".")[0])], shape)
            for name, shape in self.shapes.items()
        }

    def check_batch(self, field: str, batch: Batch) -> None:
        """Refuse a batch whose widths or labels do not fit the network.

        Parameters
        ----------
        field : str
            The batch's name in errors.
        batch : Batch
        """
        d_in, d_out = self.sizes[0], self.sizes[-1]
        if batch.x.shape[1:] != (d_in,):
            refuse(
                f"{field}.x", f"shape {batch.x.shape}", f"shape ({batch.n}, {d_in}) for a network of sizes {self.sizes}"
            )
        if self.loss == "mse":
            if batch.y.shape != (batch.n, d_out):
                refuse(f"{field}.y", f"shape {batch.y.shape}", f"targets of shape ({batch.n}, {d_out}) for loss 'mse'")
            return
        if batch.y.ndim != 1:
            refuse(f"{field}.y", f"shape {batch.y.shape}", f"labels of shape ({batch.n},) for loss 'cross_entropy'")
        low, high = int(batch.y.min()), int(batch.y.max())
        if low < 0 or high >= d_out:
            refuse(f"{field}.y", f"labels from {low} to {high}", f"labels from 0 to {d_out - 1}")
