"""Optimisers in the kit: their draws, their JSON, a second implementation, and mistakes that need no oracle."""

import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy_optimisers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamshap.reference import (
    Adam,
    AdamGroups,
    AdamState,
    Batch,
    Clipped,
    Network,
    Schedule,
    Step,
    influence,
    models,
)
from adamshap.reference.contract import Optimiser
from adamshap.verify.cases import DTYPES, CaseError, case_from_json, case_to_json, dumps, loads
from adamshap.verify.checking import check
from adamshap.verify.faults import LOOP_FAULTS
from adamshap.verify.implementation import Implementation, Query, implementation
from adamshap.verify.optimisers import FEATURES, features_of, members_of, parts_of, rescaled, settings_by_name
from adamshap.verify.optimisers.as_json import optimiser_to_json
from adamshap.verify.optimisers.draws import steps_with
from adamshap.verify.optimisers.properties import OPTIMISER_PROPERTIES
from adamshap.verify.oracle import ORACLE, bounds, expected
from adamshap.verify.process import check_command
from adamshap.verify.properties import in_dtype
from adamshap.verify.random_cases import random_cases
from adamshap.verify.report import Report, to_html
from adamshap.verify.steps import adam_of, perturbed
from adamshap.verify.strategies import steps
from adamshap.verify.tolerance import parameter_count, rounding, unit_roundoff

BY_NAME = {one.name: one for one in OPTIMISER_PROPERTIES}
ALL = steps_with(steps(max_depth=2, max_width=3, max_n=4, max_n_val=2), FEATURES)
SECOND = implementation(numpy_optimisers, "NumPy")

_ROW = Batch(np.ones((1, 1)), np.ones((1, 1)))
SECOND_STEP = Step(
    Network((1, 1), loss="mse", bias=False),
    {"0.weight": np.ones((1, 1))},
    Adam(lr=1e-5),
    AdamState(1, *({"0.weight": np.ones((1, 1))} for _ in "mv")),
    train=_ROW,
    valid=_ROW,
)
"""The second step of a run with the smallest η that is drawn."""


@cache
def drawn(name: str) -> list[Step]:
    return [case.step for seed in range(4) for case in random_cases(BY_NAME[name], 40, seed)]


# --- draws -----------------------------------------------------------------------------------------------------------


def test_every_feature_is_drawn_alone_and_with_the_others() -> None:
    for feature in FEATURES:
        found = [features_of(step.adam) for step in drawn(f"{feature}-update")]
        assert set(found) == {frozenset(), frozenset({feature})}
        assert sum(map(bool, found)) > len(found) / 2
    together = [features_of(step.adam) for step in drawn("together-update")]
    assert frozenset(FEATURES) in together
    assert len(set(together)) > 6


@given(steps_with(st.just(SECOND_STEP), ("schedule",)))
@settings(max_examples=500)
def test_scheduled_learning_rates_are_zero_or_normal_numbers_of_float32(step: Step) -> None:
    lr = adam_of(step).lr
    assert lr == 0 or lr >= np.finfo(np.float32).smallest_normal


def test_clipping_is_drawn_below_at_and_beyond_the_norm() -> None:
    factors, eps = [], set()
    for step in drawn("clip-update"):
        if isinstance(step.adam, Clipped):
            x = models.unclipped_gradients(step)
            factors.append(models.clip_factor(step.adam, {name: x_i.sum(axis=0) for name, x_i in x.items()}))
            eps.add(step.adam.eps)
    assert eps == {0.0, 1e-6}
    assert min(factors) < 1e-5
    assert any(0.4 < c < 0.6 for c in factors)
    assert factors.count(1.0) > 5
    at_the_norm = [step for step in drawn("clip-update") if isinstance(step.adam, Clipped) and _at_the_norm(step)]
    assert at_the_norm


def _at_the_norm(step: Step) -> bool:
    assert isinstance(step.adam, Clipped)
    squares = sum(float((x_i.sum(axis=0) ** 2).sum()) for x_i in models.unclipped_gradients(step).values())
    distance = abs(np.sqrt(squares) + step.adam.eps - step.adam.norm)
    return bool(distance <= rounding(step.adam.norm, parameter_count(step)))


