"""Special values in a step: exactly 0, exactly equal, opposite and cancelling, tiny, large and denormal.

Each arrangement is a function from a step and a generator of random numbers to a step. Values that have to cancel are
small multiples of a power of 2: their products and sums are exact in any order, in float32 too.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from adamshap.reference.contract import NOT_COUNTED, AdamState, Array, Batch, Params, Step
from adamshap.verify.models.perceptron import network_of
from adamshap.verify.steps import adam_of

__all__ = ["ARRANGEMENTS", "Arrangement"]

Arrangement = Callable[[Step, np.random.Generator], Step]

TINIEST = 5e-324
"""The smallest positive number of float64."""


def _params(change: Callable[[str, Array, np.random.Generator], Array]) -> Arrangement:
    """Return an arrangement of each parameter."""
    return lambda step, generator: replace(
        step, params={name: change(name, p, generator) for name, p in step.params.items()}
    )


def _state(
    m: Callable[[Array, np.random.Generator], Array] | None = None,
    v: Callable[[Array, np.random.Generator], Array] | None = None,
) -> Arrangement:
    """Return an arrangement of the moments."""

    def arrange(step: Step, generator: np.random.Generator) -> Step:
        def changed(change: Any, group: Params) -> Params:
            return group if change is None else {name: change(array, generator) for name, array in group.items()}

        return replace(step, state=AdamState(step.state.step, changed(m, step.state.m), changed(v, step.state.v)))

    return arrange


def _batch(field: str, change: Callable[[Batch, np.random.Generator], Batch]) -> Arrangement:
    """Return an arrangement of one of the batches."""

    def arrange(step: Step, generator: np.random.Generator) -> Step:
        if field == "train":
            return replace(step, train=change(step.train, generator))
        return replace(step, valid=change(step.valid, generator))

    return arrange


def _x(change: Callable[[Array, np.random.Generator], Array]) -> Callable[[Batch, np.random.Generator], Batch]:
    return lambda batch, generator: Batch(change(batch.x, generator), batch.y)


def _zero(array: Array, generator: np.random.Generator) -> Array:
    return np.zeros_like(array)


def _some_zero(array: Array, generator: np.random.Generator) -> Array:
    zero = generator.random(array.shape) < 0.5
    zero.flat[0] = True
    return np.where(zero, 0.0, array)


def _times(factor: float) -> Callable[[Array, np.random.Generator], Array]:
    return lambda array, generator: factor * array


def _one_row(factor: float) -> Callable[[Array, np.random.Generator], Array]:
    def change(array: Array, generator: np.random.Generator) -> Array:
        array = array.copy()
        array[generator.integers(len(array))] *= factor
        return array

    return change


def _same(batch: Batch, generator: np.random.Generator) -> Batch:
    """Return the batch with its first sample in all places."""
    return batch.take(np.zeros(batch.n, int))


def _two_same(batch: Batch, generator: np.random.Generator) -> Batch:
    """Return the batch with its first sample in the last place too, and once more at the end."""
    return batch.take(np.array([*range(batch.n), 0, batch.n - 1, 0]))


def _same_inputs(batch: Batch, generator: np.random.Generator) -> Batch:
    """Return the batch with pairs of equal inputs and different labels."""
    targets, classes = batch.y.ndim > 1, int(batch.y.max()) + 1
    y = batch.y + generator.standard_normal(batch.y.shape) if targets else (batch.y + 1) % classes
    return Batch(np.concatenate([batch.x, batch.x]), np.concatenate([batch.y, y]))


def _opposite(batch: Batch, generator: np.random.Generator) -> Batch:
    return Batch(np.concatenate([batch.x, -batch.x]), np.concatenate([batch.y, batch.y]))


def _same_labels(batch: Batch, generator: np.random.Generator) -> Batch:
    return Batch(batch.x, np.repeat(batch.y[:1], batch.n, axis=0))


def _labels_at_zero(batch: Batch, generator: np.random.Generator) -> Batch:
    return Batch(batch.x, np.zeros_like(batch.y))


def _units_at_zero(step: Step, generator: np.random.Generator) -> Step:
    """Let some hidden units sum to exactly 0 for nonzero inputs, while the layer above passes gradients to them."""
    net, params = network_of(step), {name: p.copy() for name, p in step.params.items()}
    for layer in range(net.depth - 1):
        zero = generator.random(net.sizes[layer + 1]) < 0.5
        zero[0] = True
        for kind in ("weight", "bias"):
            if f"{layer}.{kind}" in params:
                params[f"{layer}.{kind}"][zero] = 0.0
    return replace(step, params=params)


def _no_loss(field: str) -> Arrangement:
    """Let the squared errors of a batch be exactly 0: the last layer returns its bias, which is the target."""

    def arrange(step: Step, generator: np.random.Generator) -> Step:
        net = replace(network_of(step), loss="mse")
        last, params = net.depth - 1, dict(step.params)
        params[f"{last}.weight"] = np.zeros_like(params[f"{last}.weight"])
        bias = params.get(f"{last}.bias", np.zeros(net.sizes[-1]))
        batches = {
            name: Batch(batch.x, generator.standard_normal((batch.n, net.sizes[-1])))
            for name, batch in (("train", step.train), ("valid", step.valid))
        }
        exact = batches[field]
        batches[field] = Batch(exact.x, np.tile(bias, (exact.n, 1)))
        return replace(step, net=net, params=params, train=batches["train"], valid=batches["valid"])

    return arrange


def _dyadic(generator: np.random.Generator, shape: tuple[int, ...], step: float = 0.25) -> Array:
    """Return multiples of `step` up to 2 in size, none of them 0."""
    size = generator.integers(1, round(2 / step) + 1, shape)
    signed: Array = step * size * generator.choice((-1, 1), shape)
    return signed


def _linear(step: Step, generator: np.random.Generator, pairs: int) -> Step:
    """Return a step of one linear layer at 0 with exact numbers: its gradient is −2/d_out y xᵀ, exactly."""
    net = network_of(step)
    net = replace(net, sizes=(net.sizes[0], 2), loss="mse")
    shapes = net.shapes
    params = {name: np.zeros(shape) for name, shape in shapes.items()}
    m = {name: _dyadic(generator, shape) / 64 for name, shape in shapes.items()}
    v = {name: _dyadic(generator, shape) ** 2 / 4096 for name, shape in shapes.items()}
    if step.state.step == 0:
        m, v = ({name: np.zeros(shape) for name, shape in shapes.items()} for _ in range(2))
    train = Batch(_dyadic(generator, (pairs, net.sizes[0])), _dyadic(generator, (pairs, 2)))
    valid = Batch(_dyadic(generator, (step.n_val, net.sizes[0])), _dyadic(generator, (step.n_val, 2)))
    return Step(net, params, step.adam, AdamState(step.state.step, m, v), train, valid, step.reduction)


def _samples_cancel(step: Step, generator: np.random.Generator) -> Step:
    """Let the samples come in pairs of opposite gradients: g is exactly 0, and no sample's gradient is."""
    step = _linear(step, generator, 2)
    train = Batch(np.concatenate([step.train.x, step.train.x]), np.concatenate([step.train.y, -step.train.y]))
    return replace(step, train=train)


