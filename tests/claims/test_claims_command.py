"""All of `adamshap claims` on a tiny profile: the page, the JSON, and the leftovers of a failed run."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adamshap.gpu.bench import Case
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.main import build
from adamshap.reference.contract import Adam
from adamshap.verify.claims import (
    cost,
    downstream,
    estimators,
    fidelity,
    language,
    optimisers,
    page,
    retraining,
    stability,
    suite,
)
from adamshap.verify.claims.language.corpora import Mixture
from adamshap.verify.claims.language.models import Shape
from adamshap.verify.claims.language.settings import Marginals, Run
from adamshap.verify.claims.parts import Parts

TINY = {
    fidelity.NAME: fidelity.Settings(2, (1, 2), (4,), (0.999,), (), scan=False, train=40, valid=10),
    optimisers.NAME: optimisers.Settings(
        2, ("wine",), (optimisers.Regime("wine", "wine", (), 1.0, 8),), (1, 2), 30, 10, 1, 10, (3,)
    ),
    retraining.NAME: retraining.Settings(2, (retraining.Case("wine", "wine", Adam(), 0.1),), 12, 6, 1, 4, (3,)),
    downstream.NAME: downstream.Settings(
        2, ("wine",), "wine", ("wine",), 40, 10, 2, 10, (3,), cuts=(1, 2), sources=1, shares=(0.5,), retrain_epochs=1
    ),
    estimators.NAME: estimators.Settings(2, ("wine",), (4,), (1, 2), (1e-3,), 20, 10),
    stability.NAME: stability.Settings(
        2,
        (
            stability.Case(
                "wine", "wine", epochs=2, runs=6, one_varies=2, halves=8, retrainings=2, variants=True, carry=True
            ),
        ),
        hidden=(3,),
        variant_halves=8,
        projections=4,
    ),
    language.NAME: language.Settings(
        2,
        (
            Marginals(
                Run(
                    Mixture("help", ("help",), length=8, train=8, valid=3, test=3),
                    Shape(8, 1, 2, tied=False),
                    n=4,
                    examined=tuple(range(1, 17)),
                    thorough=(2,),
                )
            ),
        ),
    ),
    cost.NAME: cost.Settings(1, (Case((4, 8, 3), 8, 4, 3),)),
}


class Links(HTMLParser):
    """Collects everything that a page loads or links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]


def a_bench_row(case: Case, slope: str, gradient: str, rank: int, device: str) -> list[dict[str, Any]]:
    """Return a row like the engine's benchmark's; test_engine_bench runs the real one through this claim."""
    figures = dict.fromkeys(("throughput_ratio", "processor_time_ratio", "floor", "pearson_with_exact"), 0.5)
    times = dict.fromkeys(("plain_ms", "attributed_ms", "peak_mib"), 2.0)
    return [{"sizes": list(case.sizes), "n": case.n, "n_val": case.n_val, "rank": None, **figures, **times}]


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "measure_case", a_bench_row)
        return suite.measure(TINY, workers=1)


def test_a_tiny_profile_runs_whole(measured: dict[str, Any], tmp_path: Path) -> None:
    sections = suite.sections(TINY, measured)
    assert [section.name for section in sections] == [claim.NAME for claim in suite.CLAIMS]
    report = page.to_json("adamshap claims", TINY, measured, sections)
    page.write(tmp_path, sections, report)
    read = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert read == json.loads(json.dumps(report))
    for name, claim in read["claims"].items():
        assert claim["findings"]
        assert sum(len(table["rows"]) for table in claim["tables"]) == len(measured[name])
        for table in claim["tables"]:
            assert all(len(row) == len(table["columns"]) for row in table["rows"])
            seeds = {row[table["columns"].index("seed")] for row in table["rows"]}
            assert seeds == set(range(TINY[name].seeds))
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(html)
    assert links.found
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links.found)  # the page is self-contained
    assert not {"script", "link", "iframe"} & set(links.tags)
    assert "http" not in re.sub(r'src="data:[^"]*"', "", html)
    markdown = (tmp_path / "results.md").read_text(encoding="utf-8")
    for figure in re.findall(r"\]\(([^)]+)\)", markdown):
        assert (tmp_path / figure).read_text(encoding="utf-8").startswith("<?xml")
    for section in sections:
        for table in section.tables:
            assert all(len(row) == len(table.header) for row in table.rows), table.caption


