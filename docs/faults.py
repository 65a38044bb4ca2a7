"""Write docs/faults.md: every known mistake, the first property that catches it, and the number of random cases needed.

python docs/faults.py                   # a few minutes; fails if no property catches a mistake
python docs/faults.py --held-out        # only prints the score of the quick profile on the tenth that is held out
"""

import sys
from pathlib import Path

from adamshap.verify.edges.properties import DRAWN_EDGES, EDGE_PROPERTIES
from adamshap.verify.faults import EDGE_FAULTS, FAULTS, LAYER_FAULTS
from adamshap.verify.layer_properties import LAYER_PROPERTIES
from adamshap.verify.mutation import first_catch, table

PAGE = """# Known mistakes and the properties that catch them

`python docs/faults.py` writes this page (quick profile, float64, seed 0). {caught} of {total} mistakes are caught; the
test suite asserts that all are, and that the diagnosis names each.

| mistake | your answers equal the oracle's with … | seen in | first caught by | after cases |
|---|---|---|---|---|
{rows}
"""


def held_out() -> None:
    """Print the score on the faults that are out of sight while strategies are written."""
    edges = [first_catch(fault, (*DRAWN_EDGES, *EDGE_PROPERTIES)) for fault in EDGE_FAULTS if fault.held_out]
    layers = [first_catch(fault, LAYER_PROPERTIES) for fault in LAYER_FAULTS if fault.held_out]
    others = table(fault for fault in FAULTS if fault.held_out)
    for kind, catches in (("perceptrons", others), ("layers", layers), ("edges", edges)):
        caught = [catch for catch in catches if catch.outcome is not None]
        missed = ", ".join(catch.fault.name for catch in catches if catch.outcome is None)
        print(f"{kind}: {len(caught)} of {len(catches)} mistakes held out are caught{missed and ', not '}{missed}")


def main() -> None:
    """Try every fault, write the page, and fail if one is missed."""
    if sys.argv[1:] == ["--held-out"]:
        held_out()
        return
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
