"""The engine and the implementations to copy from pass the kit; JAX a part, since it compiles for each shape."""

import pytest

from adamshap.verify.checking import check
from adamshap.verify.implementation import implementation, load
from adamshap.verify.properties import PROPERTIES, Property

JAX_PROPERTIES = (
    "update",
    "scores-secant-midpoint",
    "scores-random_order-start",
    "scores-per-validation",
    "additivity",
)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("prop", PROPERTIES, ids=lambda prop: prop.name)
def test_torch_passes(prop: Property, dtype: str) -> None:
    pytest.importorskip("torch", reason="extra `peers`: torch")
    from adamshap.verify.candidates import torch_ghost

    (outcome,) = check(implementation(torch_ghost, "torch"), [prop], dtype=dtype)
    assert outcome.status != "failed", outcome.finding


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("prop", PROPERTIES, ids=lambda prop: prop.name)
def test_the_engine_passes(prop: Property, dtype: str) -> None:
    (outcome,) = check(load("engine"), [prop], dtype=dtype)
    assert outcome.status == "passed", outcome.finding


@pytest.mark.parametrize("prop", [p for p in PROPERTIES if p.name in JAX_PROPERTIES], ids=lambda prop: prop.name)
def test_jax_passes(prop: Property) -> None:
    pytest.importorskip("optax", reason="extra `peers`: optax")
    from adamshap.verify.candidates import jax_vmap

    (outcome,) = check(implementation(jax_vmap, "jax"), [prop])
    assert outcome.status == "passed", outcome.finding
