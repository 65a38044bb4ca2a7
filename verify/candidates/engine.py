"""The engine of `adamshap.gpu` as a candidate: each call in the dtype of the step's parameters.

adamshap verify engine --dtype float32
"""

from typing import Any

from adamshap import gpu
from adamshap.reference.problem import AdamState, Array, MarginalKind, Marginals, Step


def _dtype(step: Step) -> Any:
    return step.params["0.weight"].dtype.name


def update(step: Step) -> tuple[dict[str, Array], AdamState]:
    """Return the engine's step."""
    return gpu.update(step, dtype=_dtype(step))


def utility(step: Step, coalition: Array) -> float:
    """Return the engine's U(S)."""
    return gpu.utility(step, coalition, dtype=_dtype(step))


def marginals(step: Step, **options: Any) -> Marginals:
    """Return the engine's marginals."""
    return gpu.marginals(step, dtype=_dtype(step), **options)


def scores(step: Step, *, micro_batch: int | None = None, kind: MarginalKind = "shapley", **options: Any) -> Array:
    """Return the engine's scores."""
    return gpu.scores(step, dtype=_dtype(step), micro_batch=micro_batch, kind=kind, **options)


def influence(step: Step) -> Array:
    """Return the engine's influence."""
    return gpu.influence(step, dtype=_dtype(step))
