"""The engine of `adamshap.gpu` as a candidate: each call in the dtype of the step's parameters.

adamshap verify engine --dtype float32
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from adamshap import gpu
from adamshap.gpu.backend import DeviceName
from adamshap.gpu.layers.sequential import BUILDERS
from adamshap.reference.contract import (
    AUTO,
    TWO_TERM,
    AdamState,
    Array,
    Batch,
    MarginalKind,
    Marginals,
    Model,
    Params,
    Step,
)
from adamshap.verify.candidates.engine_captures import captured
from adamshap.verify.optimisers import FEATURES

__all__ = ["SUPPORTS", "Engine", "captures", "influence", "marginals", "scores", "update", "utility"]

SUPPORTS = ("activation", *BUILDERS, *FEATURES, AUTO)
"""The kinds of layers that the engine has, the features of optimisers, and the slope "auto"."""


def _dtype(step: Step) -> Any:
    return step.dtype.name


@dataclass(frozen=True)
class Engine:
    """The engine on one device, with the functions of the contract as methods."""

    SUPPORTS: ClassVar[tuple[str, ...]] = SUPPORTS

    device: DeviceName = "auto"

    def update(self, step: Step) -> tuple[dict[str, Array], AdamState]:
        """Return the engine's step."""
        return gpu.update(step, dtype=_dtype(step), device=self.device)

    def utility(self, step: Step, coalition: Array) -> float:
        """Return the engine's U(S)."""
        return gpu.utility(step, coalition, dtype=_dtype(step), device=self.device)

    def marginals(self, step: Step, **options: Any) -> Marginals:
        """Return the engine's marginals."""
        return gpu.marginals(step, dtype=_dtype(step), device=self.device, **options)

    def scores(
        self, step: Step, *, micro_batch: int | None = None, kind: MarginalKind = "shapley", **options: Any
    ) -> Array:
        """Return the engine's scores; "two_term" is not supported for sums of outer products, which it refuses."""
        try:
            return gpu.scores(
                step, dtype=_dtype(step), device=self.device, micro_batch=micro_batch, kind=kind, **options
            )
        except ValueError as error:
            if str(error).startswith(f"slope: got {TWO_TERM!r} for "):
                raise NotImplementedError(str(error)) from error
            raise

    def influence(self, step: Step) -> Array:
        """Return the engine's influence."""
        return gpu.influence(step, dtype=_dtype(step), device=self.device)

    def captures(
        self, params: Params, batch: Batch, *, model: Model, directions: Mapping[str, Array]
    ) -> dict[str, dict[str, Array]]:
        """Return the sum, dot products and squares of each parameter's captures."""
        return captured(params, batch, model, directions, self.device)


_engine = Engine()
update, utility, marginals = _engine.update, _engine.utility, _engine.marginals
scores, influence, captures = _engine.scores, _engine.influence, _engine.captures
