"""Small models of layers of each sort, their data, and a step of each."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adamshap.reference import (
    Adam,
    AdamState,
    Attention,
    Batch,
    Function,
    LayerNorm,
    Linear,
    MeanOverPositions,
    Network,
    Residual,
    Sequential,
    Step,
    convnet,
    perceptron,
    transformer,
)
from adamshap.reference.contract import Model

SIZES: dict[str, Any] = {"vocab": 5, "context": 4, "width": 4, "depth": 1, "heads": 2}


def tokens(n: int, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    x, y = generator.integers(0, 5, (2, n, 4))
    x[0, 3] = x[0, 0]
    y[:, 0] = np.where(generator.random(n) < 0.5, -100, y[:, 0])
    return Batch(x, y)


def sequences(n: int, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    return Batch(generator.standard_normal((n, 3, 4)), generator.standard_normal((n, 2)))


def pictures(n: int, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    return Batch(generator.standard_normal((n, 2, 4, 5)), generator.integers(0, 3, n))


def rows(n: int, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    return Batch(generator.standard_normal((n, 3)), generator.integers(0, 2, n))


NET = Network((3, 4, 2))
OWN = Function(NET.shapes, lambda params, batch: perceptron.sample_losses(NET, params, batch), NET.init)
MODELS: dict[str, tuple[Model, Callable[[int, int], Batch]]] = {
    "tied transformer": (transformer(**SIZES), tokens),
    "transformer of rms norms": (transformer(**SIZES, norm="rms", tied=False, bias=False, activation="silu"), tokens),
    "convnet": (convnet(image=(2, 4, 5), channels=(2, 3), outputs=3, activation="tanh"), pictures),
    "sequences to targets": (
        Sequential((Residual((LayerNorm(4), Attention(4))), MeanOverPositions(), Linear(4, 2)), loss="mse"),
        sequences,
    ),
    "function": (OWN, rows),
}
every_model = pytest.mark.parametrize("name", MODELS)


def step_of(name: str, **changes: Any) -> Step:
    model, batch = MODELS[name]
    generator, params = np.random.default_rng(1), model.init(0)
    params = {key: p + 0.3 * generator.standard_normal(p.shape) for key, p in params.items()}
    m = {key: 0.1 * generator.standard_normal(p.shape) for key, p in params.items()}
    v = {key: generator.uniform(0.01, 0.1, p.shape) for key, p in params.items()}
    adam = Adam(0.01, weight_decay=0.1)
    return replace(Step(model, params, adam, AdamState(3, m, v), batch(4, 2), batch(3, 3)), **changes)
