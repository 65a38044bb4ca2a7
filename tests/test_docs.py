"""The code on the pages of docs/ is run, and the tables' claims are checked on smaller cases."""

import doctest
import inspect
import json
import re
import runpy
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from adamshap import reference
from adamshap.reference import Adam, Network, Step, scores
from adamshap.reference.command.errors import INTERNAL, INTERRUPTED, TERMINATED, TRAINING_DIVERGED
from adamshap.reference.command.main import GROUP, build
from adamshap.reference.contract import quadrature_nodes
from adamshap.reference.game import exact_game, shapley_values
from adamshap.verify.cases import case_to_json
from adamshap.verify.checking import PROFILES
from adamshap.verify.faults import CATALOGUE
from adamshap.verify.properties import PROPERTIES
from adamshap.verify.tolerance import CLOSE, DRAWS, MORE_DRAWS, SAFETY
from adamshap.verify.vectors.edition import LATEST
from adamshap.verify.vectors.folder import read

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "verify").rglob("*.md")),
]


def test_the_worked_example_is_true() -> None:
    result = doctest.testfile(str(DOCS / "worked-example.md"), module_relative=False, optionflags=doctest.FAIL_FAST)
    assert result.attempted > 10
    assert result.failed == 0


CASES = read(LATEST.folder).vectors
"""The vectors with answers."""

COUNTS = {
    r"(\d+) known mistakes": len(CATALOGUE),
    r"(\d+) of \d+ mistakes": len(CATALOGUE),
    r"of (\d+) mistakes": len(CATALOGUE),
    r"(\d+) properties": len(PROPERTIES),
    r"(\d+) small cases": len(CASES),
    r"(\d+) vectors": len(CASES),
    r"(\d+) random cases each": PROFILES["quick"],
    r"It is (\d+) times the sum of": SAFETY,
    r"the largest of (\d+) draws\.": DRAWS,
    r"(\d+) more are drawn": MORE_DRAWS - DRAWS,
    r"by a factor of up to (\d+)": CLOSE,
}
"""Numbers known to the program, in the wording of the pages."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_count_on_a_page_is_the_program_s(page: Path) -> None:
    """If this fails, regenerate a page that a script writes, and correct any other."""
    text = " ".join(page.read_text(encoding="utf-8").split())
    for pattern, number in COUNTS.items():
        for found in re.finditer(pattern, text):
            assert float(found[1]) == number, found[0]


@pytest.mark.parametrize("pattern", [r"(\d+) small cases", r"It is (\d+) times", r"(\d+) more are drawn"])
def test_counts_are_found_where_they_stand(pattern: str) -> None:
    assert re.search(pattern, " ".join((DOCS / "verify.md").read_text(encoding="utf-8").split()))


def test_the_page_of_the_faults_has_every_fault() -> None:
    """If this fails, run ``python docs/faults.py``."""
    rows = [line for line in (DOCS / "faults.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [fault.name for fault in CATALOGUE]


NOT_IN_VECTORS = ("clip_each", "contraction", "l2")
"""Options of version 1's functions and settings that none of its cases writes."""


def defaults(function: Any) -> str:
    parameters = inspect.signature(function).parameters.values()
    given = [one for one in parameters if one.default is not one.empty and one.name not in NOT_IN_VECTORS]
    return ", ".join(f"`{one.name}` {one.default}" for one in given)


@pytest.mark.parametrize("function", [reference.scores, reference.marginals, Network, Adam, Step])
def test_the_page_of_the_vectors_has_the_defaults(function: Any) -> None:
    assert f"| `{function.__name__}` | {defaults(function)} |" in (DOCS / "vectors.md").read_text(encoding="utf-8")


def test_no_vector_writes_what_the_page_omits() -> None:
    for one in CASES:
        written = case_to_json(one.step, one.query)
        assert not {*written["options"], *written.get("adam", ())} & set(NOT_IN_VECTORS)


def test_the_page_of_the_vectors_has_their_limits() -> None:
    steps = [one.step for one in CASES if isinstance(one.step.net, Network) and isinstance(one.step.adam, Adam)]
    limits = {
        "layers": max(step.net.depth for step in steps),
        "width of a layer, classes": max(max(step.net.sizes) for step in steps),
        "n": max(step.n for step in steps),
        "n_val": max(step.n_val for step in steps),
        "completed steps": max(step.state.step for step in steps),
    }
    page = (DOCS / "vectors.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| ([^|`]+) \| (\d+) \|$", page, re.M) == [(name, str(most)) for name, most in limits.items()]
    assert f"ε is at least {min(step.adam.eps for step in steps)}" in page
    nodes = {slope: quadrature_nodes(None, slope) for slope in ("two_term", "secant")}
    assert f"`nodes` None is {nodes['two_term']} for `two_term` and {nodes['secant']} for every other slope" in page


