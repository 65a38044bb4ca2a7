"""Small random steps for the test vectors, each determined by its seed.

The numbers come from Python's Mersenne Twister by `random()` alone, whose sequence Python guarantees for all versions,
and are rounded to three digits: the inputs are the same everywhere, to the last bit, and easy to read.
"""

import math
from collections.abc import Sequence
from random import Random

import numpy as np

from adamshap.reference.contract import REDUCTIONS, Adam, AdamState, Array, Model, Params, Step
from adamshap.verify.models import KINDS, PERCEPTRON
from adamshap.verify.vectors.numbers import array, integer, one, short

__all__ = ["COMPLETED", "STATES", "random_step"]

STATES = ("fresh", "ordinary", "adversarial")
"""Kinds of state: before the first step; typical of a run; with zeros, and with v of any size, unlike any run's."""

COMPLETED = (1, 2, 3, 9, 30, 99, 400, 2500, 9999)
"""Completed steps of a state that is not fresh."""


def random_step(
    seed: int,
    *,
    kind: str = PERCEPTRON,
    model: Model | None = None,
    max_n: int = 7,
    max_n_val: int = 4,
    states: Sequence[str] = STATES,
) -> Step:
    """Return the step of `seed`.

    Parameters
    ----------
    seed : int
        Seed of all random choices.
    kind : str
        Kind of the model: a perceptron has at most three layers of five units, a stack at most six layers.
    model : Model, optional
        A model of this kind, in place of a random one.
    max_n, max_n_val : int
        Largest numbers of samples and of validation samples.
    states : sequence of str
        Kinds of state to choose from, some of `STATES`.
    """
    draw = Random(seed)
    of = KINDS[kind]
    net = of.plain_model(draw, seed) if model is None else model
    beta1, beta2 = one(draw, (0.9, 0.0, 0.5, 0.97)), one(draw, (0.999, 0.9, 0.5, 0.0))
    adam = Adam(
        lr=one(draw, (0.001, 0.01, 0.05, 0.0003)),
        betas=(beta1, beta2),
        # With β2 = 0 the denominator without data is ε: a small ε would move the parameters by m/ε.
        eps=one(draw, (1e-8, 1e-8, 1e-5, 0.001, 0.1) if beta2 else (0.001, 0.1)),
        eps_root=one(draw, (0.0, 0.0, 1e-8, 0.0001)),
        weight_decay=one(draw, (0.0, 0.01, 0.3)),
    )
    params = {name: array(draw, shape, 1.5 / math.sqrt(_fan_in(shape))) for name, shape in net.shapes.items()}
    if draw.random() < 0.3:  # a common initialisation, and for a zero sample every activation's input is 0
        params = {name: np.zeros_like(p) if name.endswith("bias") else p for name, p in params.items()}
    state = _state(draw, params, one(draw, states))
    n, n_val = integer(draw, 1, max_n), integer(draw, 1, max_n_val)
    train, valid = of.plain_batch(draw, net, n), of.plain_batch(draw, net, n_val)
    return Step(net, params, adam, state, train, valid, one(draw, REDUCTIONS))  # type: ignore[arg-type]


def _fan_in(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:]) if len(shape) > 1 else shape[0]


def _state(draw: Random, params: Params, kind: str) -> AdamState:
    if kind == "fresh":
        return AdamState.zeros(params)
    size = 10.0 ** -integer(draw, 0, 3)
    m = {name: array(draw, p.shape, size) for name, p in params.items()}
    v = {name: _moment(draw, p.shape, size, kind) for name, p in params.items()}
    if kind == "adversarial":
        # No momentum where v = 0: it would move the parameters by m/ε, where rounding hides every mistake.
        m = {name: np.where((v[name] == 0) | (array(draw, p.shape, 1.0) < -0.7), 0.0, p) for name, p in m.items()}
    return AdamState(one(draw, COMPLETED), m, v)


def _moment(draw: Random, shape: tuple[int, ...], size: float, kind: str) -> Array:
    numbers = []
    for _ in range(math.prod(shape)):
        number = size**2 * (0.05 + draw.random())
        if kind == "adversarial":
            number = 0.0 if draw.random() < 0.2 else number * 10 ** (8 * draw.random() - 5)
        numbers.append(short(number))
    return np.array(numbers).reshape(shape)
