"""The oracle supports any kind of model for which it has functions, with any names of parameters."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from adamshap.reference import (
    Adam,
    AdamState,
    Batch,
    Network,
    Step,
    attribute,
    influence,
    marginals,
    metagradient,
    models,
    perceptron,
    scores,
    update,
)
from adamshap.reference.contract import Array, Params, RunConfig

NET = Network((3, 4, 2))
NAMES = dict(zip(NET.shapes, ("into.matrix", "into.shift", "out.matrix", "out.shift"), strict=True))


@dataclasses.dataclass(frozen=True)
class Renamed:
    """A perceptron that is not a `Network`, with other names of parameters."""

    kind: str = "renamed"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {NAMES[name]: shape for name, shape in NET.shapes.items()}

    def init(self, seed: int = 0) -> Params:
        return renamed(NET.init(seed))

    def check_batch(self, field: str, batch: Batch) -> None:
        NET.check_batch(field, batch)


def renamed(params: Params) -> Params:
    return {NAMES[name]: p for name, p in params.items()}


def back(params: Params) -> Params:
    return {name: params[other] for name, other in NAMES.items()}


@pytest.fixture
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    def outputs(model: Renamed, params: Params, x: Array) -> Array:
        return perceptron.outputs(NET, back(params), x)

    def sample_losses(model: Renamed, params: Params, batch: Batch) -> Array:
        return perceptron.sample_losses(NET, back(params), batch)

    monkeypatch.setitem(models.KINDS, "renamed", models.Functions(outputs, sample_losses))


def data() -> tuple[Batch, Batch]:
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((12, 3)), generator.integers(0, 2, 12)
    return Batch(x[:8], y[:8]), Batch(x[8:], y[8:])


def steps() -> tuple[Step, Step]:
    """Return a step of the perceptron, and the same step with the model of another kind."""
    params, generator = NET.init(1), np.random.default_rng(2)
    m = {name: generator.standard_normal(p.shape) for name, p in params.items()}
    v = {name: generator.uniform(0.1, 1, p.shape) for name, p in params.items()}
    usual = Step(NET, params, Adam(0.01, weight_decay=0.1), AdamState(2, m, v), *data())
    state = AdamState(2, renamed(m), renamed(v))
    return usual, dataclasses.replace(usual, net=Renamed(), params=renamed(params), state=state)


@pytest.mark.usefixtures("_known")
@pytest.mark.parametrize(
    "function",
    [
        scores,
        lambda step: scores(step, "two_term", "path"),
        lambda step: scores(step, "linearized", per_validation=True, efficient=True),
        influence,
        lambda step: marginals(step, "shapley").values,
        lambda step: marginals(step, "first", "first_order").values,
        lambda step: np.concatenate([p.ravel() for p in update(step)[0].values()]),
        lambda step: models.outputs(step.net, step.params, step.valid.x),
    ],
)
def test_a_step_of_another_kind_of_model(function: Any) -> None:
    usual, other = steps()
    np.testing.assert_array_equal(function(other), function(usual))


@pytest.mark.usefixtures("_known")
@pytest.mark.parametrize("credit", ["step", "carry"])
def test_a_run_of_another_kind_of_model(credit: Any) -> None:
    adam, options = Adam(0.01, weight_decay=0.1), {"epochs": 2, "batch_size": 3, "slope": "secant", "credit": credit}
    usual, other = (attribute(model, adam, *data(), **options) for model in (NET, Renamed()))
    np.testing.assert_array_equal(other.scores, usual.scores)
    np.testing.assert_array_equal(other.sgd_scores, usual.sgd_scores)
    np.testing.assert_array_equal(metagradient(other), metagradient(usual))
    for name, p in usual.params.items():
        np.testing.assert_array_equal(other.params[NAMES[name]], p)


def test_an_unknown_kind_and_an_invalid_model_are_refused() -> None:
    _, other = steps()
    with pytest.raises(ValueError, match=re.escape("model: got the kind 'renamed'; needs one of perceptron")):
        scores(other)
    with pytest.raises(TypeError, match=re.escape("Step.net: got type; needs a Network")):
        dataclasses.replace(other, net=Network)
    with pytest.raises(TypeError, match=re.escape("network: got int; needs a Network")):
        RunConfig(3, Adam(), *data(), 1, 1, 0)
