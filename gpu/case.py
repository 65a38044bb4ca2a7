"""A `Step` of the contract in a backend."""

from dataclasses import dataclass

from adamshap.gpu.arrays import BatchGradient, like
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.captures import Captures, write_sums
from adamshap.gpu.context import EngineContext
from adamshap.gpu.counting import following
from adamshap.gpu.hyperparameters import Hyperparameters
from adamshap.gpu.layers import context_for
from adamshap.gpu.state import State, StepBatch
from adamshap.reference.contract import Optimiser, Step, of_kind, optimiser_in, real_parts

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """A step in a backend; ``weight`` is a sample's weight in the batch's gradient, 1/n or 1."""

    context: EngineContext
    adam: Optimiser
    state: State
    batch: StepBatch
    weight: float

    @classmethod
    def of(cls, step: Step, device: str, dtype: str) -> "Case":
        """Return the case of `step`, on the backend that `device` and `dtype` name; refuse values beyond the dtype."""
        of_kind("step", step, Step)
        backend = pick_backend(device, dtype)
        groups = {"Step.params": step.params, "Step.state.m": step.state.m, "Step.state.v": step.state.v}
        theta, m, v = (backend.reals(group, field) for field, group in groups.items())
        tokens, labels = (part not in real_parts(step.net, step.train) for part in ("x", "y"))
        train, valid = (
            (
                backend.inputs(f"Step.{field}.x", batch.x, tokens),
                backend.targets(f"Step.{field}.y", batch.y, labels),
            )
            for field, batch in (("train", step.train), ("valid", step.valid))
        )
        return cls(
            context_for(step.net, backend),
            optimiser_in(step.adam, step.dtype),
            State(theta, m, v, step.state.next_step),
            StepBatch(*train, *valid),
            1 / step.n if step.reduction == "mean" else 1.0,
        )

    def fresh(self) -> State:
        """Return buffers for the state after the step."""
        theta, m, v = (like(self.context, f"new {name}") for name in ("theta", "m", "v"))
        return State(theta, m, v, following(self.state.t))

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Adam's settings at the step."""
        return Hyperparameters.at(self.context, self.adam, self.state.t)

    def captures(self) -> Captures:
        """Return the batch's captures at θ."""
        stack, batch = self.context.stack, self.batch
        workspace = stack.workspace(self.context, "train", batch.x)
        return stack.run(self.context, workspace, self.state.theta, batch.y, self.weight)

    def gradient(self) -> BatchGradient:
        """Return the batch's gradient, before clipping."""
        g = BatchGradient(like(self.context, "gradient"))
        write_sums(self.context, self.captures(), g)
        return g
