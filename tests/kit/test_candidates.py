"""The engine and the implementations to copy from pass the kit."""

import pytest

from adamshap.verify.checking import check
from adamshap.verify.implementation import implementation, load
from adamshap.verify.properties import PROPERTIES, Property


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


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_jax_passes(dtype: str) -> None:
    """In one test: what is compiled for one property's cases serves those of the next."""
    pytest.importorskip("optax", reason="extra `peers`: optax")
    from adamshap.verify.candidates import jax_vmap

    outcomes = check(implementation(jax_vmap, "jax"), dtype=dtype)
    assert not [outcome.finding for outcome in outcomes if outcome.status == "failed"]
    assert {outcome.property.name for outcome in outcomes if outcome.status == "passed"} >= {"update", "scores-nodes"}
