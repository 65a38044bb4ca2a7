"""The list of faults to plant in the engine: each has its place, and leaves a module that Python can read."""

import ast
from pathlib import Path

import pytest
from engine_faults import FAULTS, Fault, planted
from run_engine_faults import files_of

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_changes_one_place(fault: Fault) -> None:
    path, text = planted(fault, ROOT / "gpu")
    assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(path.read_text(encoding="utf-8")))
    assert files_of(fault.tests, ROOT)


def test_names_are_unique() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
