"""Every known mistake with groups, schedules, clipping and L2 decay is caught on the quick profile, and named."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from adamshap.verify.checking import Outcome, check
from adamshap.verify.diagnosis import diagnose
from adamshap.verify.faults import BY_NAME, FAULTS, LAYER_FAULTS, LOOP_FAULTS, Fault
from adamshap.verify.implementation import Query, answer
from adamshap.verify.mutation import first_catch
from adamshap.verify.optimisers import FEATURES, features_of
from adamshap.verify.optimisers.properties import OPTIMISER_PROPERTIES
from adamshap.verify.oracle import ORACLE
from adamshap.verify.properties import PROPERTIES
from adamshap.verify.random_cases import random_cases

every_fault = pytest.mark.parametrize("fault", LOOP_FAULTS, ids=lambda fault: fault.name)
VISIBLE_WITH_PLAIN_ADAM = "decay-as-l2"


def named(fault: Fault, outcome: Outcome) -> None:
    diagnosis = diagnose(fault.implementation(), [replace(outcome, evidence=outcome.evidence[:6])])
    assert diagnosis is not None
    assert fault.name in diagnosis.faults, diagnosis.sentence
    assert not diagnosis.together


@every_fault
def test_every_fault_is_caught_and_named(fault: Fault) -> None:
    feature = fault.name.split("-")[0]  # its own properties come before those of all features together
    own = [one for one in OPTIMISER_PROPERTIES if feature not in FEATURES or feature in one.features]
    catch = first_catch(fault, own)
    assert catch.outcome is not None, f"{fault.name} passes every property"
    named(fault, catch.outcome)


@cache
def of_plain_steps() -> tuple[tuple[object, Query, dict[str, np.ndarray]], ...]:  # type: ignore[type-arg]
    (one,) = (one for one in PROPERTIES if one.name == "update")
    queries = Query("update"), Query("influence"), Query("scores", {"slope": "random_order"})
    steps = [case.step for case in random_cases(one, 15, 0)[-4:]]
    return tuple((step, query, answer(ORACLE, step, query)) for step in steps for query in queries)


@pytest.mark.parametrize(
    "fault", [one for one in LOOP_FAULTS if one.name != VISIBLE_WITH_PLAIN_ADAM], ids=lambda fault: fault.name
)
def test_answers_for_plain_steps_stay_right(fault: Fault) -> None:
    """So the vectors v1 cannot expose these faults, and need not."""
    for step, query, right in of_plain_steps():
        wrong = answer(fault.implementation(), step, query)  # type: ignore[arg-type]
        assert all(np.array_equal(wrong[name], array) for name, array in right.items())


def test_decoupled_decay_as_l2_is_named_with_plain_adam_too() -> None:
    (fault,) = (one for one in LOOP_FAULTS if one.name == VISIBLE_WITH_PLAIN_ADAM)
    (outcome,) = check(fault.implementation(), [one for one in PROPERTIES if one.name == "update"], shrink_seconds=0)
    assert outcome.status == "failed"
    named(fault, outcome)


@pytest.mark.parametrize("name", ["betas-swapped", "no-bias-correction", "decay-left-out", "v-of-per-sample-squares"])
def test_a_mistake_of_plain_adam_is_named_with_other_optimisers_too(name: str) -> None:
    fault = BY_NAME[name]
    properties = [one for one in OPTIMISER_PROPERTIES if one.name in ("together-update", "groups-update")]
    failed = [one for one in check(fault.implementation(), properties, shrink_seconds=0) if one.status == "failed"]
    assert failed
    assert any(features_of(case.step.adam) for case in failed[0].evidence)
    named(fault, failed[0])


def test_the_catalogue_of_loops_is_well_formed() -> None:
    names = {fault.name for fault in LOOP_FAULTS}
    others = (*FAULTS, *LAYER_FAULTS)
    assert len(names) == len(LOOP_FAULTS) >= 30
    assert not names & {fault.name for fault in others}
    assert all(fault.sentence and fault.source for fault in LOOP_FAULTS)
    assert len({fault.sentence for fault in (*others, *LOOP_FAULTS)}) == len(others) + len(LOOP_FAULTS)