def test_the_same_seeds_give_the_same_numbers(measured: dict[str, Any]) -> None:
    some = {name: TINY[name] for name in (fidelity.NAME, downstream.NAME)}
    again = suite.measure(some, workers=2)  # in other processes, which finish in any order
    for name in some:
        assert page._columns(again[name]) == page._columns(measured[name])


def test_the_command_writes_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    point = EntryPoint("claims", "adamshap.verify.claims.command:claims_command", "adamshap.commands")
    app = build([point])
    runner = CliRunner()
    monkeypatch.setattr(suite, "profile", lambda quick: {fidelity.NAME: TINY[fidelity.NAME]})
    monkeypatch.chdir(tmp_path)

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(page, "to_markdown", broken)  # after the first files are written
        runner.invoke(app, ["claims", "--workers", "1", "--out", "mine"])
    assert list(tmp_path.iterdir()) == []

    result = runner.invoke(app, ["claims", "--workers", "1", "--out", "mine"])
    assert result.exit_code == 0, result.output
    names = {file.name for file in (tmp_path / "mine").iterdir()}
    assert names > {"index.html", "results.json", "results.md"}
    refused = runner.invoke(app, ["claims", "--out", "mine"])
    assert refused.exit_code == 2
    assert isinstance(refused.exception, CommandError | SystemExit)


def test_an_interrupted_command_goes_on_where_it_stopped(
    measured: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {name: TINY[name] for name in (fidelity.NAME, language.NAME)}
    parts, calls = Parts(tmp_path / "parts"), []
    one = suite.one

    def stops(name: str, piece: Any, seed: int) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append((name, seed))
        return one(name, piece, seed)

    monkeypatch.setattr(suite, "one", stops)
    with pytest.raises(KeyboardInterrupt):
        suite.measure(some, workers=1, parts=parts)
    assert len(list((tmp_path / "parts").iterdir())) == 3
    so_far = suite.measure(some, workers=1, parts=parts, finished=True)
    assert {r["seed"] for r in so_far[language.NAME]} == {0}
    calls[1:] = []  # so that one more may be measured
    found = suite.measure(some, workers=1, parts=parts)
    assert calls[1:] == [(language.NAME, 1)]
    for name in some:
        assert page._columns(found[name]) == page._columns(measured[name])


def test_parts_of_other_settings_are_not_taken(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.keep("fidelity", TINY["fidelity"], 0, [{"r": 1.0, "nan": float("nan")}])
    assert str(parts.find("fidelity", TINY["fidelity"], 0)) == "[{'r': 1.0, 'nan': nan}]"
    assert parts.find("fidelity", TINY["fidelity"], 1) is None
    assert parts.find("fidelity", fidelity.QUICK, 0) is None
    next(tmp_path.iterdir()).write_text('{"records": [', encoding="utf-8")  # cut off by a full disk
    assert parts.find("fidelity", TINY["fidelity"], 0) is None


def test_the_command_shows_what_an_interrupted_one_has_finished(
    measured: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import EntryPoint

    app = build([EntryPoint("claims", "adamshap.verify.claims.command:claims_command", "adamshap.commands")])
    monkeypatch.setattr(suite, "profile", lambda quick: {fidelity.NAME: TINY[fidelity.NAME]})
    monkeypatch.setattr(suite, "one", lambda name, piece, seed: pytest.fail("measured"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["claims", "--workers", "1", *arguments])

    (tmp_path / "file").touch()
    for arguments, wanted in (
        (("--finished",), "needs --resume"),
        (("--finished", "--resume", "parts"), "has no part"),
        (("--resume", "file"), "needs a folder"),
    ):
        refused = run(*arguments)
        assert refused.exit_code == 2
        assert wanted in str(refused.exception) + refused.output
    records = [r for r in measured[fidelity.NAME] if r["seed"] == 0]
    Parts(tmp_path / "parts").keep(fidelity.NAME, TINY[fidelity.NAME], 0, records)
    shown = run("--finished", "--resume", "parts", "--out", "mine")
    assert shown.exit_code == 0, shown.output
    report = json.loads((tmp_path / "mine" / "results.json").read_text(encoding="utf-8"))
    assert report["command"] == "adamshap claims --finished"
    assert len(report["claims"][fidelity.NAME]["tables"][0]["rows"]) == len(records)
