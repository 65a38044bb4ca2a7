"""The report on a candidate, for the console, as JSON and as one HTML page."""

import html
import math
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adamshap.verify.checking import MOST_HANGS, Outcome, Status
from adamshap.verify.diagnosis import Diagnosis
from adamshap.verify.models.sequential import LAYERS
from adamshap.verify.reproduction import snippet

SCHEMA = 1

TRIED: tuple[Status, ...] = ("passed", "acceptable", "failed")
"""The statuses of properties that were tried."""


@dataclass(frozen=True)
class Report:
    """One run of the properties on one candidate."""

    target: str
    profile: str
    dtype: str
    seed: int
    outcomes: Sequence[Outcome]
    diagnosis: Diagnosis | None

    @property
    def failed(self) -> list[Outcome]:
        """The properties that do not hold."""
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]

    @property
    def verdict(self) -> str:
        """The number of properties with each status, as one phrase."""
        counts = Counter(outcome.status for outcome in self.outcomes)
        parts = [f"{counts[status]} {status}" for status in get_args(Status)]
        return ", ".join(part for part in parts if not part.startswith("0 "))


def to_json(report: Report) -> dict[str, Any]:
    """Return the report in JSON types."""
    return {
        "schema": SCHEMA,
        "target": report.target,
        "profile": report.profile,
        "dtype": report.dtype,
        "seed": report.seed,
        "versions": {
            "adamshap": version("adamshap"),
            "python": platform.python_version(),
            "numpy": version("numpy"),
            "hypothesis": version("hypothesis"),
        },
        "verdict": report.verdict,
        "diagnosis": None
        if report.diagnosis is None
        else {
            "sentence": report.diagnosis.sentence,
            "faults": list(report.diagnosis.faults),
            "together": report.diagnosis.together,
            "factor": report.diagnosis.factor,
            "contradicted_by": report.diagnosis.contradicted_by,
            "layer": report.diagnosis.layer,
        },
        "layers": layers_tried(report),
        "properties": [_property_json(report, outcome) for outcome in report.outcomes],
    }