def test_groups_are_drawn_of_every_layout() -> None:
    groups = [step.adam for step in drawn("groups-update") if isinstance(step.adam, AdamGroups)]
    assert {len(one.groups) for one in groups} >= {1, 2, 3}
    assert {one.default is None for one in groups} == {True, False}
    settings_ = [adam for one in groups for adam in parts_of(one).all_settings]
    for field in ("lr", "betas", "eps", "eps_root", "weight_decay"):
        assert len({getattr(adam, field) for adam in settings_}) > 3
    assert any(adam.lr == 0 for adam in settings_)


def test_schedules_are_drawn_at_all_their_places() -> None:
    factors = []
    for step in drawn("schedule-update"):
        if isinstance(step.adam, Schedule):
            factors.append((step.adam.shape, step.adam.factor(step.state.next_step), step.adam.warmup))
    assert {shape if isinstance(shape, str) else "given" for shape, _, _ in factors} == {
        "constant",
        "linear",
        "cosine",
        "given",
    }
    assert any(factor == 0 for _, factor, _ in factors)
    assert any(0 < factor < 1 for shape, factor, _ in factors if shape == "cosine")


def test_l2_is_drawn_small_large_and_cancelling() -> None:
    steps_ = [step for step in drawn("l2-update") if adam_of(step).l2]
    sizes = [adam_of(step).l2 for step in steps_]
    assert min(sizes) < 1e-3
    assert max(sizes) > 1
    assert any(_cancels(step) for step in steps_)


def _cancels(step: Step) -> bool:
    l2, g = adam_of(step).l2, models.batch_gradient(step)
    parts = np.concatenate([np.stack([l2 * p.ravel(), g[name].ravel()]) for name, p in step.params.items()], axis=1)
    sums = np.abs(parts.sum(axis=0))
    return bool((sums[parts.any(axis=0)] < 0.002 * np.abs(parts).max(axis=0)[parts.any(axis=0)]).any())


@pytest.mark.parametrize("feature", [*FEATURES, "together"])
def test_a_failing_case_shrinks_to_plain_adam(feature: str) -> None:
    doubled = replace(ORACLE, name="doubled", ask=lambda step, query: 2 * ORACLE.ask(step, query) + 1)
    (outcome,) = check(doubled, [BY_NAME[f"{feature}-influence"]], shrink_seconds=2)
    assert outcome.finding is not None
    assert isinstance(outcome.finding.case.step.adam, Adam)
    assert not features_of(outcome.finding.case.step.adam)


@given(ALL)
def test_a_drawn_step_reaches_another_process(step: Step) -> None:
    """Isolated candidates get pickled steps."""
    assert pickle.loads(pickle.dumps(step)).adam == step.adam
    assert pickle.loads(pickle.dumps(replace(step, adam=rescaled(step.adam, 2.0)))).adam == rescaled(step.adam, 2.0)


# --- JSON ------------------------------------------------------------------------------------------------------------


@given(ALL, st.sampled_from(DTYPES))
def test_an_optimiser_comes_back_from_json(step: Step, dtype: str) -> None:
    step = in_dtype(step, dtype)
    text = dumps(case_to_json(step, Query("update")))
    back, query = case_from_json(loads(text, "text"))
    assert settings_by_name(back) == settings_by_name(step)
    assert features_of(back.adam) == features_of(step.adam)
    assert parts_of(back.adam).clip is None or isinstance(step.adam, Clipped)
    if isinstance(step.adam, Clipped) and isinstance(back.adam, Clipped):
        assert (back.adam.norm, back.adam.eps) == (step.adam.norm, step.adam.eps)
    assert dumps(case_to_json(back, query)) == text


PLAIN, DECAYED = Adam(0.1, weight_decay=0.01), Adam(0.2, l2=0.5)
GROUPS = AdamGroups((("*.bias", PLAIN), (("1.weight", "0.weight"), DECAYED)))
NAMES = ("0.weight", "0.bias", "1.weight")


def test_one_plain_adam_is_written_as_before() -> None:
    written = optimiser_to_json(PLAIN, NAMES)
    assert list(written) == ["adam"]
    assert list(written["adam"]) == ["lr", "betas", "eps", "eps_root", "weight_decay"]


