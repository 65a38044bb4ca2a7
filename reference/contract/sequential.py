"""A stack of layers with a loss, as a model of tokens, sequences, images or rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adamshap.reference.contract.arrays import Params, named_arrays, on_host
from adamshap.reference.contract.batch import Batch
from adamshap.reference.contract.checks import one_of, seed_of, shown
from adamshap.reference.contract.layer import Layer, Shape, named_stack, stack_shapes
from adamshap.reference.contract.layers import Residual, TiedLinear
from adamshap.reference.contract.model import LOSSES, Loss
from adamshap.reference.contract.refusal import refuse
from adamshap.reference.contract.rows import parts

__all__ = ["NOT_COUNTED", "Sequential"]

NOT_COUNTED = -100
"""The label of a position that the loss does not count, as in PyTorch."""


@dataclass(frozen=True)
class Sequential:
    """Layers one after the other, as ``nn.Sequential``, and a loss.

    Parameters
    ----------
    layers : sequence of layers
        Such as `Linear`, `Attention` or `Conv2d`; an `Embedding` only as the first.
    names : sequence of str, optional
        Of the layers: parameter ``"weight"`` of a layer ``"head"`` is ``"head.weight"``. "0", "1" and so on, as
        PyTorch's, by default. A name may occur twice as long as no parameter's does.
    loss : {"cross_entropy", "mse"}
        A sample's: "cross_entropy" of logits (classes,) with labels (n,); of logits (T, classes) with labels (n, T) the
        mean over positions with a label other than -100. "mse" is the mean over all outputs of the squared error.
    """

    layers: tuple[Layer, ...]
    names: tuple[str, ...] = ()
    loss: Loss = "cross_entropy"
    kind: str = field(default="sequential", init=False, repr=False)

    def __post_init__(self) -> None:
        layers, names = named_stack("Sequential", self.layers, self.names)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "names", names)
        one_of("Sequential.loss", self.loss, LOSSES)
        shapes = stack_shapes("Sequential", names, layers)
        for name, layer in _each_layer(names, layers):
            if isinstance(layer, TiedLinear):
                needs, have = (layer.d_out, layer.d_in), shapes.get(layer.weight)
                if have is None:
                    refuse(f"{name}.weight", shown(layer.weight), f"one of the model's parameters, {list(shapes)}")
                if have != needs:
                    refuse(f"{name}.weight", f"{layer.weight!r} of shape {have}", f"a parameter of shape {needs}")
                if f"{name}.weight" in shapes:
                    refuse("Sequential.names", f"two layers {name!r}", "another name for the tied layer")

    @property
    def takes_tokens(self) -> bool:
        """Whether the inputs are tokens, integers in place of real numbers."""
        return self.layers[0].takes_tokens

    @property
    def integers(self) -> tuple[str, ...]:
        """The arrays of a batch whose integers are identifiers: "x" for tokens, "y" for labels."""
        return (*(("x",) if self.takes_tokens else ()), *(("y",) if self.loss == "cross_entropy" else ()))

    @property
    def shapes(self) -> dict[str, Shape]:
        """Name and shape of each parameter; a weight used twice is one parameter."""
        return stack_shapes("Sequential", self.names, self.layers)

    @property
    def ties(self) -> dict[str, str]:
        """PyTorch's other names of parameters that are used twice: from ``"head.weight"`` to ``"embedding.weight"``."""
        found = _each_layer(self.names, self.layers)
        return {f"{name}.weight": layer.weight for name, layer in found if isinstance(layer, TiedLinear)}

    def init(self, seed: int = 0) -> Params:
        """Return fresh float64 parameters.

        Weights of linear layers, convolutions and attention are uniform on ±1/√(inputs of an output), embeddings and
        positions normal with deviation 0.02, gains 1, biases of norms and attention 0, other biases as the weights.

        Parameters
        ----------
        seed : int
            Of the random numbers.

        Returns
        -------
        dict of arrays
            One per parameter, with the names and shapes of `shapes`.
        """
        generator = np.random.default_rng(seed_of(seed))
        return {
            f"{prefix}.{name}": p
            for prefix, layer in zip(self.names, self.layers, strict=True)
            for name, p in layer.init(generator).items()
        }

    def from_state_dict(self, state: Mapping[str, Any]) -> Params:
        """Return the parameters that a PyTorch module of the same layers and names has.

        Parameters
        ----------
        state : mapping from name to array or tensor
            The module's ``state_dict()``, on the CPU. A tied weight may come under both of its names.

        Returns
        -------
        dict of arrays
            With the names and shapes of `shapes`, in their dtype, without a copy.
        """
        if not isinstance(state, Mapping):
            refuse("state", type(state).__name__, "a mapping from parameter name to array", TypeError)
        ties = {other: name for other, name in self.ties.items() if other in state}
        params = named_arrays("state", {name: p for name, p in state.items() if name not in ties}, self.shapes)
        for other, name in ties.items():
            if not np.array_equal(np.asarray(state[other]), params[name]):
                refuse(f"state[{other!r}]", f"values other than those of {name!r}", "the same: they are one parameter")
        return params

    def out_shape(self, field: str, shape: Shape) -> Shape:
        """Return the shape of one sample's output.

        Parameters
        ----------
        field : str
            Name of the inputs in errors.
        shape : tuple of int
            Of one sample's input.

        Returns
        -------
        tuple of int
            Without the leading axis n.
        """
        found = shape
        for name, layer in zip(self.names, self.layers, strict=True):
            after = layer.out_shape(found)
            if after is None:
                refuse(
                    field,
                    f"samples of shape {shape}, of which layer {name!r} gets {found}",
                    f"there {layer.takes}, for {shown(layer)}",
                )
            found = after
        return found

    def check_batch(self, field: str, batch: Batch) -> None:
        """Refuse a batch that the layers or the loss cannot take.

        Parameters
        ----------
        field : str
            The batch's name in errors.
        batch : Batch
        """
        out = self.out_shape(f"{field}.x", batch.x.shape[1:])
        if self.takes_tokens:
            self._check_tokens(f"{field}.x", batch.x)
        if self.loss == "mse":
            if batch.y.shape != (batch.n, *out):
                needs = f"targets of shape {(batch.n, *out)} for loss 'mse'"
                refuse(f"{field}.y", f"shape {batch.y.shape}", needs)
            return
        if len(out) > 2:
            refuse(f"{field}.x", f"outputs of shape {out} for a sample", "(classes,) or (T, classes)")
        self._check_labels(f"{field}.y", batch, out)

    def _check_tokens(self, where: str, x: Any) -> None:
        vocab: int = self.layers[0].vocab  # type: ignore[attr-defined]
        if x.dtype.kind not in "iu":
            refuse(where, f"dtype {x.dtype}", "tokens, of an integer dtype", TypeError)
        low, high = _range(x)
        if low < 0 or high >= vocab:
            refuse(where, f"tokens from {low} to {high}", f"tokens from 0 to {vocab - 1}")

    def _check_labels(self, where: str, batch: Batch, out: Shape) -> None:
        y = on_host(batch.y)
        needs = f"labels of shape {(batch.n, *out[:-1])} for loss 'cross_entropy'"
        if y.shape != (batch.n, *out[:-1]):
            refuse(where, f"shape {y.shape}", needs)
        if y.dtype.kind not in "iu":
            refuse(where, f"dtype {y.dtype}", f"{needs}, of an integer dtype", TypeError)
        by_position = len(out) == 2
        counted = y != NOT_COUNTED if by_position else np.ones(batch.n, bool)
        none = ~counted.any(axis=-1) if by_position else ~counted
        if none.any():
            first = int(np.flatnonzero(none)[0])
            refuse(where, f"no counted label in sample {first}", f"one other than {NOT_COUNTED} in each sample")
        low, high = _range(y[counted])
        if low < 0 or high >= out[-1]:
            also = f", or {NOT_COUNTED} where nothing is counted" if by_position else ""
            refuse(where, f"labels from {low} to {high}", f"labels from 0 to {out[-1] - 1}{also}")


def _each_layer(names: Sequence[str], layers: Sequence[Layer]) -> Iterator[tuple[str, Layer]]:
    """Yield every layer with its full name, those within others too."""
    for name, layer in zip(names, layers, strict=True):
        yield name, layer
        if isinstance(layer, Residual):
            for inner, own in _each_layer(layer.names, layer.layers):
                yield f"{name}.{inner}", own


def _range(array: Any) -> tuple[int, int]:
    ends = [(int(part.min()), int(part.max())) for part in parts(array)]
    return min(low for low, _ in ends), max(high for _, high in ends)
