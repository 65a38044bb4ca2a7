"""Write docs/faults.md: every known mistake, the first property that catches it, and the number of random cases needed.

python docs/faults.py                   # some ten minutes; fails if no property catches a mistake
python docs/faults.py --held-out        # only prints the score of the quick profile on the tenth that is held out
"""

import sys
from pathlib import Path

from adamshap.verify.edges.properties import DRAWN_EDGES, EDGE_PROPERTIES
from adamshap.verify.faults import AUTO_FAULTS, EDGE_FAULTS, FAULTS, LATER_FAULTS, LAYER_FAULTS, LOOP_FAULTS
from adamshap.verify.layers.properties import LAYER_PROPERTIES
from adamshap.verify.mutation import Catch, first_catch
from adamshap.verify.optimisers.properties import OPTIMISER_PROPERTIES
from adamshap.verify.properties import PROPERTIES

PAGE = """# Known mistakes and the properties that catch them

`python docs/faults.py` writes this page (quick profile, float64, seed 0). {caught} of {total} mistakes are caught; the
test suite asserts that all are, and that the diagnosis names each.

| mistake | your answers equal the oracle's with … | seen in | first caught by | after cases |
|---|---|---|---|---|
{rows}
"""

TRIED = (
    ("perceptrons", (*FAULTS, *LATER_FAULTS), PROPERTIES),
    ("layers", LAYER_FAULTS, LAYER_PROPERTIES),
    ("optimisers", LOOP_FAULTS, OPTIMISER_PROPERTIES),
    ("the slope auto", AUTO_FAULTS, [one for one in PROPERTIES if "auto" in one.features]),
    ("edges", EDGE_FAULTS, (*DRAWN_EDGES, *EDGE_PROPERTIES)),
)
"""The mistakes of each part of the catalogue, and the properties that may show them."""


def held_out() -> None:
    """Print the score on the faults that are out of sight while strategies are written."""
    for part, faults, properties in TRIED:
        catches = [first_catch(fault, properties) for fault in faults if fault.held_out]
        missed = ", ".join(catch.fault.name for catch in catches if catch.outcome is None)
        caught = sum(catch.outcome is not None for catch in catches)
        print(f"{part}: {caught} of {len(catches)} mistakes held out are caught{missed and ', not '}{missed}")


def row(catch: Catch) -> str:
    """Return the row of one mistake."""
    by = f"`{catch.outcome.property.name}` | {catch.outcome.examples} |" if catch.outcome else "**nothing** | |"
    return f"| `{catch.fault.name}` | {catch.fault.sentence} | {catch.fault.source} | {by}"


def main() -> None:
    """Try every fault, write the page, and fail if one is missed."""
    if sys.argv[1:] == ["--held-out"]:
        held_out()
        return
    catches = [first_catch(fault, properties) for _, faults, properties in TRIED for fault in faults]
    missed = [catch.fault.name for catch in catches if catch.outcome is None]
    rows = "\n".join(map(row, catches))
    page = PAGE.format(caught=len(catches) - len(missed), total=len(catches), rows=rows)
    (Path(__file__).parent / "faults.md").write_text(page, encoding="utf-8")
    print(page)
    if missed:
        sys.exit(f"not caught: {', '.join(missed)}")


if __name__ == "__main__":
    main()