def test_every_part_is_written_in_full() -> None:
    written = optimiser_to_json(Clipped(Schedule(GROUPS, "cosine", 3, 9, 0.1), 1.0), NAMES)["optimizer"]
    assert written["adam"] is None
    assert [group["params"] for group in written["groups"]] == [["0.bias"], ["0.weight", "1.weight"]]
    assert written["groups"][1]["adam"]["l2"] == 0.5
    assert written["schedule"] == {"shape": "cosine", "warmup": 3, "steps": 9, "floor": 0.1}
    assert written["clip"] == {"norm": 1.0, "eps": 1e-6}
    assert members_of(GROUPS, NAMES) == [["0.bias"], ["0.weight", "1.weight"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.pop("clip"), "optimizer: got the names adam, groups, schedule; needs exactly"),
        (lambda one: one.update(adam=None), "optimizer.adam: got null without groups; needs settings"),
        (lambda one: one.update(groups={}), "optimizer.groups: got {}; needs a list"),
        (lambda one: one.update(groups=[{"params": "0.bias", "adam": {}}]), r"optimizer.groups\[0\].params: got"),
        (lambda one: one["adam"].pop("l2"), "optimizer.adam: got the names lr, betas"),
        (lambda one: one.update(clip={"norm": 0.0, "eps": 0.0}), "Clipped.norm: got 0.0"),
        (lambda one: one.update(schedule={"shape": "up", "warmup": 0, "steps": 1, "floor": 0.0}), "Schedule.shape"),
    ],
)
def test_json_that_is_no_optimiser_is_refused(change: Callable[[Any], Any], message: str) -> None:
    step = next(one for one in drawn("l2-update") if adam_of(one).l2)
    written = case_to_json(step, Query("update"))
    change(written["optimizer"])
    with pytest.raises(CaseError, match=message):
        case_from_json(written)


def test_both_forms_at_once_are_refused() -> None:
    written = case_to_json(drawn("l2-update")[-1], Query("update"))
    both = {"adam": {}, "optimizer": {}} | written
    with pytest.raises(CaseError, match="needs exactly the names"):
        case_from_json(both)


# --- declarations ----------------------------------------------------------------------------------------------------


def test_what_a_candidate_does_not_declare_is_not_tried() -> None:
    calls: list[Step] = []

    def ask(step: Step, query: Query) -> Any:
        calls.append(step)
        return ORACLE.ask(step, query)

    silent = Implementation("plain Adam", ORACLE.offers, ask, ORACLE.extras)
    outcomes = check(silent, OPTIMISER_PROPERTIES)
    assert {one.status for one in outcomes} <= {"not tried", "not offered"}
    assert not calls
    page = to_html(Report("mine", "quick", "float64", 0, outcomes, None))
    assert "Not tried, as SUPPORTS does not name all of them: optimisers with clip, groups, l2, schedule" in page
    clips = replace(silent, supports=frozenset({"clip"}))
    tried = {one.property.name for one in check(clips, OPTIMISER_PROPERTIES, profile="once") if one.status == "passed"}
    assert tried == {one.name for one in OPTIMISER_PROPERTIES if one.features == {"clip"}}
    assert {feature for step in calls for feature in features_of(step.adam)} <= {"clip"}


PROGRAM = """
import json, sys
cases = json.load(open(sys.argv[1], encoding="utf-8"))
written = ["clipped" if "optimizer" in case and case["optimizer"]["clip"] else "plain" for case in cases]
json.dump([{"unsupported": one} for one in written], open(sys.argv[2], "w", encoding="utf-8"))
"""


def test_a_command_gets_the_optimisers_that_it_declares(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PROGRAM, encoding="utf-8")
    command = f"{sys.executable} {tmp_path / 'mine.py'} {{case}} {{result}}"
    properties = [BY_NAME["clip-influence"], BY_NAME["l2-influence"]]
    _, (clip, l2) = check_command(command, properties, supports=frozenset({"clip"}))
    assert {reason for reason, _ in clip.unsupported} == {"clipped", "plain"}
    assert (l2.status, l2.undeclared) == ("not tried", True)


# --- a second implementation, and bounds -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_second_implementation_gives_no_false_alarm(dtype: str) -> None:
    outcomes = check(SECOND, OPTIMISER_PROPERTIES, dtype=dtype, seed=1, shrink_seconds=0)
    assert [(one.property.name, one.finding) for one in outcomes if one.status == "failed"] == []
    passed = [one for one in outcomes if one.status == "passed"]
    assert len(passed) > 35
    assert max(one.share for one in passed) > 1e-3  # it computes by itself


