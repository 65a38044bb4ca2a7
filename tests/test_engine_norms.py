"""√Σ x² of each weight, and the scores that depend on it, where one input or gradient is far larger than all others."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_devices import in_each_dtype, on_device, on_each_device
from hypothesis import given, settings
from hypothesis import strategies as st

from adamshap import gpu as engine
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.captures import Captures, OuterProduct
from adamshap.gpu.layers import context_for
from adamshap.gpu.norms import Norms, add_norms
from adamshap.gpu.ops import numpy as in_numpy
from adamshap.gpu.ops import ops_for
from adamshap.reference import Adam, AdamState, Batch, Network, Step
from adamshap.reference.contract import Array
from adamshap.verify.implementation import Query
from adamshap.verify.oracle import bounds, expected
from adamshap.verify.properties import in_dtype
from adamshap.verify.strategies import seeds
from adamshap.verify.tolerance import assert_within, rounding

REACH = {"float32": 18, "float64": 150}
"""Decimal exponents up to which entries go: their products are within the dtype, their squares are not."""

LARGE = {"float32": (1e20, 1e22, 1e36), "float64": (1e160, 1e200, 1e300)}


def roots(implementation: str, device: Any, dtype: Any, a: Array, b: Array, chunks: list[slice]) -> tuple[Array, Array]:
    """Return the engine's √Σ x² of the weights and of the biases of one layer."""
    backend = pick_backend(device, dtype)
    net = Network((a.shape[1], b.shape[1]))
    ops = in_numpy if implementation == "numpy" and not backend.on_cuda else ops_for(backend)
    context, norms = replace(context_for(net, backend), ops=ops), Norms()
    for chunk in chunks:
        capture = OuterProduct("0.weight", "0.bias", on_device(device, a[chunk]), on_device(device, b[chunk]))
        add_norms(context, norms, Captures((capture,)), "exact")
    found = [norms.of(name, len(a)) for name in ("0.weight", "0.bias")]
    assert all(given.row is None and given.col is None for given in found)
    weights, biases = (given.root for given in found)
    return backend.host(weights), backend.host(biases)


@pytest.mark.parametrize("implementation", ["numpy", "device"])
@on_each_device
@in_each_dtype
@given(
    seed=seeds,
    n=st.sampled_from([1, 2, 9, 70]),
    shape=st.tuples(st.sampled_from([1, 3, 130]), st.sampled_from([1, 7, 90])),
    reach=st.sampled_from([0.0, 0.5, 1.0]),
    zeros=st.sampled_from([0.0, 0.3, 0.9]),
    in_chunks=st.booleans(),
)
@settings(max_examples=40)
def test_roots_of_squares_of_any_size(
    implementation: Any,
    device: Any,
    dtype: Any,
    seed: int,
    n: int,
    shape: tuple[int, int],
    reach: float,
    zeros: float,
    in_chunks: bool,
) -> None:
    """Right to a few roundings in every element, however far its own terms are below others of their columns."""
    generator, wide = np.random.default_rng(seed), np.longdouble

    def entries(width: int) -> Array:
        exponents = reach * REACH[dtype] * generator.uniform(-1, 1, (n, width))
        values = generator.standard_normal((n, width)) * 10**exponents
        return np.where(generator.random((n, width)) < zeros, 0.0, values).astype(dtype)

    b, a = (entries(width) for width in shape)
    chunks = [slice(0, n // 2), slice(n // 2, n)] if in_chunks and n > 1 else [slice(0, n)]
    weights, biases = roots(implementation, device, dtype, a, b, chunks)
    wanted = np.sqrt(np.einsum("no,ni->oi", b.astype(wide) ** 2, a.astype(wide) ** 2)).astype(np.float64)
    assert_within(weights, wanted, rounding(wanted, n, dtype), "weights")
    wanted = np.sqrt((b.astype(wide) ** 2).sum(axis=0)).astype(np.float64)[None]
    assert_within(biases, wanted, rounding(wanted, n, dtype), "biases")


def with_large_entry(large: float, activation: Any, dtype: Any) -> Step:
    """Return the first step of five samples, of which one has a large entry."""
    x = np.random.default_rng(0).normal(size=(5, 3))
    x[2, 1] = large
    network = Network((3, 4, 2), activation)
    params, batch = network.init(0), Batch(x, np.array([0, 1, 0, 1, 1]))
    return in_dtype(Step(network, params, Adam(), AdamState.zeros(params), batch, batch), dtype)


@on_each_device
@in_each_dtype
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize(
    "options",
    [
        {"slope": "random_order", "gradient": "start"},
        {"slope": "random_order", "gradient": "midpoint"},
        {"slope": "random_order", "gradient": "midpoint", "per_validation": True},
        {"slope": "random_order", "gradient": "midpoint", "micro_batch": 2},
        {"slope": "two_term", "gradient": "midpoint"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_one_large_entry_leaves_all_scores_right(
    device: Any, dtype: Any, place: int, activation: Any, options: dict[str, Any]
) -> None:
    step = with_large_entry(LARGE[dtype][place], activation, dtype)
    got = engine.scores(step, **options, variance="exact", device=device, dtype=dtype)
    query = Query("scores", {name: value for name, value in options.items() if name != "micro_batch"})
    assert_within(got, expected(step, query)["values"], bounds(step, query, dtype)["values"], "scores")
