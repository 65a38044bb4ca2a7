"""Print the digits that ``credit="carry"`` loses in the engine, for docs/engine.md.

python docs/carry_digits.py       # half a minute
"""

from typing import Any
from unittest.mock import patch

import numpy as np

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.gpu import momentum
from adamshap.reference import Adam, Batch, Network
from adamshap.verify.claims import data

EPSILONS = (1e-8, 1e-5, 1e-3)
TRAIN, VALID = 208, 100
NETWORK = Network((64, 16, 10), "relu")
RUN: dict[str, Any] = {"epochs": 3, "batch_size": 16, "seed": 0, "credit": "carry", "slope": "random_order"}


def error(eps: float, dtype: str, train: Batch, valid: Batch, expected: Any) -> float:
    """Return the engine's largest error, over the largest score."""
    got = engine.attribute(
        NETWORK, Adam(eps=eps), train, valid, **RUN, variance="exact", carry_window=100, device="cpu", dtype=dtype
    )
    return float(np.abs(got.scores - expected.scores).max() / np.abs(expected.scores).max())


def main() -> None:
    """Print a row for each ε, with blocks of six steps in both dtypes and of one step in float32."""
    task = data.load("digits", 0, train=TRAIN, valid=VALID, test=1)
    print("| ε | float64 | float32 | float32, blocks of one step |\n|---|---|---|---|")
    for eps in EPSILONS:
        expected = oracle.attribute(NETWORK, Adam(eps=eps), task.train, task.valid, **RUN)
        errors = [error(eps, dtype, task.train, task.valid, expected) for dtype in ("float64", "float32")]
        with patch.object(momentum, "GROWTH", 1.0):
            errors.append(error(eps, "float32", task.train, task.valid, expected))
        print(f"| {eps:g} | " + " | ".join(f"{one:.1e}" for one in errors) + " |")


if __name__ == "__main__":
    main()