def test_the_bound_covers_the_rounding_of_the_norm() -> None:
    """The factor is common to all contributions, so an error in it is no random change of them."""
    (step,) = [one for one in drawn("clip-update") if isinstance(one.adam, Clipped) and one.adam.norm < 1e-2][:1]
    assert isinstance(step.adam, Clipped)
    count = sum(p.size for p in step.params.values())
    off = replace(step.adam, norm=step.adam.norm * (1 + np.sqrt(count) / 2 * unit_roundoff("float32")))
    query = Query("scores", {"slope": "sgd", "gradient": "start"})
    right, wrong = expected(step, query), expected(replace(step, adam=off), query)
    assert (np.abs(wrong["values"] - right["values"]) <= bounds(step, query, np.float32)["values"]).all()


def test_the_bound_covers_the_rounding_of_a_schedule_near_its_end() -> None:
    """(1 + cos π)/2 is 0, and cos² (π/2) is not."""
    step = next(one for one in drawn("clip-update") if isinstance(one.adam, Adam) and influence(one).any())
    adam = adam_of(step)
    ended = replace(step, adam=Schedule(adam, "cosine", 0, 1), state=replace(step.state, step=5))
    barely = replace(ended, adam=replace(adam, lr=adam.lr * np.cos(np.pi / 2) ** 2))
    query = Query("influence")
    right, other, bound = expected(ended, query), expected(barely, query), bounds(ended, query, np.float64)
    assert not right["values"].any()
    assert other["values"].any()
    assert (np.abs(other["values"]) <= bound["values"]).all()
    generator = np.random.default_rng(0)
    assert perturbed(step, 1e-8, generator).adam is step.adam


# --- mistakes that need no oracle ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("groups-by-sorted-names", "groups-renamed"),
        ("settings-of-the-first-group", "groups-split"),
        ("schedule-left-out", "schedule-factor"),
        ("clip-always", "clip-beyond-the-norm"),
        ("clip-left-out", "clip-scales"),
        ("clip-by-the-sum", "clip-scales"),
        ("l2-charged-to-samples", "l2-sgd"),
        ("l2-charged-to-samples", "l2-null-sample"),
        ("clip-eps-of-pytorch", "together-rescaling"),
    ],
)
def test_a_mistake_is_seen_without_an_oracle(fault: str, name: str) -> None:
    (one,) = (one for one in LOOP_FAULTS if one.name == fault)
    (outcome,) = check(one.implementation(), [BY_NAME[name]], shrink_seconds=0)
    assert outcome.status == "failed"


def test_groups_that_are_read_as_a_mapping_by_position_are_seen_without_an_oracle() -> None:
    """One group of all parameters: a candidate that pairs groups with parameters leaves out the rest."""

    def ask(step: Step, query: Query) -> Any:
        adam: Optimiser = step.adam
        if isinstance(adam, AdamGroups):
            first = next(iter(step.params))
            rest = Adam(lr=0.0)
            adam = AdamGroups(((first, adam.groups[0][1]),), rest)
        return ORACLE.ask(replace(step, adam=adam), query)

    (outcome,) = check(replace(ORACLE, ask=ask), [BY_NAME["groups-of-one"]], shrink_seconds=0)
    assert outcome.status == "failed"


@settings(max_examples=20)
@given(ALL)
def test_a_common_factor_of_all_gradient_sizes_leaves_the_step(step: Step) -> None:
    """`rescaled`: the oracle's update of a loss 4 times as large, with m and √v as large, moves θ alike."""
    four = replace(step, reduction="mean", train=step.train.take(np.zeros(4, int)))
    state = replace(
        four.state, m={name: 4 * m for name, m in four.state.m.items()}, v={k: 16 * v for k, v in four.state.v.items()}
    )
    larger = replace(four, reduction="sum", state=state, adam=rescaled(four.adam, 4.0))
    query = Query("update")
    right, other, bound = expected(four, query), expected(larger, query), bounds(four, query, np.float64)
    for name in step.params:
        key = f"params.{name}"
        assert (np.abs(right[key] - other[key]) <= 4 * bound[key]).all()
