"""Rows of a validation gradient in place of the captures that it came from: one row, or one for each sample."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from adamshap.gpu.arrays import ValidationGradient, like
from adamshap.gpu.captures.capture import Capture
from adamshap.gpu.captures.collection import Captures
from adamshap.gpu.captures.dense import Dense
from adamshap.gpu.captures.sums import write_sums
from adamshap.gpu.context import EngineContext

__all__ = ["GradientRows", "gradient_of", "gradient_rows"]


@dataclass(frozen=True)
class GradientRows(Dense):
    """Γ of one parameter: a row, or one for each validation sample.

    `count` is the number of outer products of a training sample, by which a sketch of P is weighed.
    """

    count: int = 0

    @property
    def products(self) -> dict[str, int]:
        """The number of outer products of a sample of the batch."""
        return {self.name: self.count} if self.count else {}

    def rows(self, which: slice) -> "GradientRows":
        """Return some rows, as views."""
        return replace(self, x=self.x[which])


def gradient_rows(rows: Mapping[str, Any], products: Mapping[str, int], losses: Any = None) -> Captures:
    """Return rows of Γ by parameter as captures; `products` has the outer products of a training sample."""
    return Captures(tuple(GradientRows(name, x, products.get(name, 0)) for name, x in rows.items()), losses)


def gradient_of(context: EngineContext, captures: Captures) -> ValidationGradient:
    """Return Σ_i x_i of validation samples, to read: a single row itself, else in a buffer."""
    if all(_is_whole(context, use) for use in captures.uses):
        return ValidationGradient({use.name: use.x[0] for use in captures.uses if isinstance(use, GradientRows)})
    gamma = ValidationGradient(like(context, "validation gradient"))
    write_sums(context, captures, gamma)
    return gamma


def _is_whole(context: EngineContext, use: Capture) -> bool:
    """Whether a use is one row, the whole parameter's, as kernels read it."""
    if not isinstance(use, GradientRows):
        return False
    return use.n == 1 and use.x.dtype == context.backend.dtype and bool(use.x.flags.c_contiguous)
