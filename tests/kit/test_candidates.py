"""The example implementations pass the kit; `tests/test_engine_scores.py` tests the engine."""

from dataclasses import replace

import numpy as np
import pytest

from adamshap.reference import Adam, AdamState, Batch, Network, Step
from adamshap.verify.checking import check
from adamshap.verify.edges.properties import DRAWN_EDGES
from adamshap.verify.implementation import Query, implementation
from adamshap.verify.layers.properties import LAYER_PROPERTIES
from adamshap.verify.properties import PROPERTIES, Case, Property, asker


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("prop", [*PROPERTIES, *LAYER_PROPERTIES], ids=lambda prop: prop.name)
def test_torch_passes(prop: Property, dtype: str) -> None:
    pytest.importorskip("torch", reason="extra `peers`: torch")
    from adamshap.verify.candidates import torch_ghost

    (outcome,) = check(implementation(torch_ghost, "torch"), [prop], dtype=dtype)
    # It has neither micro-batches nor the slope "auto".
    wanted = "not offered" if prop.extra == "micro_batch" else "not tried" if "auto" in prop.features else "passed"
    assert outcome.status == wanted, outcome.finding


@pytest.mark.parametrize("beta1", [1e-7, 1e-5, 1e-3])
def test_torch_loses_some_of_m_where_beta1_is_small(beta1: float) -> None:
    """PyTorch's ``lerp`` rounds 1 − β1: for a gradient of 0, the result β1 m has an error of u |m|."""
    pytest.importorskip("torch", reason="extra `peers`: torch")
    from adamshap.verify.candidates import torch_ghost

    net = Network((3, 4, 1))  # with one class, every gradient is 0
    params = {name: p.astype(np.float32) for name, p in net.init(0).items()}
    generator = np.random.default_rng(0)
    m, v = ({name: generator.random(p.shape, np.float32) for name, p in params.items()} for _ in range(2))
    batch = Batch(generator.standard_normal((2, 3), np.float32), np.zeros(2, int))
    step = Step(net, params, Adam(betas=(beta1, 0.0)), AdamState(1, m, v), batch, batch)
    (update,) = (one for one in PROPERTIES if one.name == "update")
    assert update.check(asker(implementation(torch_ghost, "torch")), Case(step, Query("update")), np.float32) < 1


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_jax_passes(dtype: str) -> None:
    """All properties in one test: they share what is compiled for vectors of a few lengths. Each dtype is separate.

    With a half of the cases of perceptrons and a quarter of the others, in float32 a half of these: there only the
    dtypes differ. Each case has a model and shapes of its own, for which JAX has to trace, lower and compile the
    gradient: at least 0.1 s of one core, and most of a case's time. Nothing is traced twice for one model and shape.
    Padded shapes would not help, as the models differ.
    """
    pytest.importorskip("optax", reason="extra `peers`: optax")
    from adamshap.verify.candidates import jax_vmap

    at_edges = {one.name for one in DRAWN_EDGES}
    less = 2 if dtype == "float32" else 1
    fewer = [replace(one, cost=less * (4 if one.name in at_edges else 2) * one.cost) for one in PROPERTIES]
    fewer += [replace(one, cost=less * 4 * one.cost) for one in LAYER_PROPERTIES]
    outcomes = check(implementation(jax_vmap, "jax"), fewer, dtype=dtype)
    others = {outcome.property.name: outcome.finding for outcome in outcomes if outcome.status != "passed"}
    # It has neither micro-batches nor the slope "auto".
    assert others == dict.fromkeys(("micro-batch", "large-micro-batch", "edges-micro_batch", "scores-auto"))
