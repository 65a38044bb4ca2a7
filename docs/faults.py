"""Make docs/faults.md: every known mistake, which property catches it first, and after how many random cases.

python docs/faults.py       # some minutes; fails if a mistake is caught by no property
"""

import sys
from pathlib import Path

from adamshap.verify.mutation import table

PAGE = """# Known mistakes, and what catches them

Made by `python docs/faults.py` on the quick profile, float64, seed 0. {caught} of {total} mistakes are caught; the test suite
asserts that all are, and that the diagnosis calls each by its name.

| mistake | your answers equal the oracle's with … | seen | caught first by | after cases |
|---|---|---|---|---|
{rows}
"""


def main() -> None:
    """Try every fault, write the page, and fail where one is missed."""
    catches = table()
    rows = [
        f"| `{catch.fault.name}` | {catch.fault.sentence} | {catch.fault.source} | "
        + (f"`{catch.outcome.property.name}` | {catch.outcome.examples} |" if catch.outcome else "**nothing** | |")
        for catch in catches
    ]
    missed = [catch.fault.name for catch in catches if catch.outcome is None]
    page = PAGE.format(caught=len(catches) - len(missed), total=len(catches), rows="\n".join(rows))
    (Path(__file__).parent / "faults.md").write_text(page, encoding="utf-8")
    print(page)
    if missed:
        sys.exit(f"caught by nothing: {', '.join(missed)}")


if __name__ == "__main__":
    main()
