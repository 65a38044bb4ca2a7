"""Write docs/refusals.md: the refused inputs and their messages.

python docs/refusals.py       # a few seconds
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent

PAGE = """# Refused input

Bad input never yields a number. It raises an error that names the argument, what it got and what it needs: a
`ValueError` or a `TypeError` from Python; one line and exit code 2 from the command. `python docs/refusals.py` writes
this page from the tests, which assert each line.

## From Python

`NET`, `X`, `Y`, `batch()` and `step(...)` are a small network, five samples, and a step over them that is valid except
for the arguments given; `narrow(...)` is such a step with parameters in float32, `run()` a run over them.

| call | error |
|---|---|
{calls}

## The command

| command | error |
|---|---|
{commands}
"""


def page() -> str:
    """Return the page."""
    sys.path.insert(0, str(DOCS.parent / "tests"))
    from refusals import COMMANDS, REFUSALS, refused_line

    calls = [_row(refusal.call, f"{refusal.error.__name__}: {refusal.message()}") for refusal in REFUSALS]
    commands = [_row(command, refused_line(command)) for command in COMMANDS]
    return PAGE.format(calls="\n".join(calls), commands="\n".join(commands))


def _row(*cells: str) -> str:
    return "| " + " | ".join(f"`{cell}`".replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    (DOCS / "refusals.md").write_text(page(), encoding="utf-8")
