"""Every known mistake is caught on the quick profile, and called by its name."""

import pytest

from adamshap.verify.checking import check
from adamshap.verify.diagnosis import diagnose
from adamshap.verify.faults import BY_NAME, FAULTS, Fault
from adamshap.verify.implementation import FUNCTIONS, Implementation
from adamshap.verify.mutation import first_catch
from adamshap.verify.oracle import ORACLE
from adamshap.verify.properties import PROPERTIES


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_is_caught_and_named(fault: Fault) -> None:
    catch = first_catch(fault)
    assert catch.outcome is not None, f"{fault.name} passes every property"
    assert catch.outcome.finding is not None
    diagnosis = diagnose(fault.implementation(), [catch.outcome])
    assert diagnosis is not None
    assert fault.name in diagnosis.faults, diagnosis.sentence
    assert not diagnosis.together


def test_the_catalogue_is_well_formed() -> None:
    assert len(BY_NAME) == len(FAULTS) >= 40
    assert all(fault.sentence and fault.source for fault in FAULTS)
    assert len({fault.sentence for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize(
    ("one", "two"), [("betas-swapped", "bias-dropped"), ("no-bias-correction", "first-layer-skipped")]
)
def test_two_mistakes_at_once_are_both_named(one: str, two: str) -> None:
    ask = BY_NAME[two].wrap(BY_NAME[one].wrap(ORACLE.ask))
    candidate = Implementation("both", frozenset(FUNCTIONS), ask)
    properties = [p for p in PROPERTIES if p.name in ("scores-secant-start", "scores-tangent-midpoint")]
    diagnosis = diagnose(candidate, check(candidate, properties, shrink_seconds=0))
    assert diagnosis is not None
    assert diagnosis.together
    assert set(diagnosis.faults) == {one, two}, diagnosis.sentence


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (lambda step: -step.n, "−n (sign, and sum for mean)"),
        (lambda step: 1 / step.n, "1/n (mean for sum)"),
        (lambda step: 0.25, "0.25"),
    ],
)
def test_a_global_factor_is_named(factor: object, says: str) -> None:
    candidate = Implementation(
        "scaled", frozenset({"scores"}), lambda step, query: factor(step) * ORACLE.ask(step, query)
    )
    properties = [p for p in PROPERTIES if p.name.startswith("scores-secant")]
    diagnosis = diagnose(candidate, check(candidate, properties, shrink_seconds=0))
    assert diagnosis is not None
    assert says in diagnosis.sentence


def test_an_unknown_mistake_is_not_given_a_name() -> None:
    candidate = Implementation("odd", frozenset({"influence"}), lambda step, query: ORACLE.ask(step, query) ** 3 + 1)
    properties = [p for p in PROPERTIES if p.name == "influence"]
    diagnosis = diagnose(candidate, check(candidate, properties, shrink_seconds=0), seconds=1)
    assert diagnosis is not None
    assert diagnosis.faults == ()
    assert "no known mistake" in diagnosis.sentence
