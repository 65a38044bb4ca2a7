"""Validation gradients kept for some steps (`validation_every`), in memory of their own."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adamshap.gpu.arrays import Arrays
from adamshap.gpu.captures import Captures, gradient_rows, write_sums
from adamshap.gpu.context import EngineContext
from adamshap.reference.contract import CompletedSteps, Snapshot, is_validated

__all__ = ["HeldGradients", "KeptGradients"]

GROUPS = ("validation", "sgd_validation")
"""Names of `KeptGradients.gamma` and `.start` in a snapshot."""
PRODUCTS = "validation_products"


@dataclass(frozen=True)
class HeldGradients:
    """Γ of an earlier step, in place of the captures of validation samples: the estimator's, and SGD's at θ or None."""

    validation: Captures
    start: Captures | None


@dataclass
class KeptGradients:
    """The validation gradients of the last step that took them, as arrays (rows, …) by parameter.

    Parameters
    ----------
    every : int
        Number of steps for which they are kept.
    rows : int
        1 for the mean validation loss, or n_val for each sample's own.
    with_sgd : bool
        Whether SGD's scores are wanted too, and with them Γ at θ.
    gamma, start : dict of arrays
        The estimator's Γ, and SGD's at θ.
    products : dict of int
        Outer products of a training sample, by parameter.
    """

    every: int
    rows: int
    with_sgd: bool
    gamma: Arrays = field(default_factory=dict)
    start: Arrays = field(default_factory=dict)
    products: Mapping[str, int] = field(default_factory=dict)

    def held(
        self, completed: CompletedSteps, names: Collection[str], products: Mapping[str, int] | None = None
    ) -> HeldGradients | None:
        """Return the gradients of some parameters for the step after `completed` ones.

        None where the step takes its own: one in `every`, and one with a parameter that the last such step did not
        have. `products` are those of the step's samples, if not those of the last.
        """
        if is_validated(completed, self.every) or any(name not in self.gamma for name in names):
            return None
        products = self.products if products is None else products
        start = gradient_rows({name: self.start[name] for name in names}, products) if self.with_sgd else None
        return HeldGradients(gradient_rows({name: self.gamma[name] for name in names}, products), start)

    def hold(self, context: EngineContext, validation: Captures, start: Captures | None) -> None:
        """Keep the gradients of these captures."""
        self.products = validation.products
        self._write(context, validation, self.gamma)
        if self.with_sgd and start is not None:
            self._write(context, start, self.start)

    def _write(self, context: EngineContext, captures: Captures, into: Arrays) -> None:
        for name in [name for name in into if name not in context.shapes]:
            del into[name]
        for name, shape in context.shapes.items():
            if name not in into:
                into[name] = context.backend.xp.empty((self.rows, *shape), context.backend.dtype)
        for row in range(self.rows):
            some = captures if self.rows == 1 else captures.rows(slice(row, None, self.rows))
            write_sums(context, some, {name: into[name][row] for name in context.shapes})

    def arrays(self, context: EngineContext) -> Snapshot:
        """Return copies for a snapshot: 0 before the first step."""
        host, dtype = context.backend.host, context.backend.dtype
        kept = (self.gamma, self.start)[: 1 + self.with_sgd]
        arrays = {
            f"{group}/{name}": np.array(host(rows[name])) if name in rows else np.zeros((self.rows, *shape), dtype)
            for group, rows in zip(GROUPS, kept, strict=False)
            for name, shape in context.shapes.items()
        }
        return arrays | {PRODUCTS: np.array([self.products.get(name, 0) for name in context.shapes], np.int64)}

    def restore(self, context: EngineContext, kept: Mapping[str, Any]) -> None:
        """Continue from a snapshot."""
        for group, rows in list(zip(GROUPS, (self.gamma, self.start), strict=True))[: 1 + self.with_sgd]:
            for name in context.shapes:
                rows[name] = context.backend.real(kept[f"{group}/{name}"].copy())
        self.products = dict(zip(context.shapes, kept[PRODUCTS].tolist(), strict=True))
