"""The parts of a run that stay the same from its first step to its last."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adamshap.gpu.arrays import Arrays
from adamshap.gpu.backend import Backend
from adamshap.gpu.context import EngineContext
from adamshap.gpu.counting import FIRST_STEP
from adamshap.gpu.data import Data
from adamshap.gpu.hyperparameters import Hyperparameters
from adamshap.gpu.layers import context_for
from adamshap.gpu.threads import parts_of
from adamshap.reference.contract import (
    Array,
    Checkpointer,
    CompletedSteps,
    Estimator,
    Optimiser,
    Progress,
    RunConfig,
)

__all__ = ["RunSetup"]


@dataclass(frozen=True)
class RunSetup:
    """A run's settings, data and context.

    Parameters
    ----------
    config : RunConfig
    estimator : Estimator
    adam : Optimiser
        Adam's settings, rounded to the backend's dtype.
    context : EngineContext
    data : Data
    initial : dict of arrays
        The parameters before the first step, in the backend.
    with_sgd : bool
        Whether samples are scored by SGD's formula as well.
    on_step, on_checkpoint : callable or None
    resume : mapping or None
    parts : int
        Number of parts that a step's work is divided into, on the host.
    """

    config: RunConfig
    estimator: Estimator
    adam: Optimiser
    context: EngineContext
    data: Data
    initial: Arrays
    with_sgd: bool
    on_step: Callable[[Progress], None] | None
    on_checkpoint: Checkpointer | None
    resume: Mapping[str, Array] | None
    parts: int

    @classmethod
    def of(
        cls,
        config: RunConfig,
        estimator: Estimator,
        adam: Optimiser,
        backend: Backend,
        with_sgd: bool,
        on_step: Callable[[Progress], None] | None,
        on_checkpoint: Checkpointer | None,
        resume: Mapping[str, Array] | None,
    ) -> "RunSetup":
        """Return the setup of a run on `backend`, to whose dtype `adam` is rounded."""
        parts = parts_of(resume)
        context = context_for(config.network, backend, parts)
        Hyperparameters.at(context, adam, FIRST_STEP)  # refuses settings that the engine does not have
        initial = backend.reals(config.network.init(config.seed))
        data = Data.of(context, config.train, config.valid, min(config.batch_size, config.train.n))
        return cls(config, estimator, adam, context, data, initial, with_sgd, on_step, on_checkpoint, resume, parts)

    def report(self, completed: CompletedSteps, train_loss: float, valid_loss: float) -> None:
        """Report the last of the completed steps to `on_step`, with the losses before it."""
        if self.on_step is not None:
            epoch = (completed - 1) // self.config.per_epoch
            self.on_step(Progress(completed, self.config.length, epoch, train_loss, valid_loss))
