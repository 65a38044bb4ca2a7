"""The oracle's answer to `captures`: each parameter by itself, from every sample's materialised gradient.

======  ==============  ====================================================================
paper   name            meaning
======  ==============  ====================================================================
x_i     ``x[name][i]``  gradient of sample i's own loss, without the weight of the batch
P       ``directions``  a matrix in place of P, by parameter
======  ==============  ====================================================================
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from adamshap.reference import models
from adamshap.reference.contract import Array, Batch, Model, Params, Step

__all__ = ["captures", "captures_magnitudes", "random_directions"]


def captures(
    params: Params, batch: Batch, *, model: Model, directions: Mapping[str, Array]
) -> dict[str, dict[str, Array]]:
    """Return Σ_i x_i, ⟨directions[name], x_i⟩ and Σ_i x_i² of each parameter (docs/method.md 5).

    Parameters
    ----------
    params : dict of arrays
    batch : Batch
    model : Model
    directions : mapping of arrays
        An array for each parameter, of its shape.

    Returns
    -------
    dict of dicts
        For each parameter "sum", of its shape; "dot", (n,); "squares", of its shape. x_i is the gradient of sample i's
        own loss, without a factor 1/n. A parameter that is used twice has the sum of both uses in x_i.
    """
    x = _gradients(model, params, batch)
    return {
        name: {
            "sum": x_i.sum(axis=0),
            "dot": x_i.reshape(len(x_i), -1) @ directions[name].astype(np.float64).ravel(),
            "squares": (x_i**2).sum(axis=0),
        }
        for name, x_i in x.items()
    }


def captures_magnitudes(step: Step, directions: Mapping[str, Array]) -> dict[str, Any]:
    """Return the sum of the absolute terms of each number of `captures`."""
    sizes = {}
    for name, x_i in _gradients(step.net, step.params, step.train).items():
        sizes[f"sum.{name}"] = np.abs(x_i).sum(axis=0)
        sizes[f"dot.{name}"] = np.abs(x_i).reshape(len(x_i), -1) @ np.abs(directions[name]).astype(np.float64).ravel()
        sizes[f"squares.{name}"] = (x_i**2).sum(axis=0)
    return sizes


def random_directions(params: Params, seed: int) -> dict[str, Array]:
    """Return standard normal numbers for each parameter, rounded to float32: both dtypes get the same."""
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(p.shape).astype(np.float32).astype(p.dtype) for name, p in params.items()}


def _gradients(model: Model, params: Params, batch: Batch) -> Params:
    float64 = {name: p.astype(np.float64) for name, p in params.items()}
    x, y = (part.astype(np.float64) if part.dtype.kind == "f" else part for part in (batch.x, batch.y))
    return models.each_gradient(model, float64, Batch(x, y))
