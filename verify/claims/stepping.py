"""Training runs on the oracle that keep every step, and all estimators of a step from one set of gradients.

SGD is the limit of Adam for a large ε: with β2 = 0, ε = `HUGE` and learning rate η ε, A(g) = η ε m̂ / (|g| + ε) differs
from η m̂ by a part in `HUGE` / |g|. With β1 > 0, m̂ is the bias-corrected mean of past gradients, so the learning rate
needs no change for momentum. So the same code trains, scores and computes exact values for all four optimisers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adamshap.reference import models, scoring, validation
from adamshap.reference.adam import apply_gradient
from adamshap.reference.contract import Adam, AdamState, Array, Batch, Network, Params, Step, batch_order
from adamshap.reference.slopes import step_slopes

HUGE = 1e6

Estimator = tuple[str, str]
"""A slope, and the point of the validation gradient."""

SGD: Estimator = ("sgd", "start")
FROZEN: Estimator = ("frozen", "midpoint")
LINEARIZED: Estimator = ("linearized", "start")
TANGENT: Estimator = ("tangent", "midpoint")
SECANT: Estimator = ("secant", "midpoint")
RANDOM_ORDER: Estimator = ("random_order", "midpoint")
ESTIMATORS: tuple[Estimator, ...] = (
    SGD,
    ("sgd", "midpoint"),
    FROZEN,
    LINEARIZED,
    ("linearized", "midpoint"),
    TANGENT,
    SECANT,
    RANDOM_ORDER,
)
NODES = (4, 4)


def label(estimator: Estimator) -> str:
    """Return the estimator's name in tables and JSON."""
    return " + ".join(estimator)


def sgd(lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> Adam:
    """Return SGD, with momentum as an exponential mean, as Adam's limit for a large ε."""
    return Adam(lr=lr * HUGE, betas=(momentum, 0.0), eps=HUGE, weight_decay=weight_decay / HUGE)


def estimates(step: Step, estimators: Sequence[Estimator], nodes: tuple[int, int] = NODES) -> dict[str, Array]:
    """Return each estimator's scores (n,) of the step, equal to `reference.scores`."""
    step = step.as_float64()
    x = models.sample_gradients(step)
    return estimates_from(step, x, {name: x_i.sum(axis=0) for name, x_i in x.items()}, estimators, nodes)


def estimates_from(
    step: Step, x: Params, g: Params, estimators: Sequence[Estimator], nodes: tuple[int, int] = NODES
) -> dict[str, Array]:
    """Return `estimates` from the samples' gradients `x` and their sum `g`; compute each slope and gradient once."""
    slopes = {slope: step_slopes(step, slope, x, g, nodes) for slope in {slope for slope, _ in estimators}}  # type: ignore[arg-type]
    gammas = {
        gradient: validation.validation_gradients(step, gradient, g, nodes, each=False)  # type: ignore[arg-type]
        for gradient in {gradient for _, gradient in estimators}
    }
    P = {
        name: np.concatenate([gammas[gradient][name] * slopes[slope][name] for slope, gradient in estimators])
        for name in x
    }
    columns = scoring.dot_products(x, P).T
    return {label(estimator): column for estimator, column in zip(estimators, columns, strict=True)}


@dataclass(frozen=True, eq=False)
class Trace:
    """A run with the scores of every step.

    Parameters
    ----------
    index : tuple of int arrays (n,)
        Indices of the samples in each step.
    scores : dict of tuples of arrays (n,)
        Scores of each step, by estimator.
    valid_loss : array (steps + 1,)
    params : dict of arrays
        Parameters after the last step.
    count : int
        Number N of training samples.
    """

    index: tuple[Array, ...]
    scores: Mapping[str, tuple[Array, ...]]
    valid_loss: Array
    params: Params
    count: int

    def total(self, estimator: str, *, first: int = 0, last: int | None = None) -> Array:
        """Return each sample's scores (N,) summed over the steps from `first` up to, but not including, `last`."""
        return summed(self.index[first:last], self.scores[estimator][first:last], self.count)


def summed(index: Sequence[Array], scores: Sequence[Array], count: int) -> Array:
    """Return the sum (count,) of each sample's scores over the steps."""
    total = np.zeros(count)
    for members, score in zip(index, scores, strict=True):
        total[members] += score
    return total


def steps(
    net: Network,
    adam: Adam,
    train: Batch,
    valid: Batch,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
) -> Iterator[tuple[Array, Step, Params, Params]]:
    """Train, and yield before each step the indices of its samples, the step, their gradients x and the sum g."""
    params = net.init(seed)
    state = AdamState.zeros(params)
    for _, index in batch_order(train.n, batch_size=batch_size, epochs=epochs, seed=seed):
        step = Step(net, params, adam, state, train.take(index), valid)
        x = models.sample_gradients(step)
        g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
        yield index, step, x, g
        params, state = apply_gradient(step, g)


def trace(
    net: Network,
    adam: Adam,
    train: Batch,
    valid: Batch,
    estimators: Sequence[Estimator],
    *,
    batch_size: int,
    epochs: int,
    seed: int,
) -> Trace:
    """Train from ``net.init(seed)`` on the batches of `batch_order`, and keep every step's scores."""
    index, losses = [], []
    scores: dict[str, list[Array]] = {label(estimator): [] for estimator in estimators}
    for members, step, x, g in steps(net, adam, train, valid, batch_size=batch_size, epochs=epochs, seed=seed):
        index.append(members)
        losses.append(float(models.mean_loss(net, step.params, valid)))
        for name, values in estimates_from(step, x, g, estimators).items():
            scores[name].append(values)
    params, _ = apply_gradient(step, g)
    losses.append(float(models.mean_loss(net, params, valid)))
    kept = {name: tuple(values) for name, values in scores.items()}
    return Trace(tuple(index), kept, np.array(losses), params, train.n)


def final_params(net: Network, adam: Adam, train: Batch, *, batch_size: int, epochs: int, seed: int) -> Params:
    """Train as `trace` does, but without scores, and return the final parameters."""
    params = net.init(seed)
    state = AdamState.zeros(params)
    for _, index in batch_order(train.n, batch_size=batch_size, epochs=epochs, seed=seed):
        batch = train.take(index)
        # A step needs validation samples, which are not used here: pass the batch itself.
        step = Step(net, params, adam, state, batch, batch)
        params, state = apply_gradient(step, models.loss_gradient(net, params, batch))
    return params


def accuracy(net: Network, params: Params, batch: Batch) -> float:
    """Return the share of samples whose largest output is their label's."""
    return float(np.mean(np.argmax(models.outputs(net, params, batch.x), axis=1) == batch.y))
