"""Truths by retraining many networks at once, in plain NumPy: an independent route, shared with neither implementation.

All networks of a call start alike and take the same number of steps, each on batches of its own; a sample's weight of 0
leaves it out. `reliability` is the share of the variance of the mean over retrainings that the next retrainings would
repeat; a score that knew the truth would have a correlation of its root with what was measured, the noise ceiling.
"""

from collections.abc import Iterator

import numpy as np

from adamshap.reference.contract import Adam, Array, Batch, Network, Params, Schedule, StepNumber, batch_order
from adamshap.verify.claims.stability.runs import Training
from adamshap.verify.claims.statistics import spearman

AT_ONCE = 16  # networks whose parameters and moments stay in the cache


def final_losses(
    network: Network,
    optimiser: Adam | Schedule,
    train: Batch,
    valid: Batch,
    index: Array,
    weight: Array,
    params: Params,
    dtype: str = "float32",
) -> Array:
    """Return each network's mean validation loss (M,) after training; the parameters are those of `trained`."""
    theta = trained(network, optimiser, train, index, weight, params, dtype)
    return np.array([_loss(network, [p[k] for p in theta], valid) for k in range(index.shape[1])])


def trained(
    network: Network,
    optimiser: Adam | Schedule,
    train: Batch,
    index: Array,
    weight: Array,
    params: Params,
    dtype: str = "float32",
) -> list[Array]:
    """Return all networks' parameters after training: of each layer the weights (M, d_in, d_out), biases (M, 1, d_out).

    Parameters
    ----------
    network : Network
        With tanh units.
    optimiser : Adam or Schedule
        Without weight decay.
    train : Batch
    index : int array (steps, M, batch)
        Samples of each step of each of M networks.
    weight : array (steps, M, batch)
        Weights of their losses in the sum, the divisor included.
    params : dict of arrays
        Initial parameters of all networks.
    dtype : str
    """
    x, y = train.x.astype(dtype), _targets(network, train, dtype)
    theta = [_copies(params[f"{layer}.{name}"], index.shape[1], dtype) for layer, name in _names(network)]
    m, v = ([np.zeros_like(p) for p in theta] for _ in range(2))
    for t, (samples, weights) in enumerate(zip(index, weight.astype(dtype), strict=True), start=1):
        adam = optimiser.at(StepNumber(t), "0.weight")
        beta1, beta2 = adam.betas
        gradients = _gradients(network, theta, x[samples], y[samples], weights)
        for p, g, first, second in zip(theta, gradients, m, v, strict=True):
            first += (1 - beta1) * (g - first)
            second += (1 - beta2) * (g * g - second)
            p -= adam.lr / (1 - beta1**t) * first / (np.sqrt(second / (1 - beta2**t)) + adam.eps)
    return theta


def params_of(network: Network, theta: list[Array], k: int) -> Params:
    """Return the parameters of the k-th network of `trained`, as `network` names and lays them out."""
    return {
        f"{layer}.{name}": theta[at][k].T if name == "weight" else theta[at][k, 0]
        for at, (layer, name) in enumerate(_names(network))
    }


def _names(network: Network) -> list[tuple[int, str]]:
    return [(layer, name) for layer in range(network.depth) for name in ("weight", "bias")]


def _copies(p: Array, count: int, dtype: str) -> Array:
    """Return `count` copies of a parameter, a weight as (count, d_in, d_out) and a bias as (count, 1, d_out)."""
    one = p.T if p.ndim == 2 else p[None]
    return np.repeat(one[None].astype(dtype), count, axis=0)


def _targets(network: Network, batch: Batch, dtype: str) -> Array:
    """Return targets, or labels as rows of the unit matrix."""
    return (batch.y if network.loss == "mse" else np.eye(network.sizes[-1])[batch.y]).astype(dtype)


def _forward(network: Network, theta: list[Array], x: Array) -> list[Array]:
    """Return each layer's input, and the outputs."""
    inputs = [x]
    for layer in range(network.depth):
        z = inputs[-1] @ theta[2 * layer] + theta[2 * layer + 1]
        inputs.append(np.tanh(z) if layer < network.depth - 1 else z)
    return inputs


def _gradients(network: Network, theta: list[Array], x: Array, y: Array, weights: Array) -> list[Array]:
    *inputs, z = _forward(network, theta, x)
    if network.loss == "mse":
        d = 2 * (z - y) / y.shape[-1]
    else:
        p = np.exp(z - z.max(axis=-1, keepdims=True))
        d = p / p.sum(axis=-1, keepdims=True) - y
    d = d * weights[..., None]
    found: list[Array] = []
    for layer in reversed(range(network.depth)):
        a = inputs[layer]
        found = [a.swapaxes(1, 2) @ d, d.sum(axis=1, keepdims=True), *found]
        if layer:
            d = (d @ theta[2 * layer].swapaxes(1, 2)) * (1 - a * a)
    return found


