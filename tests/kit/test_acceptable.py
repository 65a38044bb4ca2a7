"""Acceptable variants are recognised within their own bounds and reported by name, and never excuse a mistake."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from adamshap.reference import Adam, Step
from adamshap.verify.acceptable import ACCEPTABLE, BY_NAME, variants_in
from adamshap.verify.candidates.variants import Variant, plain, scalars_in_dtype
from adamshap.verify.checking import Outcome, check
from adamshap.verify.faults import BY_NAME as FAULTS
from adamshap.verify.faults.fault import sees
from adamshap.verify.implementation import Implementation, implementation
from adamshap.verify.oracle import ORACLE
from adamshap.verify.properties import PROPERTIES
from adamshap.verify.property_checks import WITH_THE_ORACLE
from adamshap.verify.random_cases import random_cases
from adamshap.verify.report import Report, show, to_html
from adamshap.verify.steps import adam_of

VARIANT = BY_NAME["adam-scalars-in-float32"]
FOLLOWED = ("update", "scores-frozen-midpoint", "scores-tangent-start")
"""Properties whose cases of these seeds show float32's scalars."""

SEEDS = {"update": 2, "scores-frozen-midpoint": 1, "scores-tangent-start": 1, "sgd-limit": 1}
CHOSEN = [one for one in PROPERTIES if one.name in SEEDS]


def outcomes_of(candidate: Implementation, dtype: str = "float32") -> list[Outcome]:
    return [
        outcome
        for one in CHOSEN
        for outcome in check(candidate, [one], dtype=dtype, seed=SEEDS[one.name], shrink_seconds=0)
    ]


def statuses(candidate: Implementation, dtype: str = "float32") -> list[str]:
    return [outcome.status for outcome in outcomes_of(candidate, dtype)]


@cache
def followed() -> tuple[Outcome, ...]:
    return tuple(outcomes_of(implementation(scalars_in_dtype, "mine")))


def test_scalars_in_float32_are_acceptable() -> None:
    found = {outcome.property.name: outcome for outcome in followed()}
    assert {name for name, outcome in found.items() if outcome.status == "acceptable"} == set(FOLLOWED)
    assert found["sgd-limit"].status == "passed"
    for name in FOLLOWED:
        assert found[name].variant is VARIANT
        assert found[name].finding is not None  # the first difference from the method
        assert found[name].share < 0.5  # of the bound that every answer gets: none is wider for the variant


@pytest.mark.parametrize(
    ("candidate", "dtype"), [(plain, "float32"), (plain, "float64"), (scalars_in_dtype, "float64")]
)
def test_scalars_in_the_precision_of_the_settings_pass(candidate: Variant, dtype: str) -> None:
    assert set(statuses(implementation(candidate, "mine"), dtype)) == {"passed"}


def test_for_answers_in_float64_they_are_a_mistake() -> None:
    assert "acceptable" not in statuses(VARIANT.implementation(), "float64")
    assert "failed" in statuses(VARIANT.implementation(), "float64")
    assert variants_in("float64") == []


def wrapped(wrap: Callable[..., Any]) -> Implementation:
    return replace(ORACLE, name="mine", ask=wrap(VARIANT.wrap(ORACLE.ask)))


def other_eta(step: Step) -> Step:
    return replace(step, adam=replace(adam_of(step), lr=adam_of(step).lr * (1 + 1e-4)))


@pytest.mark.parametrize("wrap", [FAULTS["betas-swapped"].wrap, FAULTS["no-bias-correction"].wrap, sees(other_eta)])
def test_they_excuse_no_mistake(wrap: Callable[..., Any]) -> None:
    assert statuses(wrapped(wrap)).count("failed") >= len(FOLLOWED)


def test_a_case_that_the_variant_gets_wrong_is_a_failure() -> None:
    """Half of the answers with scalars in float32, half far off: no single variant explains them."""
    right = implementation(scalars_in_dtype, "mine")

    def ask(step: Step, query: Any) -> Any:
        result = right.ask(step, query)
        return result * 1.5 if query.function == "scores" and step.n % 2 else result

    assert statuses(replace(right, ask=ask)).count("failed") >= 2


def test_the_catalogue_is_well_formed() -> None:
    assert len(BY_NAME) == len(ACCEPTABLE)
    assert not BY_NAME.keys() & FAULTS.keys()
    assert all(one.sentence and one.source for one in ACCEPTABLE)


def test_only_agreement_with_the_oracle_has_variants() -> None:
    assert all((one.check in WITH_THE_ORACLE) == (one.kind == "agreement") for one in CHOSEN)


def test_the_report_names_the_variant_and_its_properties() -> None:
    report = Report("mine", "quick", "float32", 0, followed(), None)
    console = Console(file=io.StringIO(), width=200)
    show(console, report)
    line = "Acceptable: your answers agree with Adam's scalars computed in float32 (adam-scalars-in-float32): "
    for text in (console.file.getvalue(), to_html(report).replace("&#x27;", "'")):  # type: ignore[attr-defined]
        assert line + ", ".join(FOLLOWED) in text
        assert "1 passed, 3 acceptable" in text
    assert report.failed == []


def test_the_command_exits_with_0_and_writes_the_name(tmp_path: Path) -> None:
    target = "adamshap.verify.candidates.variants:scalars_in_dtype"
    options = [
        "--only",
        "update",
        "--dtype",
        "float32",
        "--seed",
        str(SEEDS["update"]),
        "--json",
        str(tmp_path / "report.json"),
    ]
    program = [sys.executable, "-c", "from adamshap.reference.command.main import main; main()", "verify", target]
    result = subprocess.run([*program, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    (found,) = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["properties"]
    assert (found["status"], found["acceptable"]) == ("acceptable", VARIANT.name)
    assert found["finding"]["got"] != found["finding"]["expected"]


def test_settings_that_differ_by_parameter_are_rounded_too() -> None:
    (prop,) = (one for one in CHOSEN if one.name == "update")
    step, query = (case := random_cases(prop, 1, 2)[0]).step, case.query

    class Same:
        def at(self, t: int, name: str) -> Adam:
            return adam_of(step)

    one, each = (VARIANT.implementation().ask(replace(step, adam=adam), query)[0] for adam in (step.adam, Same()))
    for name, p in one.items():
        np.testing.assert_array_equal(p, each[name])


def test_the_oracle_itself_needs_no_variant() -> None:
    assert set(statuses(ORACLE)) == {"passed"}