def _momentum_cancels(step: Step, generator: np.random.Generator) -> Step:
    """Let β1 m = −(1 − β1) g exactly: Adam's step is 0, and m after it."""
    step = _linear(step, generator, 4)
    step = replace(step, adam=replace(adam_of(step), betas=(0.5, adam_of(step).betas[1])))
    weight = 0.25 if step.reduction == "mean" else 1.0
    error = -step.train.y * weight  # 2/d_out (0 − y) w, for d_out = 2
    g = {"0.weight": error.T @ step.train.x, "0.bias": error.sum(axis=0)}
    m = {name: -g[name] for name in step.params}
    return replace(step, state=AdamState(step.state.step or 1, m, step.state.v))


def _moments_of_the_gradient(step: Step, generator: np.random.Generator) -> Step:
    """Let m = g and v = g², as if every earlier gradient had been equal."""
    step = _linear(step, generator, 4)
    weight = 0.25 if step.reduction == "mean" else 1.0
    error = -step.train.y * weight
    g = {"0.weight": error.T @ step.train.x, "0.bias": error.sum(axis=0)}
    m = {name: g[name] for name in step.params}
    return replace(step, state=AdamState(step.state.step, m, {name: m_**2 for name, m_ in m.items()}))


def _beta_of_1(which: int) -> Arrangement:
    """Return a step whose settings have a β of 1, which `Adam` itself refuses."""

    def arrange(step: Step, generator: np.random.Generator) -> Step:
        adam = replace(adam_of(step))
        betas = tuple(1.0 if place == which else beta for place, beta in enumerate(adam.betas))
        object.__setattr__(adam, "betas", betas)
        return replace(step, adam=adam)

    return arrange


def _one_counted(batch: Batch, generator: np.random.Generator) -> Batch:
    """Return the batch with one counted label in each sequence, in a place of its own."""
    y = np.full_like(batch.y, NOT_COUNTED)
    rows, places = np.arange(batch.n), np.arange(batch.n) % batch.y.shape[1]
    y[rows, places] = batch.y[rows, places]
    return Batch(batch.x, y)


def _one_repeated(x: Array, generator: np.random.Generator) -> Array:
    """Return tokens of which all but the last in each sequence are equal."""
    return np.concatenate([np.repeat(x[:, :1], x.shape[1] - 1, axis=1), x[:, -1:]], axis=1)


