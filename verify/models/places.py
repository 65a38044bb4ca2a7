"""The place of each parameter in a stack of layers, for reports that say which layer is wrong."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adamshap.reference.contract import Layer, Model, Residual, Sequential

__all__ = ["Place", "kinds_in_order", "places_of"]


@dataclass(frozen=True)
class Place:
    """Where a parameter stands.

    Parameters
    ----------
    parameter : str
        Its full name, such as ``"1.0.weight"``.
    layer : str
        Kind of its layer.
    field : str
        Its name within the layer.
    number : int
        Number of the layer among those of the whole stack, those within residuals counted too, from 1.
    count : int
        Number of layers of the whole stack.
    within : str
        " in a residual" for a layer of one.
    """

    parameter: str
    layer: str
    field: str
    number: int
    count: int
    within: str = ""

    def __str__(self) -> str:
        return f"'{self.parameter}' ({self.layer}, layer {self.number} of {self.count}{self.within})"


def places_of(model: Model) -> dict[str, Place]:
    """Return the place of each parameter, in the order of the layers; none for a model that is not a stack."""
    if not isinstance(model, Sequential):
        return {}
    order = list(_each(model.names, model.layers, ""))
    return {
        f"{name}.{field}": Place(f"{name}.{field}", layer.kind, field, number, len(order), within)
        for number, (name, layer, within) in enumerate(order, start=1)
        if not isinstance(layer, Residual)
        for field in layer.shapes
    }


def kinds_in_order(model: Model) -> list[str]:
    """Return the kinds of a stack's layers, those within residuals too, in the order that `Place.number` counts."""
    return [layer.kind for _, layer, _ in _each(model.names, model.layers, "")] if isinstance(model, Sequential) else []


def _each(names: Sequence[str], layers: Sequence[Layer], within: str) -> Iterator[tuple[str, Layer, str]]:
    for name, layer in zip(names, layers, strict=True):
        yield name, layer, within
        if isinstance(layer, Residual):
            inner = [f"{name}.{one}" for one in layer.names]
            yield from _each(inner, layer.layers, " in a residual")