def _property_json(report: Report, outcome: Outcome) -> dict[str, Any]:
    found = outcome.finding
    return {
        "name": outcome.property.name,
        "sentence": outcome.property.sentence,
        "equation": outcome.property.equation,
        "kind": outcome.property.kind,
        "status": outcome.status,
        "acceptable": None if outcome.variant is None else outcome.variant.name,
        "examples": outcome.examples,
        "seconds": round(outcome.seconds, 3),
        "largest_share_of_bound": _number(outcome.share),
        "unsupported": [{"reason": reason, "cases": cases} for reason, cases in outcome.unsupported],
        "finding": None
        if found is None
        else {
            "sentence": found.sentence,
            "element": found.what,
            "got": _number(found.got),
            "expected": _number(found.wanted),
            "bound": _number(found.bound),
            "reproduce": snippet(found.case, report.target),
        },
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def show(console: Console, report: Report) -> None:
    """Print a row for each property tried, the skipped ones, each failure, code for the first, and the diagnosis."""
    table = Table(box=None, pad_edge=False)
    for column in ("property", "result", "cases", "seconds"):
        table.add_column(column, justify="right" if column in ("cases", "seconds") else "left", no_wrap=True)
    tried = [outcome for outcome in report.outcomes if outcome.status in TRIED]
    for name, status, examples, seconds in _rows(tried):
        style = {"passed": "green", "acceptable": "yellow", "failed": "bold red"}[status]
        table.add_row(name, f"[{style}]{status}[/]", str(examples), f"{seconds:.1f}")
    if tried:
        console.print(table)
    for line in (*omissions(report), *_acceptable(report)):
        console.print(escape(line), style="yellow", highlight=False, soft_wrap=True)
    for outcome in report.failed:
        if outcome.finding is None:
            continue
        console.print()
        console.print(f"[bold red]{outcome.property.name}[/]: {escape(outcome.property.sentence)}")
        console.print(f"  {escape(outcome.property.equation)}", highlight=False)
        console.print(f"  {escape(outcome.finding.sentence)}", highlight=False)
    if report.failed and report.failed[0].finding is not None:
        console.print("\nThe first failure, smallest case found:\n")
        console.print(escape(snippet(report.failed[0].finding.case, report.target)), highlight=False, soft_wrap=True)
    console.print()
    if report.diagnosis is not None:
        console.print(f"[bold]Diagnosis:[/] {escape(report.diagnosis.sentence)}", highlight=False)
        if report.diagnosis.layer:
            console.print(f"[bold]Layer:[/] {escape(report.diagnosis.layer)}", highlight=False)
    console.print(f"[bold]{escape(report.target)}[/], {report.dtype}, profile {report.profile}: {report.verdict}")


def _rows(tried: Sequence[Outcome]) -> list[tuple[str, Status, int, float]]:
    """Return name, result, cases and seconds of each row: one for all passed properties of a group."""
    rows: dict[str, tuple[str, Status, int, float]] = {}
    for one in tried:
        whole = one.status == "passed" and one.property.group
        name = one.property.group if whole else one.property.name
        _, _, examples, seconds = rows.get(name, (name, one.status, 0, 0.0))
        rows[name] = (name, one.status, examples + one.examples, seconds + one.seconds)
    return list(rows.values())


def omissions(report: Report) -> Iterator[str]:
    """Yield a line for the properties not offered, for those not tried, and for each reason for leaving out cases."""
    absent = _names(outcome for outcome in report.outcomes if outcome.status == "not offered")
    if absent:
        yield f"Not offered: {', '.join(absent)}"
    of_stacks = [outcome for outcome in report.outcomes if outcome.undeclared and outcome.undeclared_layers]
    if any(set(outcome.undeclared_layers) >= LAYERS.keys() for outcome in of_stacks):
        yield "Not tried, as SUPPORTS names none of their layers: stacks of layers"
    else:
        yield from _lacking_layers(of_stacks)
    undeclared = [outcome.property for outcome in report.outcomes if outcome.undeclared]
    if features := sorted({feature for one in undeclared for feature in one.features}):
        yield f"Not tried, as SUPPORTS does not name all of them: optimisers with {', '.join(features)}"
    yield from _layers(report)
    untried = _names(one for one in report.outcomes if one.status == "not tried" and not one.undeclared)
    if untried:
        yield f"Not tried, after {MOST_HANGS} calls without an answer in time: {', '.join(untried)}"
    skipped: dict[str, list[Outcome]] = {}
    cases = Counter[str]()
    for outcome in report.outcomes:
        for reason, count in outcome.unsupported:
            skipped.setdefault(reason, []).append(outcome)
            cases[reason] += count
    for reason, count in cases.most_common():
        yield f"Not supported ({reason}): {count} cases of {', '.join(_names(skipped[reason]))}"


def _lacking_layers(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yield a line for the properties that the same layers are missing for."""
    by_missing: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        missing = [kind for kind in outcome.undeclared_layers if kind in outcome.property.needs]
        said = f"does not name {', '.join(missing)}" if missing else "names no layer that a stack can begin with"
        by_missing.setdefault(said, []).append(outcome)
    for said, lacking in by_missing.items():
        yield f"Not tried, as SUPPORTS {said}: {', '.join(_names(lacking))}"


def _names(outcomes: Iterable[Outcome]) -> list[str]:
    """Return the names of properties, of each group only its own."""
    return list(dict.fromkeys(outcome.property.group or outcome.property.name for outcome in outcomes))


def _acceptable(report: Report) -> Iterator[str]:
    """Yield a line for each acceptable variant, with the properties that follow it."""
    for variant in dict.fromkeys(outcome.variant for outcome in report.outcomes):
        if variant is not None:
            names = ", ".join(outcome.property.name for outcome in report.outcomes if outcome.variant == variant)
            yield f"Acceptable: your answers agree with {variant.sentence} ({variant.name}): {names}"


def layers_tried(report: Report) -> dict[str, int]:
    """Return the number of cases tried with each kind of layer, 0 for those declared but not drawn; {} if none is."""
    declared = {kind for one in report.outcomes if one.layers for kind in LAYERS if kind not in one.undeclared_layers}
    counts = Counter(dict.fromkeys((kind for kind in LAYERS if kind in declared), 0))
    for outcome in report.outcomes:
        counts.update(dict(outcome.layers))
    return dict(counts)


def _layers(report: Report) -> Iterator[str]:
    """Yield a line for the kinds of layers tried, and for those that were not."""
    tried = layers_tried(report)
    if not tried:
        return
    yield f"Layers tried, with the number of cases: {', '.join(f'{kind} {count}' for kind, count in tried.items())}"
    untried = [kind for kind in LAYERS if kind not in tried]
    if untried:
        yield f"Layers not tried, as SUPPORTS does not name them: {', '.join(untried)}"


def to_html(report: Report) -> str:
    """Return the report as one self-contained page."""
    rows = "".join(
        f'<tr class="{outcome.status.replace(" ", "-")}"><td><code>{html.escape(outcome.property.name)}</code></td>'
        f"<td>{html.escape(outcome.property.sentence)}<br><small>{html.escape(outcome.property.equation)}</small></td>"
        f"<td>{outcome.status}</td><td>{outcome.examples}</td><td>{outcome.seconds:.1f}</td></tr>"
        for outcome in report.outcomes
    )
    failures = "".join(
        f"<section><h3><code>{html.escape(outcome.property.name)}</code></h3>"
        f"<p>{html.escape(outcome.finding.sentence)}</p>"
        f"<pre>{html.escape(snippet(outcome.finding.case, report.target))}</pre></section>"
        for outcome in report.failed
        if outcome.finding is not None
    )
    left_out = "".join(f"<p>{html.escape(line)}</p>" for line in (*omissions(report), *_acceptable(report)))
    diagnosis = f"<p><b>Diagnosis:</b> {html.escape(report.diagnosis.sentence)}.</p>" if report.diagnosis else ""
    if report.diagnosis and report.diagnosis.layer:
        diagnosis += f"<p><b>Layer:</b> {html.escape(report.diagnosis.layer)}.</p>"
    return _PAGE.format(
        target=html.escape(report.target),
        verdict=html.escape(report.verdict),
        settings=f"{report.dtype}, profile {report.profile}, seed {report.seed}, adamshap {version('adamshap')}",
        diagnosis=diagnosis,
        rows=rows,
        left_out=left_out,
        failures=f"<h2>Failures</h2>{failures}" if failures else "",
    )


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>adamshap verify: {target}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; width: 100%; }}
td, th {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }}
tr.passed td:nth-child(3) {{ color: #17723b; }} tr.acceptable td:nth-child(3) {{ color: #8a6100; }}
tr.failed td:nth-child(3) {{ color: #b00020; font-weight: bold; }}
pre {{ background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 13px; }} small {{ color: #666; }}
@media (max-width: 40rem) {{ table {{ font-size: 13px; }} td, th {{ padding: .3rem; }} }}
</style>
<h1>{target}</h1>
<p><b>{verdict}</b><br><small>{settings}</small></p>
{diagnosis}
<table><tr><th>property</th><th>what must hold</th><th>result</th><th>cases</th><th>seconds</th></tr>{rows}</table>
{left_out}
{failures}
</html>
"""
