"""Write docs/faults.md: every known mistake, the first property that catches it, and the number of random cases needed.

python docs/faults.py       # a few minutes; fails if no property catches a mistake
"""

import sys
from pathlib import Path

from adamshap.verify.mutation import table

PAGE = """# Known mistakes and the properties that catch them

`python docs/faults.py` writes this page (quick profile, float64, seed 0). {caught} of {total} mistakes are caught; the
test suite asserts that all are, and that the diagnosis names each.

| mistake | your answers equal the oracle's with … | seen in | first caught by | after cases |
|---|---|---|---|---|
{rows}
"""


def main() -> None:
    """Try every fault, write the page, and fail if one is missed."""
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
        sys.exit(f"not caught: {', '.join(missed)}")


if __name__ == "__main__":
    main()