def _loss(network: Network, theta: list[Array], valid: Batch) -> float:
    z = _forward(network, theta, valid.x.astype(theta[0].dtype))[-1]
    if network.loss == "mse":
        return float(np.mean((z - valid.y) ** 2))
    z = z - z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), valid.y]))


# --- random halves ---------------------------------------------------------------------------------------------------


def half_masks(count: int, halves: int, generator: np.random.Generator) -> Array:
    """Return masks (halves, count) of random halves."""
    masks = np.zeros((halves, count), bool)
    for mask in masks:
        mask[generator.permutation(count)[: count // 2]] = True
    return masks


def losses_of_halves(
    network: Network,
    train: Batch,
    valid: Batch,
    masks: Array,
    training: Training,
    *,
    retrainings: int,
    first_seed: int,
) -> Array:
    """Return the validation losses (retrainings, halves) of networks trained on the samples of each mask alone.

    A retraining has its own initialisation; every network has batches of its own.
    """
    found = np.empty((retrainings, len(masks)))
    optimiser = training.optimiser(int(masks[0].sum()))
    for number in range(retrainings):
        params = network.init(first_seed + number)
        generator = np.random.default_rng([first_seed + number, 1])
        for at in range(0, len(masks), AT_ONCE):
            part = masks[at : at + AT_ONCE]
            batches = list(_batches(part, training, generator))
            index, weight = (np.array(arrays) for arrays in zip(*batches, strict=True))
            found[number, at : at + AT_ONCE] = final_losses(network, optimiser, train, valid, index, weight, params)
    return found


def _batches(masks: Array, training: Training, generator: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Yield samples and weights (M, batch) of each step; every mask has the same number of samples."""
    members, batch_size = np.array([np.flatnonzero(mask) for mask in masks]), training.batch_size
    for _ in range(training.epochs):
        order = generator.permuted(members, axis=1)
        for start in range(0, order.shape[1], batch_size):
            samples = order[:, start : start + batch_size]
            missing = ((0, 0), (0, batch_size - samples.shape[1]))
            weight = np.full(samples.shape, 1 / samples.shape[1])
            yield np.pad(samples, missing), np.pad(weight, missing)


def datamodeling_score(totals: Array, masks: Array, losses: Array) -> float:
    """Return the linear datamodeling score: Spearman of the sums over each half with minus its mean loss."""
    return spearman(masks @ totals, -losses.mean(axis=0))


# --- leaving one sample out ------------------------------------------------------------------------------------------


def leave_one_out(
    network: Network,
    train: Batch,
    valid: Batch,
    samples: Array,
    training: Training,
    *,
    seed: int,
    dtype: str = "float32",
) -> Array:
    """Return the increase of the final validation loss without each of `samples`, as `reference.retrained` does."""
    order = batch_order(train.n, batch_size=training.batch_size, epochs=training.epochs, seed=seed)
    batches = [batch for _, batch in order]
    missing = [(0, training.batch_size - len(batch)) for batch in batches]
    index = np.array([np.pad(batch, gap) for batch, gap in zip(batches, missing, strict=True)])
    weight = np.array([np.pad(np.ones(len(b)) / len(b), gap) for b, gap in zip(batches, missing, strict=True)])
    left_out, losses = np.append(samples, -1), []  # the last network leaves out nobody
    for at in range(0, len(left_out), AT_ONCE):
        part = left_out[at : at + AT_ONCE]
        everyone = np.repeat(index[:, None], len(part), axis=1)
        weights = np.where(everyone == part[None, :, None], 0.0, weight[:, None])
        start, optimiser = network.init(seed), training.optimiser(train.n)
        losses.append(final_losses(network, optimiser, train, valid, everyone, weights, start, dtype))
    found = np.concatenate(losses)
    effects: Array = found[:-1] - found[-1]
    return effects


# --- noise -----------------------------------------------------------------------------------------------------------


def ceiling(repeated: Array) -> float:
    """Return the noise ceiling of correlations with the mean over repetitions (R, M): the root of its reliability.

    The mean correlation r of two repetitions gives the reliability R r / (1 + (R − 1) r) of their mean (Spearman and
    Brown).
    """
    count = len(repeated)
    between = np.corrcoef(repeated)
    r = float((between.sum() - count) / (count * (count - 1))) if count > 1 else float("nan")
    reliability = count * r / (1 + (count - 1) * r)
    return float(np.sqrt(max(reliability, 0.0)))
