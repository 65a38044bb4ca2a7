"""Layers against PyTorch's modules in float64: outputs, losses and each sample's gradient."""

import re
from dataclasses import replace

import numpy as np
import pytest
from torch_layers import CLASSES, PAIRS, REAL, Pair, language, stacked

from adamshap.reference import (
    Adam,
    Batch,
    Flatten,
    Function,
    Linear,
    Step,
    attribute,
    influence,
    marginals,
    metagradient,
    models,
    retrained,
)
from adamshap.reference.contract import Array, Params

torch = pytest.importorskip("torch", reason="extra `peers`: torch")

RELATIVE = 1e-12


@pytest.mark.parametrize("name", PAIRS)
def test_outputs_losses_and_gradients_are_those_of_pytorch(name: str) -> None:
    assert PAIRS[name]().gap() <= RELATIVE


def test_a_state_dict_of_the_same_module_loads_by_name() -> None:
    pair = language()
    state = pair.module.double().state_dict()
    assert set(state) - set(pair.model.shapes) == {"head.weight"}
    params = pair.model.from_state_dict(state)
    assert {name: p.shape for name, p in params.items()} == pair.model.shapes
    np.testing.assert_array_equal(params["embedding.weight"], state["head.weight"].numpy())
    with pytest.raises(ValueError, match=r"state\['head.weight'\]: got values other than those of 'embedding.weight'"):
        pair.model.from_state_dict(state | {"head.weight": 2 * state["head.weight"]})
    with pytest.raises(ValueError, match="state: got the names"):
        pair.model.from_state_dict({name: p for name, p in state.items() if "norm1" not in name})


def as_function(pair: Pair) -> Function:
    """The module behind its losses and its samples' gradients."""

    def load(params: Params) -> None:
        with torch.no_grad():
            for name, p in pair.module.named_parameters():
                p.copy_(torch.as_tensor(np.array(params[name])))

    def both(params: Params, batch: Batch) -> tuple[Array, list[Params]]:
        load(params)
        _, each, gradients = replace(pair, batch=batch).theirs()
        return each, gradients

    def gradients(params: Params, batch: Batch) -> Params:
        found = both(params, batch)[1]
        return {name: np.stack([gradient[name] for gradient in found]) for name in params}

    pair.module.double()
    model = pair.model
    return Function(model.shapes, lambda params, batch: both(params, batch)[0], model.init, gradients)


def test_a_module_of_pytorch_runs_in_the_oracle() -> None:
    pair = language(depth=1)
    model, adam, options = as_function(pair), Adam(1e-3, weight_decay=0.1), {"epochs": 2, "batch_size": 2}
    own, other = (attribute(one, adam, pair.batch, pair.batch, **options) for one in (pair.model, model))  # type: ignore[arg-type]
    np.testing.assert_allclose(other.scores, own.scores, rtol=1e-8)
    np.testing.assert_allclose(retrained(other, [1]), retrained(own, [1]), rtol=1e-8)
    with pytest.raises(ValueError, match="run: got a run of a Function with gradients of its own"):
        metagradient(other)
    step = Step(model, own.params, adam, own.state, pair.batch, pair.batch)
    described = replace(step, net=pair.model)
    np.testing.assert_allclose(influence(step), influence(described), rtol=1e-8)
    np.testing.assert_allclose(marginals(step).values, marginals(described).values, rtol=1e-8)


def test_gradients_of_other_names_or_shapes_are_refused() -> None:
    pair = stacked(Linear(6, 3), Flatten(), Linear(12, 3), x=REAL, y=CLASSES)
    model, params = as_function(pair), pair.params()
    right = model.gradients
    assert right is not None
    one_row = {name: x[0] for name, x in right(params, pair.batch).items()}
    for wrong, message in (
        (one_row, "Function.gradients['0.weight']: got shape (3, 6); needs shape (3, 3, 6)"),
        ({}, "Function.gradients: got the names []"),
    ):
        model = Function(model.shapes, model.losses, None, lambda params, batch, wrong=wrong: wrong)
        with pytest.raises(ValueError, match=re.escape(message)):
            models.each_gradient(model, params, pair.batch)
