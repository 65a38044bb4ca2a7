"""One step of the contract, `Step`, brought into a backend."""

from dataclasses import dataclass

from adamshap.gpu.backend import pick_backend
from adamshap.gpu.counting import following, next_step
from adamshap.gpu.layers import EngineContext, Trace, gradients, new_trace, run_rows
from adamshap.gpu.step import Arrays, State, StepBatch, like
from adamshap.reference.contract import Adam, CompletedSteps, Step, adam_in, of_kind

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """A step in a backend; ``weight`` is a sample's weight in the batch's gradient, 1/n or 1."""

    context: EngineContext
    adam: Adam
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
        train, valid = (
            (backend.held(f"Step.{field}.x", batch.x), backend.targets(f"Step.{field}.y", batch.y))
            for field, batch in (("train", step.train), ("valid", step.valid))
        )
        return cls(
            EngineContext.on(step.net, backend),
            adam_in(adam_in(step.adam, step.dtype), backend.dtype),
            State(theta, m, v, next_step(CompletedSteps(step.state.step))),
            StepBatch(*train, *valid),
            1 / step.n if step.reduction == "mean" else 1.0,
        )

    def fresh(self) -> State:
        """Return room for the state after the step."""
        theta, m, v = (like(self.context, f"new {name}") for name in ("theta", "m", "v"))
        return State(theta, m, v, following(self.state.t))

    def trace(self) -> Trace:
        """Return the batch's trace at θ."""
        trace = new_trace(self.context, "train", self.batch.n, self.batch.x)
        run_rows(self.context, trace, self.state.theta, self.batch.y, self.weight)
        return trace

    def gradient(self) -> Arrays:
        """Return the batch's gradient."""
        g = like(self.context, "gradient")
        gradients(self.context, self.trace(), g)
        return g
