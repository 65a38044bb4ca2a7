"""Stacks of layers in the kit: draws of every kind of layer, JSON, bounds without false alarms, and mistakes caught."""

from collections import Counter
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pytest

from adamshap.reference import (
    Activation,
    Attention,
    Embedding,
    Flatten,
    LayerNorm,
    Linear,
    MeanOverPositions,
    Positions,
    Residual,
    Sequential,
    TiedLinear,
    models,
)
from adamshap.reference.contract import NOT_COUNTED
from adamshap.verify.cases import CaseError, case_from_json, case_to_json, dumps, loads
from adamshap.verify.checking import check
from adamshap.verify.implementation import Implementation, Query
from adamshap.verify.layers.properties import LAYER_PROPERTIES
from adamshap.verify.models import kind_named
from adamshap.verify.models.sequential import LAYERS, each_layer, input_shapes, largest_outputs
from adamshap.verify.oracle import ORACLE
from adamshap.verify.properties import Case, in_dtype
from adamshap.verify.random_cases import random_cases
from adamshap.verify.tolerance import rounding

BY_NAME = {one.name: one for one in LAYER_PROPERTIES}
KIND = kind_named("sequential")


@cache
def drawn() -> tuple[Case, ...]:
    names = ("sequential-update", "sequential-influence")
    return tuple(case for name in names for case in random_cases(BY_NAME[name], 150, 0))


def test_every_kind_of_layer_is_drawn() -> None:
    kinds = Counter(layer.kind for case in drawn() for layer in each_layer(case.step.net))  # type: ignore[arg-type]
    assert kinds.keys() == LAYERS.keys()
    assert LAYERS.keys() == models_with_forward()


def models_with_forward() -> Any:
    from adamshap.reference.layers import FORWARD

    return FORWARD.keys()


def test_draws_have_what_layers_get_wrong() -> None:
    steps = [case.step for case in drawn()]
    tokens = [step for step in steps if step.net.takes_tokens]  # type: ignore[attr-defined]
    assert any(len(set(row)) < len(row) for step in tokens for row in step.train.x.tolist())
    assert any((step.train.y == NOT_COUNTED).any() for step in steps)
    lengths = {step.train.x.shape[1] for step in tokens}
    assert {1, 2} <= lengths
    assert max(lengths) >= 5
    assert any(step.train.x.shape[1] != step.valid.x.shape[1] for step in tokens)
    heads = {layer.heads for step in steps for layer in each_layer(step.net) if layer.kind == "attention"}  # type: ignore
    assert {1, 2} <= heads
    assert {len(step.net.layers) for step in steps} >= {1, 2, 3, 4, 5, 6}  # type: ignore[attr-defined]
    assert {step.train.x.ndim for step in steps} == {2, 3, 4}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_step_comes_back_from_json(dtype: str) -> None:
    for case in drawn():
        step = in_dtype(case.step, dtype)
        written = case_to_json(step, case.query)
        assert written["network"]["kind"] == "sequential"
        back, query = case_from_json(loads(dumps(written), "text"))
        assert (back.net, back.adam, query) == (step.net, step.adam, case.query)
        assert dumps(case_to_json(back, query)) == dumps(written)
        for name in ("x", "y"):
            assert getattr(back.train, name).dtype == getattr(step.train, name).dtype


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ({"layers": 3, "names": ["0"], "loss": "mse"}, "network.layers: got 3; needs a list of layers"),
        ({"layers": [{"kind": "rope"}], "names": ["0"], "loss": "mse"}, r"layers\[0\].kind: got 'rope'; needs one of"),
        ({"layers": [{"kind": "linear", "d_in": 2}], "names": ["0"], "loss": "mse"}, "exactly the names kind, d_in"),
        ({"layers": [7], "names": ["0"], "loss": "mse"}, r"layers\[0\]: got 7; needs an object with a kind"),
    ],
)
def test_other_json_is_refused(network: Any, says: str) -> None:
    case = drawn()[0]
    written = case_to_json(case.step, case.query) | {"network": {"kind": "sequential", **network}}
    with pytest.raises(CaseError, match=says):
        case_from_json(written)


def test_models_of_the_vectors_need_no_hypothesis_and_are_valid() -> None:
    kinds = set()
    for seed in range(150):
        draw = Random(seed)
        net: Any = KIND.plain_model(draw, seed)
        for n in (1, 4):
            batch = KIND.plain_batch(draw, net, n)
            net.check_batch("batch", batch)
        kinds |= {layer.kind for layer in each_layer(net)}
    assert kinds == LAYERS.keys()


def test_sizes_are_limits() -> None:
    for case in drawn():
        net: Any = case.step.net
        size = 0.0 if net.takes_tokens else float(np.abs(case.step.valid.x).max())
        found = float(np.abs(models.outputs(net, case.step.params, case.step.valid.x)).max())
        operations = KIND.longest_sum(net) * KIND.products(net)
        for number, limit in (
            (found, largest_outputs(net, case.step.params, size)),
            (KIND.loss_terms(case.step), KIND.loss_limit(case.step)),
            (found, KIND.draws.reach(case.step)),
        ):
            assert number <= limit + rounding(limit, operations)
        assert KIND.longest_sum(net) >= 6
        assert KIND.products(net) >= 2


def test_sequences_of_one_model_differ_in_length_but_not_in_rank() -> None:
    assert input_shapes(Sequential((Linear(3, 2),))) == ((3,),)
    assert input_shapes(Sequential((LayerNorm(3), Linear(3, 2))))[:2] == ((1, 3), (2, 3))
    assert input_shapes(Sequential((LayerNorm(3), Flatten(), Linear(6, 2)))) == ((2, 3),)
    assert input_shapes(Sequential((Embedding(3, 2), Positions(4, 2)), loss="mse")) == ((1,), (2,), (3,), (4,))


def test_a_failing_step_shrinks() -> None:
    def ask(step: Any, query: Query) -> Any:
        right = ORACLE.ask(step, query)
        return right * 2 if "conv2d" in {layer.kind for layer in each_layer(step.net)} else right

    wrong = replace(ORACLE, name="doubled with a convolution", ask=ask)
    (outcome,) = check(wrong, [BY_NAME["sequential-influence"]], shrink_seconds=3)
    assert outcome.finding is not None
    step = outcome.finding.case.step
    assert step.n == 1
    assert sum(p.size for p in step.params.values()) <= 30


def test_what_a_candidate_does_not_declare_is_not_tried() -> None:
    calls = []

    def ask(step: Any, query: Query) -> Any:
        calls.append(query)
        return ORACLE.ask(step, query)

    silent = Implementation("perceptrons only", ORACLE.offers, ask)
    assert {one.status for one in check(silent, LAYER_PROPERTIES)} == {"not tried", "not offered"}
    assert not calls
    (tried,) = check(replace(silent, supports=frozenset({"sequential"})), [BY_NAME["sequential-update"]])
    assert tried.status == "passed"
    assert calls


def test_a_reach_is_unknown_for_a_weight_from_outside_a_residual() -> None:
    tied = Residual((TiedLinear(2, 2, "0.weight"), Activation("tanh")))
    net = Sequential((Linear(2, 2), tied, Attention(2), MeanOverPositions()), loss="mse")
    assert largest_outputs(net, net.init(0), 1.0) == np.inf
