"""Every known mistake in layers is caught on the quick profile, named, and without effect on perceptrons."""

from functools import cache

import numpy as np
import pytest

from adamshap.verify.diagnosis import diagnose
from adamshap.verify.faults import BY_NAME, FAULTS, LAYER_FAULTS, Fault
from adamshap.verify.implementation import Query, answer
from adamshap.verify.layers.properties import LAYER_PROPERTIES
from adamshap.verify.mutation import first_catch
from adamshap.verify.oracle import ORACLE
from adamshap.verify.properties import PROPERTIES
from adamshap.verify.random_cases import random_cases

every_fault = pytest.mark.parametrize("fault", LAYER_FAULTS, ids=lambda fault: fault.name)


@every_fault
def test_every_fault_of_layers_is_caught_and_named(fault: Fault) -> None:
    catch = first_catch(fault, LAYER_PROPERTIES)
    assert catch.outcome is not None, f"{fault.name} passes every property"
    assert catch.outcome.finding is not None
    diagnosis = diagnose(fault.implementation(), [catch.outcome])
    assert diagnosis is not None
    assert fault.name in diagnosis.faults, diagnosis.sentence
    assert not diagnosis.together


@cache
def of_perceptrons() -> tuple[tuple[object, Query, dict[str, np.ndarray]], ...]:  # type: ignore[type-arg]
    (one,) = (one for one in PROPERTIES if one.name == "update")
    queries = Query("update"), Query("influence"), Query("scores", {"slope": "random_order"})
    steps = [case.step for case in random_cases(one, 15, 0)[-4:]]
    return tuple((step, query, answer(ORACLE, step, query)) for step in steps for query in queries)


@every_fault
def test_answers_for_perceptrons_stay_right(fault: Fault) -> None:
    """So the vectors v1 cannot expose these faults, and need not: vectors of stacks of layers do."""
    for step, query, right in of_perceptrons():
        wrong = answer(fault.implementation(), step, query)  # type: ignore[arg-type]
        assert all(np.array_equal(wrong[name], array) for name, array in right.items())


def test_the_catalogue_of_layers_is_well_formed() -> None:
    names = {fault.name for fault in LAYER_FAULTS}
    assert len(names) == len(LAYER_FAULTS) >= 30
    assert not names & set(BY_NAME)
    assert all(fault.sentence and fault.source for fault in LAYER_FAULTS)
    assert len({fault.sentence for fault in (*FAULTS, *LAYER_FAULTS)}) == len(FAULTS) + len(LAYER_FAULTS)
