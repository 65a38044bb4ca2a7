"""The contents of the test vectors: they are reproducible, they cover every kind of case, they expose every fault."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamshap.reference.adam import step_coefficients
from adamshap.reference.contract import (
    ACTIVATIONS,
    AUTO,
    GRADIENTS,
    LOSSES,
    MARGINAL_LOSSES,
    MARGINALS,
    REDUCTIONS,
    SLOPES,
    TWO_TERM,
)
from adamshap.reference.models import sample_gradients
from adamshap.reference.slopes import random_order_weight
from adamshap.verify.cases import case_from_json, case_to_json, dumps
from adamshap.verify.faults import AUTO_FAULTS
from adamshap.verify.implementation import FUNCTIONS
from adamshap.verify.models import PERCEPTRON, SEQUENTIAL
from adamshap.verify.models.sequential import LAYERS
from adamshap.verify.oracle import ORACLE, bounds, expected
from adamshap.verify.tolerance import assert_within
from adamshap.verify.vectors import plan_v1, plan_v2
from adamshap.verify.vectors.edition import EDITIONS, SUMS
from adamshap.verify.vectors.folder import Folder, read, write
from adamshap.verify.vectors.making import answered, known_faults, misses
from adamshap.verify.vectors.random_steps import COMPLETED
from adamshap.verify.vectors.refusals import refusals
from adamshap.verify.vectors.reproducing import answered_refusals, disagreements
from adamshap.verify.vectors.vector import Refusal, Vector, vector_to_json

CONTENTS = {version: read(edition.folder) for version, edition in EDITIONS.items()}
OLD, ALL = (sorted(content.vectors, key=lambda vector: vector.seed) for content in CONTENTS.values())
NEW = ALL[len(OLD) :]
AUTOS = [vector for vector in NEW if vector.query.options.get("slope") == AUTO]
BY_FAULT = {fault.name: fault for fault in known_faults(2)}
PARTS = 12
"""Number of tests over which the vectors are spread: one test per function would take from seconds to a minute."""
in_parts = pytest.mark.parametrize("part", range(PARTS))


def of(function: str) -> list[Vector]:
    return [vector for vector in ALL if vector.query.function == function]


# --- reproduced ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("planned", "vectors"), [(plan_v1.planned, OLD), (plan_v2.planned, NEW)], ids=["v1", "v2"])
def test_the_inputs_are_reproduced_to_the_last_bit(planned: Callable[[], Any], vectors: list[Vector]) -> None:
    plans = sorted(planned(), key=lambda plan: plan.seed)
    assert [(plan.name, plan.seed) for plan in plans] == [(vector.name, vector.seed) for vector in vectors]
    for plan, vector in zip(plans, vectors, strict=True):
        assert dumps(case_to_json(plan.step, plan.query)) == dumps(case_to_json(vector.step, vector.query)), plan.name


def test_version_2_takes_over_version_1() -> None:
    for old, new in zip(OLD, ALL, strict=False):
        as_old = replace(new, exposes=old.exposes)
        assert dumps(vector_to_json(as_old, 1)) == dumps(vector_to_json(old, 1))
        assert set(old.exposes) <= set(new.exposes)
        assert new.flag == "valid"


def test_the_oracle_reproduces_every_answer() -> None:
    assert disagreements(ALL) == []


@in_parts
def test_the_answers_are_also_within_bounds_measured_again(part: int) -> None:
    """Bounds are spreads of rounding errors, which differ between machines; the answers must be within both.

    Every third vector: each takes dozens of the oracle's answers.
    """
    for vector in ALL[part :: 3 * PARTS]:
        again, bound = (
            ask(vector.step, vector.query, *more) for ask, more in ((expected, ()), (bounds, (np.float64,)))
        )
        for name, array in vector.expected.items():
            assert bound[name].shape == vector.bound[name].shape
            assert_within(array, again[name], bound[name], f"{vector.name}, {name}")


def test_a_wrong_answer_is_reported() -> None:
    vector = of("scores")[0]
    wrong = {"values": vector.expected["values"] + 2 * vector.bound["values"]}
    (sentence,) = disagreements([replace(vector, expected=wrong), *ALL[1:3]])
    assert sentence.startswith("scores-000, values[")
    (sentence,) = disagreements([replace(vector, expected={"values": np.zeros(vector.step.n + 1)})])
    assert "names or shapes" in sentence


@pytest.mark.parametrize("version", EDITIONS)
def test_what_is_written_is_what_is_made(tmp_path: Path, version: int) -> None:
    planned = (plan_v1 if version == 1 else plan_v2).planned()
    few, content = list(planned)[::57], CONTENTS[version]
    faults = [BY_FAULT[name] for name in ("sign", "betas-swapped")]
    made = Folder(content.edition, list(answered(few, faults)), content.refusals, content.faults, content.variants)
    write(tmp_path / "new", made)
    by_name = {vector.name: vector for vector in ALL}
    for vector in read(tmp_path / "new").vectors:
        committed = by_name[vector.name]
        assert dumps(case_to_json(vector.step, vector.query)) == dumps(case_to_json(committed.step, committed.query))
        assert set(vector.exposes) == {"sign", "betas-swapped"} & set(committed.exposes)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {*content.edition.files, SUMS}


# --- coverage --------------------------------------------------------------------------------------------------------


def test_the_vectors_are_many() -> None:
    assert len(OLD) >= 300
    assert len(NEW) >= 300
    assert len(CONTENTS[2].refusals) >= 30


def test_every_kind_of_case_is_covered_in_version_1() -> None:
    def seen(of: Callable[[Any], Any], function: str | None = None) -> set[Any]:
        return {of(vector) for vector in OLD if function in (None, vector.query.function)}

    for function in (*FUNCTIONS, None):
        assert seen(lambda v: (v.step.net.activation, v.step.net.loss), function) == {
            (activation, loss) for activation in ACTIVATIONS for loss in LOSSES
        }
        assert seen(lambda v: (v.step.net.bias, v.step.reduction), function) == {
            (bias, reduction) for bias in (True, False) for reduction in REDUCTIONS
        }
        assert seen(lambda v: v.step.n_val, function) == {1, 2, 3, 4}
        assert seen(lambda v: v.step.net.depth, function) == {1, 2, 3}
        assert seen(lambda v: v.step.adam.betas[0] == 0, function) == {True, False}
        assert seen(lambda v: v.step.adam.weight_decay == 0, function) == {True, False}
        assert seen(lambda v: v.step.adam.eps_root == 0, function) == {True, False}
        assert {1, 7} <= seen(lambda v: v.step.n, function) or function == "marginals"
    assert seen(lambda v: v.step.state.step) == {0, *COMPLETED}
    assert seen(lambda v: (v.query.options["slope"], v.query.options["gradient"]), "scores") == {
        (slope, gradient) for slope in (*SLOPES, TWO_TERM) for gradient in GRADIENTS
    }
    for option in ("efficient", "per_validation"):
        assert seen(lambda v, option=option: (v.query.options["slope"], v.query.options[option]), "scores") == {
            (slope, flag) for slope in (*SLOPES, TWO_TERM) for flag in (True, False)
        }
    assert seen(lambda v: v.query.options["denominator"], "scores") == {"exact", "previous"}
    assert len(seen(lambda v: v.query.options["nodes"], "scores")) == 6
    assert seen(lambda v: v.query.options.get("kind"), "scores") == {None, *MARGINALS}
    assert seen(lambda v: (v.query.options["kind"], v.query.options["loss"]), "marginals") == {
        (kind, loss) for kind in MARGINALS for loss in MARGINAL_LOSSES
    }
    shares = seen(lambda v: v.query.options["coalition"].mean(), "utility")
    assert {0.0, 1.0} < shares
    zeros = seen(lambda v: any((v_i == 0).any() for v_i in v.step.state.v.values()) and v.step.state.step > 0)
    assert zeros == {True, False}


def test_every_layer_is_covered_by_every_function() -> None:
    seen = {(vector.query.function, need) for vector in NEW for need in vector.needs}
    assert set(product(FUNCTIONS, LAYERS)) <= seen


def test_every_slope_meets_every_gradient_in_stacks_of_layers() -> None:
    options = [vector.query.options for vector in NEW if vector.query.function == "scores"]
    assert {(one["slope"], one["gradient"]) for one in options} >= set(product(SLOPES, GRADIENTS))


def weights_of_the_random_order(vector: Vector) -> list[float]:
    """Return λ of each parameter, which is 0 or 1 beyond the thresholds of "auto"."""
    c = step_coefficients(vector.step)
    return [random_order_weight(c[name], x.sum(axis=0)) for name, x in sample_gradients(vector.step).items()]


@pytest.mark.parametrize("kind", [PERCEPTRON, SEQUENTIAL])
def test_auto_is_met_on_both_sides_of_its_thresholds_and_between(kind: str) -> None:
    weights = [weights_of_the_random_order(one) for one in AUTOS if one.step.net.kind == kind]
    assert sum(0 in each for each in weights) >= 4
    assert sum(1 in each for each in weights) >= 4
    assert sum(any(0.1 < weight < 0.9 for weight in each) for each in weights) >= 4
    assert any({0, 1} <= set(each) for each in weights)


def test_auto_is_met_with_every_option() -> None:
    options = [one.query.options for one in AUTOS]
    assert {one["gradient"] for one in options} == set(GRADIENTS)
    assert {(one["efficient"], one["per_validation"]) for one in options} >= {(True, False), (False, True)}
    assert len({tuple(one["nodes"]) for one in options}) > 2
    assert {need for one in AUTOS for need in one.needs} >= {"groups", "schedule", "clip", "l2"}
    assert {one.step.state.step == 0 for one in AUTOS} == {True, False}


def test_perceptrons_alone_expose_every_mistake_in_auto() -> None:
    plain = [one for one in AUTOS if one.needs == (AUTO, PERCEPTRON)]
    assert {name for one in plain for name in one.exposes} >= {fault.name for fault in AUTO_FAULTS}


@pytest.mark.parametrize("version", EDITIONS)
def test_every_fault_is_exposed_and_explained(version: int) -> None:
    content, known = CONTENTS[version], known_faults(version)
    assert {name for vector in content.vectors for name in vector.exposes} == {fault.name for fault in known}
    assert content.faults == {fault.name: {"sentence": fault.sentence, "source": fault.source} for fault in known}


@in_parts
def test_the_faults_that_a_vector_names_fail_it(part: int) -> None:
    """A fault is tried on some of the vectors that name it, and a vector with some of the faults that it names."""
    for number, vector in enumerate(ALL[part::PARTS]):
        few = max(1, len(vector.exposes) // 5)
        for name in vector.exposes[number % few :: few]:
            missed = misses(BY_FAULT[name], vector.step, vector.query, vector.expected, vector.bound)
            assert missed, f"{name} passes {vector.name}"


# --- refusals --------------------------------------------------------------------------------------------------------


def test_the_refusals_are_reproduced() -> None:
    assert CONTENTS[2].refusals == list(refusals())


@pytest.mark.parametrize("one", list(refusals()), ids=lambda one: one.name)
def test_the_oracle_refuses_for_the_reason_given(one: Refusal) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        ORACLE.ask(*case_from_json(one.case))
    assert any(part in str(caught.value) for part in WORDS.get(one.name, (one.field.rpartition(".")[2],)))


WORDS = {
    "must_refuse-amsgrad": ("amsgrad",),
    "must_refuse-group-missing": ("in no group",),
    "must_refuse-moment-missing": ("AdamState.v",),
    "must_refuse-no-validation": ("Batch.x",),
    "must_refuse-heads": ("Attention.heads",),
    "must_refuse-samples-interact": ("batch_norm",),
    "must_refuse-groups": ("Conv2d.groups",),
    "must_refuse-stride-zero": ("Conv2d.stride",),
}
"""Words of the message, where it does not repeat the field's last name."""


def test_an_answered_refusal_is_reported() -> None:
    right = Refusal("must_refuse-nothing", case_to_json(ALL[0].step, ALL[0].query), "none", "nothing is wrong")
    assert answered_refusals([right]) == ["must_refuse-nothing: the oracle answers it, although nothing is wrong"]