def _only_token(last: bool) -> Arrangement:
    """Return sequences of the last token of the vocabulary alone, or of token 0, which may be taken for padding."""

    def arrange(step: Step, generator: np.random.Generator) -> Step:
        token = step.params["0.weight"].shape[0] - 1 if last else 0
        return replace(step, train=Batch(np.full_like(step.train.x, token), step.train.y))

    return arrange


def _valid_in_train(step: Step, generator: np.random.Generator) -> Step:
    return replace(step, valid=step.train.take(np.arange(min(step.n, step.n_val))))


def _some_valid_in_train(step: Step, generator: np.random.Generator) -> Step:
    both = (np.concatenate([getattr(step.valid, name), getattr(step.train, name)[:2]]) for name in ("x", "y"))
    return replace(step, valid=Batch(*both))


ARRANGEMENTS: dict[str, Arrangement] = {
    # exactly 0
    "units at 0": _units_at_zero,
    "inputs at 0": _batch("train", _x(_zero)),
    "inputs at -0": _batch("train", _x(lambda x, generator: -np.zeros_like(x))),
    "validation inputs at 0": _batch("valid", _x(_zero)),
    "one sample at 0": _batch("train", _x(_one_row(0.0))),
    "parameters at 0": _params(lambda name, p, generator: np.zeros_like(p)),
    "some parameters at 0": _params(lambda name, p, generator: _some_zero(p, generator)),
    "m at 0": _state(m=_zero),
    "v at 0": _state(v=_zero),
    "some of v at 0": _state(v=_some_zero),
    "both moments at 0": _state(_zero, _zero),
    "no loss": _no_loss("train"),
    "no validation loss": _no_loss("valid"),
    "labels at 0": _batch("train", _labels_at_zero),
    "validation labels at 0": _batch("valid", _labels_at_zero),
    # exactly equal
    "equal samples": _batch("train", _same),
    "two equal samples": _batch("train", _two_same),
    "equal validation samples": _batch("valid", _same),
    "two equal validation samples": _batch("valid", _two_same),
    "equal inputs with other labels": _batch("train", _same_inputs),
    "equal validation inputs with other labels": _batch("valid", _same_inputs),
    "validation samples are training samples": _valid_in_train,
    "some validation samples are training samples": _some_valid_in_train,
    "equal labels": _batch("train", _same_labels),
    "equal parameters": _params(lambda name, p, generator: np.full_like(p, 0.25)),
    "parameters at 1": _params(lambda name, p, generator: np.ones_like(p)),
    "equal moments": _state(
        lambda m, generator: np.full_like(m, 1 / 64), lambda v, generator: np.full_like(v, 1 / 4096)
    ),
    "moments of the gradient": _moments_of_the_gradient,
    "equal features": _batch("train", _x(lambda x, generator: np.repeat(x[:, :1], x.shape[1], axis=1))),
    # opposite and cancelling
    "samples cancel": _samples_cancel,
    "momentum cancels the gradient": _momentum_cancels,
    "opposite inputs": _batch("train", _opposite),
    "opposite validation samples": _batch("valid", _opposite),
    "alternating moments": _state(
        m=lambda m, generator: np.where(np.arange(m.size).reshape(m.shape) % 2 == 0, 1 / 64, -1 / 64)
    ),
    # tiny, large and denormal
    "tiny inputs": _batch("train", _x(_times(1e-10))),
    "very tiny inputs": _batch("train", _x(_times(1e-18))),
    "denormal inputs": _batch("train", _x(lambda x, generator: np.sign(x) * TINIEST * 3)),
    "large inputs": _batch("train", _x(_times(1e4))),
    "one large sample": _batch("train", _x(_one_row(1e4))),
    "one tiny sample": _batch("train", _x(_one_row(1e-10))),
    "tiny moments": _state(_times(1e-10), _times(1e-20)),
    "large moments": _state(_times(1e4), _times(1e8)),
    "denormal moments": _state(
        lambda m, generator: np.sign(m) * TINIEST * 5, lambda v, generator: np.full_like(v, TINIEST * 7)
    ),
    "denormal parameters": _params(lambda name, p, generator: np.sign(p) * TINIEST * 9),
    "large parameters": _params(lambda name, p, generator: 100 * p if name == "0.weight" else p),
    # of sequences
    "one counted label": _batch("train", _one_counted),
    "one repeated token": _batch("train", _x(_one_repeated)),
    "the last token alone": _only_token(last=True),
    "the first token alone": _only_token(last=False),
    # beyond the ends
    "beta1 of 1": _beta_of_1(0),
    "beta2 of 1": _beta_of_1(1),
}
"""The arrangements by name."""
