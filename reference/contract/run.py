"""A training run with its attribution: its settings, the order of its samples, its results, and divergence."""

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

__all__ = ["CREDITS", "Credit", "Diverged", "Run", "RunConfig", "batch_order", "step_index"]

Credit = Literal["step", "carry"]
CREDITS: tuple[str, ...] = get_args(Credit)


@dataclass(frozen=True, eq=False)
class RunConfig:
    """The settings and data of a training run, enough to train again; refuses parts that do not fit together.

    Parameters
    ----------
    network : Network
        The model, of this or any other class with the methods of `Model`.
    adam : Adam
        One set of settings, or an `Optimiser` with a set for each parameter and step.
    train, valid : Batch
        N training samples and n_val validation samples.
    epochs, batch_size, seed : int
        As for `batch_order`; the parameters start at ``network.init(seed)``, the moments at 0.
    reduction : {"mean", "sum"}
        As for `Step`.
    steps : int, optional
        Number of steps after which the run ends, if `epochs` do not end earlier.
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
        optimiser_of("adam", self.adam, StepNumber(self.length), self.network.shapes)  # a schedule has to last

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
        """Yield the epoch and the samples of each step.

        Returns
        -------
        iterator of (int, int array)
            The epoch, and the indices of the batch's samples.
        """
        order = batch_order(self.train.n, batch_size=self.batch_size, epochs=self.epochs, seed=self.seed)
        return islice(order, self.steps)

    def step_index(self) -> Array:
        """Return the samples of each step, as one array.

        Returns
        -------
        int array (steps, batch)
            Rows of `train`, in the order of the batch; −1 where a short batch has no sample. ``batch`` is the smaller
            of `batch_size` and N.
        """
        return step_index(
            self.train.n, batch_size=self.batch_size, epochs=self.epochs, seed=self.seed, steps=self.length
        )


@dataclass(frozen=True, eq=False)
class Run:
    """A training run with its attribution.

    With ``credit="carry"``, ``scores.sum(axis=0) + decay.sum(axis=0)`` is the validation loss before the run minus the
    loss after it, up to rounding (docs/method.md 6).

    Parameters
    ----------
    initial_params, params : dict of arrays
        θ before the first step and after the last.
    state : AdamState
        After the last step.
    scores : array (N,), or (N, n_val) with ``per_validation``
        Each training sample's score, summed over the steps whose batch had it; positive means helpful.
    sgd_scores : array of the same shape
        The same run scored by SGD's formula, ``slope="sgd", gradient="start"``; NaN without `with_sgd`.
    seen : int array (N,)
        Number of steps whose batch had the sample.
    history : dict of arrays (steps,)
        ``epoch``; ``train_loss``, the batch's mean loss, and ``valid_loss``, both before the step.
    config : RunConfig, optional
        The settings and data, from which `retrained` and `metagradient` train again.
    credit : {"step", "carry"}
        Credit for the momentum steps: given to no sample, or to the earlier samples that built up the momentum.
    decay : array (steps,), or (steps, n_val) with ``per_validation``; "carry" only
        The decrease of the loss by weight decay in each step, which no sample is credited with; of L2 decay, also its
        part of later steps' momentum.
    closed : array of the same shape; "carry" only
        The part of each step's change of the loss that slope and validation gradient do not explain; the scores of its
        batch include it in equal parts.
    truncated : array (N,); the engine's "carry" only
        Bound on each score's error from steps taken after its batches had left the window.
    step_scores, step_sgd_scores : arrays (steps, batch), or (steps, batch, n_val); ``keep_step_scores`` only
        The scores that each step adds to `scores` and `sgd_scores`; NaN where a short batch has no sample.
    step_index : int array (steps, batch); ``keep_step_scores`` only
        The sample of each of these scores; −1 where there is none.
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
    step_scores: Array | None = None
    step_sgd_scores: Array | None = None
    step_index: Array | None = None

    def __repr__(self) -> str:
        """Return one line: the number of samples and steps, and the ends of the list of scores."""
        scores = self.scores if self.scores.ndim == 1 else self.scores.mean(axis=1)
        steps = len(next(iter(self.history.values()), ()))
        ends = " to ".join(f"{scores[i]:.3g} (sample {i})" for i in (scores.argmin(), scores.argmax()))
        return f"Run({len(scores)} samples, {steps} steps, scores from {ends})"

    def to_frame(self) -> Any:
        """Return the scores as a table.

        Returns
        -------
        pandas.DataFrame
            One row per training sample. Its columns are ``score``, ``sgd_score`` and ``seen``; with ``per_validation``
            ``score[0]`` and so on, one for each validation sample.

        Raises
        ------
        ImportError
            Without pandas, which the extra ``tables`` installs.
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
            Without matplotlib, which the extra ``demo`` installs.
        """
        return figure(self.scores, self.sgd_scores, self.history)


def batch_order(count: int, *, batch_size: int, epochs: int, seed: int) -> Iterator[tuple[int, Array]]:
    """Yield (epoch, sample indices) for each step of a run: a new permutation each epoch; its last batch may be short.

    The order of the samples is part of the contract: two implementations of a run are only comparable on the same one.
    """
    count = positive_integer("count", count)
    batch_size = positive_integer("batch_size", batch_size)
    generator = np.random.default_rng(seed_of(seed))
    for epoch in range(positive_integer("epochs", epochs)):
        order = generator.permutation(count)
        for start in range(0, count, batch_size):
            yield epoch, order[start : start + batch_size]


def step_index(count: int, *, batch_size: int, epochs: int, seed: int, steps: int) -> Array:
    """Return the samples of the first `steps` steps of a run, as `RunConfig.step_index` does."""
    index = np.full((steps, min(batch_size, count)), -1)
    order = batch_order(count, batch_size=batch_size, epochs=epochs, seed=seed)
    for row, (_, samples) in zip(index, islice(order, steps), strict=True):
        row[: len(samples)] = samples
    return index


class Diverged(FloatingPointError):
    """A run that stopped at a non-finite number.

    Parameters
    ----------
    step, steps : int
        The step at which it was detected, counted from 1, and the planned number of steps; ``steps + 1`` if it was
        detected after the last.
    tensor : str
        Name of the non-finite array.
    value : float
        NaN or infinity.
    run : Run
        The run without that step: scores, ``seen`` and ``history`` of the steps before it, all finite. Only ``params``
        and ``state`` are those after the step (on a device, after the steps computed meanwhile) and may be non-finite.
        With ``credit="carry"``, the engine's scores are those paid by then, without ``closed``.
    advice : str
        A change that may help.
    """

    def __init__(self, step: int, steps: int, tensor: str, value: float, run: Run, advice: str) -> None:
        where = f"at step {step} of {steps}" if step <= steps else f"after the last of {steps} steps"
        super().__init__(f"{tensor}: got {value} {where}; needs finite numbers: {advice} may help")
        self.step, self.steps, self.tensor, self.value, self.run = step, steps, tensor, value, run
