"""What others wrote, under the kit: what docs/findings.md says of each, so that it is seen when it is no longer true.

dattri-llm is the extra `others`; LESS and GhostSuite are no packages, and are read from checkouts that the environment
variables ``ADAMSHAP_LESS`` and ``ADAMSHAP_GHOSTSUITE`` name.
"""

import importlib
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adamshap import reference
from adamshap.reference import Adam, AdamState, Batch, Network, Step
from adamshap.verify.checking import Outcome, check
from adamshap.verify.diagnosis import diagnose
from adamshap.verify.implementation import Implementation, Query, implementation
from adamshap.verify.properties import PROPERTIES, Case, cases

pytest.importorskip("torch", reason="extra `peers`: torch")

BY_NAME = {one.name: one for one in PROPERTIES}


def outcome_of(candidate: Implementation, name: str, strategy: Any = None) -> Outcome:
    one = BY_NAME[name] if strategy is None else replace(BY_NAME[name], cases=strategy)
    (outcome,) = check(candidate, [one], dtype=np.float32, shrink_seconds=5, timeout=None)
    return outcome


@pytest.fixture
def dattri_llm() -> Any:
    pytest.importorskip("dattri_llm", reason="extra `others`: dattri-llm")
    return importlib.import_module("peer_dattri_llm")


def checkout(variable: str, module: str) -> Any:
    if variable not in os.environ:
        pytest.skip(f"{variable} names no checkout")
    return importlib.import_module(module)


def test_the_preconditioning_of_dattri_llm_is_right(dattri_llm: Any) -> None:
    outcome = outcome_of(implementation(dattri_llm, "dattri-llm"), "marginals-first-first_order")
    assert outcome.status == "passed", outcome.finding


def test_the_influence_of_dattri_llm_is_right_once_there_is_a_second_moment(dattri_llm: Any) -> None:
    later = cases(Query("influence"), kinds=("ordinary",))
    outcome = outcome_of(implementation(dattri_llm, "dattri-llm"), "influence", later)
    assert outcome.status == "passed", outcome.finding


def test_the_influence_of_dattri_llm_cancels_at_the_first_step(dattri_llm: Any) -> None:
    outcome = outcome_of(implementation(dattri_llm, "dattri-llm"), "influence")
    assert outcome.finding is not None
    assert outcome.finding.case.step.state.step == 0
    net, zero = Network((1, 1), "identity", "mse", bias=False), {"0.weight": np.zeros((1, 1), np.float32)}
    batch = Batch(np.array([[1.0]], np.float32), np.array([[10.0]], np.float32))
    step = Step(net, zero, Adam(), AdamState.zeros(zero), batch, batch)
    assert dattri_llm.influence(step)[0] > 100 * reference.influence(step)[0]


def with_default_settings(case: Case) -> Case:
    return replace(case, step=replace(case.step, adam=Adam()))


def test_less_puts_eps_inside_the_root_and_leaves_bias_correction_out() -> None:
    candidate = implementation(checkout("ADAMSHAP_LESS", "peer_less"), "LESS")
    strategy = cases(Query("marginals", {"kind": "first", "loss": "first_order"})).map(with_default_settings)
    outcome = outcome_of(candidate, "marginals-first-first_order", strategy)
    assert outcome.status == "failed"
    diagnosis = diagnose(candidate, [outcome], dtype=np.float32)
    assert diagnosis is not None
    assert set(diagnosis.faults) == {"eps-inside-root", "no-bias-correction"}, diagnosis.sentence
    assert diagnosis.together


def test_ghostsuite_sums_separately_where_it_forms_gradients() -> None:
    torch = importlib.import_module("torch")
    dot_products = checkout("ADAMSHAP_GHOSTSUITE", "peer_ghostsuite").dot_products
    ones = torch.ones(3, 1, 1)
    for n_val, wanted, got in ((1, [1.0, 1.0], [1.0, 1.0]), (2, [2.0], [4.0])):
        values, ghost = dot_products(ones, ones, n_val)
        assert not ghost
        assert values.tolist() == got
        assert (values.tolist() == wanted) == (n_val == 1)
