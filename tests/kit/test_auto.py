"""The slope "auto" in the kit: its property, and mistakes in when the random order is needed."""

from dataclasses import replace

import pytest

from adamshap.verify.checking import check
from adamshap.verify.diagnosis import diagnose
from adamshap.verify.faults import AUTO_FAULTS, Fault
from adamshap.verify.mutation import first_catch
from adamshap.verify.oracle import ORACLE
from adamshap.verify.properties import PROPERTIES

OWN = [one for one in PROPERTIES if "auto" in one.features]


@pytest.mark.parametrize("fault", AUTO_FAULTS, ids=lambda fault: fault.name)
def test_every_mistake_is_caught_and_named(fault: Fault) -> None:
    catch = first_catch(fault, OWN)
    assert catch.outcome is not None, f"{fault.name} passes every property"
    diagnosis = diagnose(fault.implementation(), [replace(catch.outcome, evidence=catch.outcome.evidence[:6])])
    assert diagnosis is not None
    assert fault.name in diagnosis.faults, diagnosis.sentence


def test_a_candidate_that_does_not_declare_it_is_not_asked() -> None:
    plain = replace(ORACLE, supports=ORACLE.supports - {"auto"})
    assert [one.status for one in check(ORACLE, OWN, shrink_seconds=0)] == ["passed"]
    assert [one.status for one in check(plain, OWN, shrink_seconds=0)] == ["not tried"]
