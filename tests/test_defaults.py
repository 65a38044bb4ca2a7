"""Each option has the same default everywhere: oracle, engine, command and the kit's candidates."""

import dataclasses
import inspect
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

from adamshap import gpu, reference
from adamshap.reference.command.attribute import attribute_command
from adamshap.reference.contract import Estimator, quadrature_nodes

FUNCTIONS = ("update", "utility", "marginals", "scores", "influence", "attribute")

PRECISION = {"dtype": ("float64", "float32")}
"""The only default that differs between oracle and engine: the oracle computes in float64 only."""

OF_SMALL_TABLES = ("batch_size",)


def defaults_of(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


def assert_alike(one: dict[str, Any], other: dict[str, Any], at_least: set[str]) -> None:
    """Assert that all common options have the same default, and that `at_least` are common."""
    shared = one.keys() & other.keys()
    assert at_least <= shared
    assert {name: one[name] for name in shared} == {name: other[name] for name in shared}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_oracle_and_engine_have_the_same_defaults(name: str) -> None:
    ours, theirs = (defaults_of(getattr(module, name)) for module in (reference, gpu))
    if name == "attribute":
        assert (ours.pop("dtype"), theirs.pop("dtype")) == PRECISION["dtype"]
        assert ours.keys() == theirs.keys()
    assert_alike(ours, theirs, set(ours))


@pytest.mark.parametrize("module", [reference, gpu])
def test_an_option_of_a_run_has_the_default_that_it_has_of_a_step(module: ModuleType) -> None:
    known = {"slope", "gradient", "per_validation", "nodes", "kind"}
    engines = {"rank", "variance", "micro_batch", "score_dtype", "device", "dtype"} if module is gpu else set()
    assert_alike(defaults_of(module.attribute), defaults_of(module.scores), known | engines)


def test_the_engine_asks_for_what_its_signature_says() -> None:
    asked = dataclasses.asdict(Estimator())
    nodes = asked.pop("nodes")
    assert nodes == quadrature_nodes(defaults_of(gpu.scores)["nodes"], asked["slope"])
    assert_alike(asked, defaults_of(gpu.scores), set(asked))


def test_the_command_has_the_defaults_of_a_run() -> None:
    """But for the training itself, which suits small tables: epochs, learning rate and `OF_SMALL_TABLES`.

    A default of None stands for one that depends on other options.
    """
    command = {name: value for name, value in defaults_of(attribute_command).items() if value is not None}
    for name in OF_SMALL_TABLES:
        assert command.pop(name) < defaults_of(reference.attribute)[name]
    assert_alike(command, defaults_of(reference.attribute), {"slope", "gradient", "credit", "kind", "seed"})


@pytest.mark.parametrize("name", ["torch_ghost", "jax_vmap"])
def test_the_kits_candidates_have_the_oracles_defaults(name: str) -> None:
    """A property's estimator leaves out what it is not about, and the oracle's answer is that to its own defaults.

    The engine as a candidate hands on what it is asked.
    """
    oracles = defaults_of(reference.scores)
    candidates = defaults_of(import_module(f"adamshap.verify.candidates.{name}").scores)
    assert_alike(candidates, oracles, {"slope", "gradient", "nodes"})
