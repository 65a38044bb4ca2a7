"""Parameters of a layer that computes Σ_i x_i, and has no capture: scores by forward mode, or none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NoReturn

from adamshap.reference.contract import refuse

__all__ = ["Summed"]


@dataclass(frozen=True)
class Summed:
    """A use of parameters of which only Σ_i x_i is known: for a layer without a capture.

    Adam's step and Γ need no more. The score of a sample then is the derivative of its loss, with
    ``contraction="forward"``; everything that needs the samples apart, or their squares, is refused.

    Parameters
    ----------
    names : tuple of str
    arrays : mapping
        Arrays (n, …) of the layer's passes, such as its inputs and the gradients in its outputs.
    total : callable
        Function from such arrays, of any rows, to Σ_i x_i of these rows, by the name of the parameter.
    """

    names: tuple[str, ...]
    arrays: Mapping[str, Any]
    total: Callable[[Mapping[str, Any]], Mapping[str, Any]]

    @cached_property
    def _sums(self) -> Mapping[str, Any]:
        return self.total(self.arrays)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(next(iter(self.arrays.values())))

    @property
    def products(self) -> dict[str, int]:
        """None."""
        return {}

    @property
    def macs(self) -> int:
        """Elements of a row's arrays."""
        return sum(math.prod(array.shape[1:]) for array in self.arrays.values())

    @property
    def pair_macs(self) -> int:
        """Elements of a row's arrays."""
        return self.macs

    @property
    def scratch(self) -> int:
        """0."""
        return 0

    def rows(self, which: slice) -> Summed:
        """Return the use by some rows, as views."""
        return replace(self, arrays={name: array[which] for name, array in self.arrays.items()})

    def sum_of(self, xp: Any, name: str, units: slice, out: Any = None) -> Any:
        """Return Σ_i x_i of some units of the parameter `name`; in `out` if given."""
        found = self._sums[name][units]
        if out is None:
            return found.copy()
        out[...] = found
        return out

    def _refuse_apart(self, *_: object, **__: object) -> NoReturn:
        needs = "layers with captures, or `scores` and `attribute` with contraction 'forward' and credit 'step'"
        refuse("model.layers", f"one without a capture of {', '.join(self.names)}", needs)

    add_dots = weighted = form = pair_dots = row_norms = kept = rebuilt = _refuse_apart

    def root_squares(self, *_: object, **__: object) -> NoReturn:
        """Refuse: squares do not add up along a direction."""
        got = f"one that needs Σ x_i² of {', '.join(self.names)}, whose layer has no capture"
        refuse("slope", got, "'sgd', 'frozen', 'linearized', 'tangent' or 'secant'")

    signed_roots = root_squares
