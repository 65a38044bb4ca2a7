"""A training run with its attribution: its settings, the order of its samples, its results, and how it may break."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

import numpy as np

from adamshap.reference.contract.arrays import Array, Params
from adamshap.reference.contract.batch import Batch
from adamshap.reference.contract.checks import MOST_STEPS, of_kind, one_of, positive_integer, seed_of, shown
from adamshap.reference.contract.model import Model, model_of
from adamshap.reference.contract.optimiser import AdamState, Optimiser, StepNumber, optimiser_of
from adamshap.reference.contract.refusal import refuse
from adamshap.reference.contract.step import REDUCTIONS, Reduction
from adamshap.reference.contract.views import figure, frame

__all__ = ["CREDITS", "Credit", "Diverged", "Run", "RunConfig", "batch_order"]

Credit = Literal["step", "carry"]
CREDITS: tuple[str, ...] = get_args(Credit)


@dataclass(frozen=True, eq=False)
class RunConfig:
    """What a training run is made of, enough to train again; refuses what does not fit together.

    Parameters
    ----------
    network : Network
        Or another `Model`.
    adam : Adam
        One set of settings, or an `Optimiser` with a set for each parameter and step.
    train, valid : Batch
        N training samples and n_val validation samples.
    epochs, batch_size, seed : int
        As for `batch_order`; the parameters start at ``network.init(seed)``, the moments at 0.
    reduction : {"mean", "sum"}
        As for `Step`.
    steps : int, optional
        The run ends after so many, if `epochs` do not end before.
    """

    network: Model
    adam: Optimiser
    train: Batch
    valid: Batch
    epochs: int
    batch_size: int
    seed: int
    reduction: Reduction = "mean"
    steps: int | None = None

    def __post_init__(self) -> None:
        model_of("network", self.network)
        optimiser_of("adam", self.adam, StepNumber(1), self.network.shapes)
        for field in ("train", "valid"):
            of_kind(field, getattr(self, field), Batch)
        for field in ("train", "valid"):
            self.network.check_batch(field, getattr(self, field))
        one_of("reduction", self.reduction, REDUCTIONS)
        object.__setattr__(self, "epochs", positive_integer("epochs", self.epochs, maximum=None))  # see below
        object.__setattr__(self, "batch_size", positive_integer("batch_size", self.batch_size))
        object.__setattr__(self, "seed", seed_of(self.seed))
        if self.steps is not None:
            object.__setattr__(self, "steps", positive_integer("steps", self.steps))
        if self.length > MOST_STEPS:
            most = MOST_STEPS // self.per_epoch
            refuse("epochs", shown(self.epochs), f"at most {most}, so that the steps can be counted")

    @property
    def per_epoch(self) -> int:
        """Number of steps of a whole epoch."""
        return -(-self.train.n // self.batch_size)

    @property
    def length(self) -> int:
        """Number of steps of the run."""
        of_epochs = self.epochs * self.per_epoch
        return of_epochs if self.steps is None else min(self.steps, of_epochs)

    def order(self) -> Iterator[tuple[int, Array]]:
        """Yield what each step is made of.

        Returns
        -------
        iterator of (int, int array)
            The epoch, and the samples of the batch.
        """
        order = batch_order(self.train.n, batch_size=self.batch_size, epochs=self.epochs, seed=self.seed)
        return islice(order, self.steps)


@dataclass(frozen=True, eq=False)
class Run:
    """A training run with its attribution.

    With ``credit="carry"``, ``scores.sum(axis=0) + decay.sum(axis=0)`` is the validation loss before the run less that
    after it, up to rounding (docs/method.md 6).

    Parameters
    ----------
    initial_params, params : dict of arrays
        θ before the first step and after the last.
    state : AdamState
        After the last step.
    scores : array (N,), or (N, n_val) with ``per_validation``
        Each training sample's score, summed over the steps that it took part in; positive means helpful.
    sgd_scores : array of the same shape
        The same run scored by SGD's formula, ``slope="sgd", gradient="start"``.
    seen : int array (N,)
        In how many steps each sample took part.
    history : dict of arrays (steps,)
        ``epoch``; ``train_loss``, the batch's mean loss, and ``valid_loss``, both before the step.
    config : RunConfig, optional
        What the run is made of; `retrained` and `metagradient` train again from it.
    credit : {"step", "carry"}
        Who was credited with the momentum steps: nobody, or the earlier samples that the momentum is made of.
    decay : array (steps,), or (steps, n_val) with ``per_validation``; "carry" only
        How much weight decay lowered the loss in each step; no sample's doing.
    closed : array of the same shape; "carry" only
        The part of each step's change of the loss that slope and validation gradient leave open, and that the scores
        of its batch hold in equal parts.
    truncated : array (N,); the engine's "carry" only
        Bound on what each score lacks because later steps came after its batches had left the window.
    """

    initial_params: Params
    params: Params
    state: AdamState
    scores: Array
    sgd_scores: Array
    seen: Array
    history: dict[str, Array]
    config: RunConfig | None = None
    credit: Credit = "step"
    decay: Array | None = None
    closed: Array | None = None
    truncated: Array | None = None

    def to_frame(self) -> Any:
        """Return the scores as a table.

        Returns
        -------
        pandas.DataFrame
            One row a training sample. Its columns are ``score``, ``sgd_score`` and ``seen``; with ``per_validation``
            ``score[0]`` and so on, one for each validation sample.

        Raises
        ------
        ImportError
            Without pandas, which the extra ``tables`` brings.
        """
        return frame(self.scores, self.sgd_scores, self.seen)

    def plot(self) -> Any:
        """Return the run as a figure; ``run.plot().savefig("run.png")`` writes it.

        Returns
        -------
        matplotlib.figure.Figure
            A histogram of the scores, the scores beside SGD's, and the losses.

        Raises
        ------
        ImportError
            Without matplotlib, which the extra ``demo`` brings.
        """
        return figure(self.scores, self.sgd_scores, self.history)


def batch_order(count: int, *, batch_size: int, epochs: int, seed: int) -> Iterator[tuple[int, Array]]:
    """Yield (epoch, sample indices) for each step of a run: every epoch a new permutation, its last batch the rest.

    The order of the samples is part of the contract: two implementations of a run can only be compared on the same one.
    """
    count = positive_integer("count", count)
    batch_size = positive_integer("batch_size", batch_size)
    generator = np.random.default_rng(seed_of(seed))
    for epoch in range(positive_integer("epochs", epochs)):
        order = generator.permutation(count)
        for start in range(0, count, batch_size):
            yield epoch, order[start : start + batch_size]


class Diverged(FloatingPointError):
    """A run that stopped where a number was no longer finite.

    Parameters
    ----------
    step, steps : int
        The step at which that was found, counted from 1, and how many there should have been; ``steps + 1`` where it
        was found after the last.
    tensor : str
        The name of what was not finite.
    value : float
        NaN or infinity.
    run : Run
        The run without that step: scores, ``seen`` and ``history`` of the steps before it, all finite. Only ``params``
        and ``state`` are as the step left them (on a device, as the steps computed meanwhile left them) and may be not
        finite. With ``credit="carry"``, the engine's scores are those paid by then, without ``closed``.
    advice : str
        What may help.
    """

    def __init__(self, step: int, steps: int, tensor: str, value: float, run: Run, advice: str) -> None:
        where = f"at step {step} of {steps}" if step <= steps else f"after the last of {steps} steps"
        super().__init__(f"{tensor}: got {value} {where}; needs finite numbers: {advice} may help")
        self.step, self.steps, self.tensor, self.value, self.run = step, steps, tensor, value, run
