"""Cases and answers in JSON: exact both ways; anything else is an error that names the field and what it needs."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamshap.reference import Adam, AdamState, Batch, Network, Step
from adamshap.verify.cases import (
    DTYPES,
    CaseError,
    answer_from_json,
    answer_to_json,
    case_from_json,
    case_to_json,
    complete,
    dumps,
    loads,
)
from adamshap.verify.implementation import Query
from adamshap.verify.properties import PROPERTIES, in_dtype

IN_THE_CONTRACT = [prop for prop in PROPERTIES if not prop.extra]


@given(st.data(), st.sampled_from(DTYPES), st.sampled_from(IN_THE_CONTRACT))
def test_a_case_comes_back_to_the_last_bit(data: Any, dtype: str, prop: Any) -> None:
    case = data.draw(prop.cases)
    step = in_dtype(case.step, dtype)
    text = dumps(case_to_json(step, case.query))
    back, query = case_from_json(loads(text, "text"))
    assert (back.net, back.adam, back.reduction, back.state.step) == (
        step.net,
        step.adam,
        step.reduction,
        step.state.step,
    )
    for group, again in ((step.params, back.params), (step.state.m, back.state.m), (step.state.v, back.state.v)):
        assert list(group) == list(again)
        assert all(np.array_equal(group[name], again[name]) for name in group)
        assert all(again[name].dtype == dtype for name in group)
    for batch, copied in ((step.train, back.train), (step.valid, back.valid)):
        assert copied.x.dtype == batch.x.dtype == dtype
        assert copied.y.dtype == batch.y.dtype
        assert np.array_equal(batch.x, copied.x)
        assert np.array_equal(batch.y, copied.y)
    assert str(query) == str(complete(case.query))
    assert dumps(case_to_json(back, query)) == text


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.floats(0, 1))
def test_an_answer_comes_back_to_the_last_bit(values: list[float], empty: float) -> None:
    answer = {"values": np.array(values), "empty": np.array(empty), "matrix": np.array([values, values])}
    back = answer_from_json(loads(dumps(answer_to_json(answer)), "text"))
    assert list(back) == list(answer)
    assert all(back[name].tobytes() == answer[name].tobytes() for name in answer)
    assert all(back[name].shape == answer[name].shape for name in answer)


def test_a_large_number_without_a_point_is_a_number() -> None:
    back = answer_from_json(loads('{"values": [-14331284506554888000, 3, 9007199254740993]}', "text"))
    assert back["values"].tolist() == [-1.4331284506554888e19, 3.0, 9007199254740992.0]


@pytest.fixture
def case() -> dict[str, Any]:
    net = Network((2, 3), bias=True)
    params = net.init(0)
    batch = Batch(np.ones((2, 2)), np.array([0, 2]))
    step = Step(net, params, Adam(), AdamState.zeros(params), batch, batch)
    return case_to_json(step, Query("scores", {"slope": "secant"}))


def test_every_option_is_written_out(case: dict[str, Any]) -> None:
    assert case["options"] == {
        "slope": "secant",
        "gradient": "midpoint",
        "efficient": False,
        "per_validation": False,
        "nodes": [4, 4],
        "denominator": "exact",
    }


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda c: c.pop("adam"), "case: got the names .* needs exactly the names function, options"),
        (lambda c: c.update(more=1), "case: got the names .*more; needs exactly"),
        (lambda c: c.update(function="score"), "function: got 'score'; needs one of update"),
        (lambda c: c.update(dtype="float16"), "dtype: got 'float16'; needs one of float64"),
        (lambda c: c.update(state=3), "state: got 3; needs an object"),
        (lambda c: c["params"].pop("0.bias"), "Step.params: got the names"),
        (lambda c: c["params"].update({"0.bias": [1, 2]}), "0.bias.*shape"),
        (lambda c: c["params"].update({"0.weight": [[1, 2], [3]]}), "params.'0.weight'.: got lists of uneven length"),
        (lambda c: c["params"].update({"0.bias": [1, None, 2]}), "'0.bias'.: got .1, null, 2.; needs a number"),
        (lambda c: c["params"].update({"0.bias": ["1", "2", "3"]}), "needs a number, or lists of numbers"),
        (lambda c: c["train"].update(y=[0, 3]), "labels from 0 to 3"),
        (lambda c: c["train"].update(x=[[1, 2]]), "Batch.y: got 2 rows"),
        (lambda c: c["adam"].update(lr=-1), "Adam.lr: got -1"),
        (lambda c: c["adam"].update(lr="fast"), "Adam.lr: got 'fast'"),
        (lambda c: c["state"]["v"].update({"0.bias": [-1, 0, 0]}), "no negative value"),
        (lambda c: c["state"].update(step=0.5), "AdamState.step: got 0.5"),
        (lambda c: c["network"].update(activation="elu"), "Network.activation: got 'elu'"),
        (lambda c: c["options"].update(slope="steep"), "slope: got 'steep'"),
        (lambda c: c["options"].update(nodes=[4, 1]), r"nodes\[1\]: got 1"),
        (lambda c: c["options"].update(efficient=1), "efficient: got 1; needs true or false"),
        (lambda c: c["options"].pop("nodes"), "options: got the names"),
        (lambda c: c.update(function="utility", options={"coalition": [1, 0]}), "coalition: got dtype int64"),
        (lambda c: c.update(function="utility", options={"coalition": [True]}), "coalition: got shape"),
        (lambda c: c.update(reduction="max"), "Step.reduction: got 'max'"),
    ],
)
def test_an_invalid_case_is_refused(case: dict[str, Any], spoil: Callable[[Any], Any], says: str) -> None:
    case_from_json(copy.deepcopy(case))
    spoil(case)
    with pytest.raises(CaseError, match=f"^here: .*{says}"):
        case_from_json(case, "here")


@pytest.mark.parametrize("value", [[], {}, 3, None, {"values": "many"}, {"values": [1, [2]]}, {"values": [True]}])
def test_an_invalid_answer_is_refused(value: Any) -> None:
    with pytest.raises(CaseError, match=r"^here: "):
        answer_from_json(value, "here")


@pytest.mark.parametrize("text", ["{", "", "[NaN]", "[-Infinity]", '{"a": 1, "a": 2}', "[" * 100_000])
def test_invalid_json_is_refused(text: str) -> None:
    with pytest.raises(CaseError, match=r"^here: "):
        loads(text, "here")


def test_a_step_of_several_dtypes_is_refused(case: dict[str, Any]) -> None:
    step, query = case_from_json(case)
    mixed = Step(step.net, step.params, step.adam, step.state, in_dtype(step, "float32").train, step.valid)
    with pytest.raises(CaseError, match="got real arrays of float32, float64"):
        case_to_json(mixed, query)
    with pytest.raises(CaseError, match="got real arrays of float16"):
        case_to_json(in_dtype(step, "float16"), query)