def test_the_command_page_has_every_option() -> None:
    """If this fails, run ``python docs/command.py``."""
    made = runpy.run_path(str(DOCS / "command.py"))
    page = (DOCS / "command.md").read_text(encoding="utf-8")
    assert made["filled"](page) == page
    commands = typer.main.get_command(build(entry_points(group=GROUP))).commands  # type: ignore[attr-defined]
    every = {f"{name} {part}".strip() for name, one in commands.items() for part in getattr(one, "commands", [""])}
    assert set(made["names"](page)) == every
    assert all(f"| {code} |" in page for code in (0, 1, 2, TRAINING_DIVERGED, INTERNAL, INTERRUPTED, TERMINATED))


def table_rows(text: str) -> dict[str, list[float]]:
    """Return the numbers of each row that starts with an estimator's name."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:3] == "| `"]
    return {
        cells[0]: [float(cell.replace("−", "-")) for cell in cells[1:]] for cells in rows if cells[-1][:1].isdigit()
    }


def test_the_decision_table_says_what_was_measured() -> None:
    """Its values of R are the smaller ones of both batch sizes in docs/fidelity.md."""
    parts = (DOCS / "fidelity.md").read_text(encoding="utf-8").split("### ")
    measured = [table_rows(part) for part in parts if "R with the Shapley value" in part.splitlines()[0]]
    assert len(measured) == 2
    chosen = table_rows((DOCS / "choose.md").read_text(encoding="utf-8"))
    assert len(chosen) == 7
    for label, numbers in chosen.items():
        worse = [
            min(pair) for pair in zip(*(table[re.sub(r" \(.*paper's\)", "", label)] for table in measured), strict=True)
        ]
        assert numbers[:-1] == worse, label


@pytest.mark.parametrize("n", [16, 64])
def test_fidelity_with_the_marginals_is_what_the_page_shows(n: int) -> None:
    """Recompute the tables of ``first`` and ``last``; those of the Shapley value take minutes."""
    fidelity = runpy.run_path(str(DOCS / "fidelity.py"), run_name="fidelity")
    everybody = np.ones(n, bool)
    found: dict[str, dict[str, list[str]]] = {"first": {}, "last": {}}
    for step in fidelity["steps_of_a_run"](n):
        game = exact_game(step)
        alone = np.array([game(member) for member in np.eye(n, dtype=bool)]) - game(~everybody)
        without = game(everybody) - np.array([game(~member) for member in np.eye(n, dtype=bool)])
        for slope, gradient, nodes in fidelity["ESTIMATORS"]:
            estimate = scores(step, slope, gradient, nodes=nodes)
            name = fidelity["label"]((slope, gradient, nodes))
            for kind, exact in (("first", alone), ("last", without)):
                shown = fidelity["decimals"](fidelity["pearson"](estimate, exact))
                found[kind].setdefault(name, []).append(shown)
    parts = (DOCS / "fidelity.md").read_text(encoding="utf-8").split("### ")
    for kind, rows in found.items():
        (part,) = (part for part in parts if part.startswith(f"n = {n}: R with `{kind}`\n"))
        assert table_rows(part) == {name: list(map(float, row)) for name, row in rows.items()}


def test_all_ten_digits_that_hurt_most_have_a_flipped_label(tmp_path: Path) -> None:
    """As README.md and docs/index.md claim below the picture."""
    application = build(entry_points(group=GROUP))
    options = ["attribute", "digits", "--flip-labels", "0.1", "--out", str(tmp_path / "o"), "--json"]
    result = CliRunner().invoke(application, options, catch_exceptions=False)
    harmful = json.loads(result.stdout)["harmful"]
    assert len(harmful) == 10
    assert all(example["flipped"] for example in harmful)


def test_random_order_is_close_to_the_shapley_value_on_digits() -> None:
    """As docs/fidelity.md claims for n = 16 and 64, at an n whose coalitions are enumerated in seconds."""
    fidelity = runpy.run_path(str(DOCS / "fidelity.py"), run_name="fidelity")
    for step in fidelity["steps_of_a_run"](12):
        t = step.state.step + 1
        if t not in (1, 5):
            continue
        exact = shapley_values(exact_game(step), step.n)
        for nodes, (at_first, from_fifth) in fidelity["ASKED"].items():
            r = np.corrcoef(scores(step, nodes=nodes), exact)[0, 1]
            assert r >= (at_first if t == 1 else from_fifth), (t, nodes, r)
            others = [np.corrcoef(scores(step, slope), exact)[0, 1] for slope in ("sgd", "linearized", "frozen")]
            assert r > max(others)
