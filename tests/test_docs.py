"""The pages of docs/ that hold code are run."""

import doctest
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_the_worked_example_is_true() -> None:
    result = doctest.testfile(str(DOCS / "worked-example.md"), module_relative=False, optionflags=doctest.FAIL_FAST)
    assert result.attempted > 10
    assert result.failed == 0
