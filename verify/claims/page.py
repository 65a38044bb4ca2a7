"""The files of a run: a self-contained HTML page, the same as Markdown, and every number as JSON."""

import base64
import html
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adamshap.verify.claims.plots import svg
from adamshap.verify.claims.section import Section, Table
from adamshap.verify.claims.statistics import Record

SCHEMA = 1
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid #ddd;
  padding-top: 1rem; }}
.claim {{ border-left: 4px solid #4477aa; padding-left: .8rem; color: #444; }}
table {{ border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; padding: .3rem 0; color: #444; }} th, td {{ padding: .2rem .5rem; text-align: right;
  border-bottom: 1px solid #e5e5e5; white-space: nowrap; }} th {{ vertical-align: bottom; white-space: normal; }}
td:first-child, th:first-child {{ text-align: left; }} .wide {{ overflow-x: auto; margin: 1rem 0; }}
figure {{ margin: 1.5rem 0; }} figcaption {{ color: #444; font-size: .85rem; }} img {{ max-width: 100%; }}
code {{ background: #f3f3f3; padding: 0 .2em; }}
</style></head><body>
"""


def write(folder: Path, sections: Sequence[Section], report: Mapping[str, Any]) -> None:
    """Write ``index.html``, ``results.json``, ``results.md`` and the figures as SVG to `folder`."""
    drawn = {f"{s.name}-{name}.svg": svg(figure) for s in sections for name, _, figure in s.figures}
    for name, text in drawn.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "index.html").write_text(to_html(sections, drawn, str(report["command"])), encoding="utf-8")
    (folder / "results.md").write_text(to_markdown(sections), encoding="utf-8")
    text = json.dumps(report, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")


def to_json(
    command: str, settings: Mapping[str, Any], records: Mapping[str, Sequence[Record]], sections: Sequence[Section]
) -> dict[str, Any]:
    """Return every number of a run in JSON types: a table (columns, rows) for each part of each claim."""
    return {
        "schema": SCHEMA,
        "command": command,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("adamshap", "numpy", "scipy", "scikit-learn")},
        },
        "claims": {
            s.name: {
                "claim": s.claim,
                "findings": list(s.findings),
                "settings": _plain(asdict(settings[s.name])),
                "tables": _columns(records[s.name]),
            }
            for s in sections
        },
    }


def _columns(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return one table for all records with the same keys: column names, then rows."""
    tables: dict[tuple[str, ...], list[Any]] = {}
    for record in records:
        tables.setdefault(tuple(record), []).append([_plain(value) for value in record.values()])
    return [{"columns": list(columns), "rows": rows} for columns, rows in tables.items()]


def _plain(value: Any) -> Any:
    """Return `value` in JSON types, with None for NaN and infinities, which JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def to_html(sections: Sequence[Section], drawn: Mapping[str, str], command: str) -> str:
    """Return the page, with the figures embedded."""
    title = "The claims about attribution under Adam, put to the test"
    parts = [
        HEAD.format(title=title),
        f"<h1>{title}</h1>\n<p>Output of <code>{html.escape(command)}</code>. Values are",
    ]
    parts.append(" means ± standard deviations over seeds, correlations rounded towards zero.</p>\n")
    for s in sections:
        parts.append(f'<h2 id="{s.name}">{_inline(s.title)}</h2>\n<p class="claim">Claim: {_inline(s.claim)}</p>\n<ul>')
        parts += [f"<li>{_inline(finding)}</li>\n" for finding in s.findings]
        parts.append("</ul>\n")
        for name, caption, _ in s.figures:
            data = base64.b64encode(drawn[f"{s.name}-{name}.svg"].encode()).decode()
            parts.append(f'<figure><img alt="{html.escape(caption)}" src="data:image/svg+xml;base64,{data}">')
            parts.append(f"<figcaption>{_inline(caption)}</figcaption></figure>\n")
        parts += [_html_table(table) for table in s.tables]
    return "".join([*parts, "</body></html>\n"])


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{_inline(cell)}</th>" for cell in table.header)
    rows = "".join("<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>\n" for row in table.rows)
    return (
        f'<div class="wide"><table><caption>{_inline(table.caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
    )


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def to_markdown(sections: Sequence[Section]) -> str:
    """Return the page as Markdown, with the figures in separate files."""
    parts = []
    for s in sections:
        parts.append(f"## {s.title}\n\n> {s.claim}\n")
        parts.append("\n".join(f"- {finding}" for finding in s.findings) + "\n")
        parts += [f"![{caption.replace('`', '')}]({s.name}-{name}.svg)\n" for name, caption, _ in s.figures]
        parts += [_markdown_table(table) for table in s.tables]
    return "\n".join(parts)


def _markdown_table(table: Table) -> str:
    lines = [f"{table.caption}\n", "| " + " | ".join(table.header) + " |", "|" + "---|" * len(table.header)]
    lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"
