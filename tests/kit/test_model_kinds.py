"""The kit supports any registered kind of model and names it in cases; a perceptron needs no name."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st

from adamshap.reference import Network, models
from adamshap.verify.cases import CaseError, case_from_json, case_to_json, dumps, loads
from adamshap.verify.checking import check
from adamshap.verify.faults import BY_NAME
from adamshap.verify.implementation import Query
from adamshap.verify.models import KINDS
from adamshap.verify.models.perceptron import Perceptrons
from adamshap.verify.models.perceptron_draws import PerceptronDraws
from adamshap.verify.oracle import ORACLE
from adamshap.verify.properties import PROPERTIES, cases
from adamshap.verify.property import Property
from adamshap.verify.random_cases import random_cases


@dataclass(frozen=True)
class Other(Network):
    """A perceptron by another name."""

    @property
    def kind(self) -> str:
        return "other"


class OtherDraws(PerceptronDraws):
    def models(self, **limits: int) -> st.SearchStrategy[Network]:
        return super().models(**limits).map(lambda net: Other(**vars(net)))


class Others(Perceptrons):
    draws = OtherDraws()

    def from_json(self, value: Any) -> Network:
        return Other(**vars(super().from_json(value)))


@pytest.fixture
def agreement(monkeypatch: pytest.MonkeyPatch) -> Property:
    """Return a property of agreement over steps of the other kind, registered for the test."""
    monkeypatch.setitem(KINDS, "other", Others())
    monkeypatch.setitem(models.KINDS, "other", models.KINDS["perceptron"])
    (one,) = (one for one in PROPERTIES if one.name == "scores-secant-start")
    query = Query("scores", {"slope": "secant", "gradient": "start"})
    drawn = cases(query, model="other")
    return Property("others", one.sentence, one.equation, one.kind, one.function, drawn, one.check)


def test_steps_of_another_kind_are_drawn_and_checked(agreement: Property) -> None:
    assert all(isinstance(case.step.net, Other) for case in random_cases(agreement, 15, 0))
    (right,) = check(ORACLE, [agreement], shrink_seconds=0)
    assert right.status == "passed"
    for name in ("first-layer-skipped", "bias-dropped", "betas-swapped"):
        (wrong,) = check(BY_NAME[name].implementation(), [agreement], shrink_seconds=0)
        assert wrong.status == "failed", name


def test_a_case_names_its_kind_and_comes_back(agreement: Property) -> None:
    case = random_cases(agreement, 15, 0)[-1]
    written = case_to_json(case.step, case.query)
    assert written["network"]["kind"] == "other"
    back, _ = case_from_json(loads(dumps(written), "text"))
    assert back.net == case.step.net
    assert isinstance(back.net, Other)


def test_a_perceptron_needs_no_kind() -> None:
    (one,) = (one for one in PROPERTIES if one.name == "update")
    case = random_cases(one, 15, 0)[-1]
    written = case_to_json(case.step, case.query)
    assert set(written["network"]) == {"sizes", "activation", "loss", "bias"}  # as in version 1 of the vectors
    named = copy.deepcopy(written)
    named["network"]["kind"] = "perceptron"
    for value in (written, named):
        back, _ = case_from_json(value)
        assert back.net == case.step.net
    named["network"]["kind"] = "unheard of"
    with pytest.raises(CaseError, match="here: kind: got 'unheard of'; needs one of perceptron"):
        case_from_json(named, "here")
