"""Runs of the engine that keep every step's scores; initialisation and order of the samples have seeds of their own."""

from dataclasses import dataclass

import numpy as np

from adamshap import gpu
from adamshap.reference.contract import Adam, Array, Batch, Network, Params, Schedule, ScoreSlope, StepNumber


@dataclass(frozen=True)
class Training:
    """How a network is trained, and the slope of its scores.

    With `scheduled`, η rises from 0 over the first epoch and then falls to 0 along a line.
    """

    epochs: int
    batch_size: int
    lr: float = 1e-3
    scheduled: bool = False
    slope: ScoreSlope = "random_order"

    def optimiser(self, count: int) -> Adam | Schedule:
        """Return the optimiser for `count` samples."""
        if not self.scheduled:
            return Adam(lr=self.lr)
        per_epoch = -(-count // self.batch_size)
        return Schedule(Adam(lr=self.lr), "linear", warmup=per_epoch, steps=self.epochs * per_epoch)


SCORES = ("Adam", "SGD")
"""The run's own slope, and SGD's formula."""


@dataclass(frozen=True)
class Started(Network):
    """A network whose initial parameters have a seed of their own, whatever the seed of the run."""

    start: int = 0

    def init(self, seed: int = 0) -> Params:
        """Return the parameters of the seed `start`."""
        return super().init(self.start)


@dataclass(frozen=True, eq=False)
class Kept:
    """A run with the scores of every step.

    Parameters
    ----------
    index : int array (steps, batch)
        The samples of each step; −1 where a short batch has none.
    steps : dict of arrays (steps, batch)
        Scores of each step, by `SCORES`; NaN where `index` is −1.
    epoch : int array (steps,)
    valid_loss : array (steps,)
        Before each step.
    rates : array (steps,)
        Learning rate of each step.
    params : dict of arrays
        After the last step.
    count : int
        Number N of training samples.
    """

    index: Array
    steps: dict[str, Array]
    epoch: Array
    valid_loss: Array
    rates: Array
    params: Params
    count: int

    def total(self, score: str, weights: Array) -> Array:
        """Return each sample's scores (N,), added up over the steps with the weights (steps,)."""
        there = self.index >= 0
        weighted = self.steps[score] * weights[:, None]
        return np.bincount(self.index[there], weighted[there], self.count)

    def first_batch(self) -> Array:
        """Return the samples of the first step."""
        first: Array = self.index[0]
        return first[first >= 0]


def train(network: Network, train: Batch, valid: Batch, training: Training, *, start: int, order: int) -> Kept:
    """Train from the initialisation `start` on the batches of the seed `order`, and keep every step's scores."""
    optimiser = training.optimiser(train.n)
    run = gpu.attribute(
        started(network, start),
        optimiser,
        train,
        valid,
        epochs=training.epochs,
        batch_size=training.batch_size,
        seed=order,
        slope=training.slope,
        keep_step_scores=True,
        device="cpu",
    )
    steps = dict(zip(SCORES, (np.asarray(run.step_scores), np.asarray(run.step_sgd_scores)), strict=True))
    epoch, valid_loss = run.history["epoch"], run.history["valid_loss"]
    rates = np.array([optimiser.at(StepNumber(t), "0.weight").lr for t in range(1, len(epoch) + 1)])
    return Kept(np.asarray(run.step_index), steps, epoch, valid_loss, rates, run.params, train.n)


def started(network: Network, start: int) -> Started:
    """Return `network` with its initial parameters drawn by the seed `start`."""
    return Started(network.sizes, network.activation, network.loss, network.bias, start)
