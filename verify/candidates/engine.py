"""The engine of `adamshap.gpu` as a candidate: each call in the dtype of the step's parameters.

adamshap verify engine --dtype float32
"""

from dataclasses import dataclass
from typing import Any

from adamshap import gpu
from adamshap.gpu.backend import DeviceName
from adamshap.reference.contract import AdamState, Array, MarginalKind, Marginals, Step

__all__ = ["Engine", "influence", "marginals", "scores", "update", "utility"]


def _dtype(step: Step) -> Any:
    return step.dtype.name


@dataclass(frozen=True)
class Engine:
    """The engine on one device, with the functions of the contract as methods."""

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
        """Return the engine's scores."""
        return gpu.scores(step, dtype=_dtype(step), device=self.device, micro_batch=micro_batch, kind=kind, **options)

    def influence(self, step: Step) -> Array:
        """Return the engine's influence."""
        return gpu.influence(step, dtype=_dtype(step), device=self.device)


_engine = Engine()
update, utility, marginals = _engine.update, _engine.utility, _engine.marginals
scores, influence = _engine.scores, _engine.influence
