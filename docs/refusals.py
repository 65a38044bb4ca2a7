"""Make docs/refusals.md: what is refused, and in which words.

python docs/refusals.py       # some seconds
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent

PAGE = """# What is refused

Bad input ends in an error that names the argument, says what came, and what is needed: never in a number. From Python
it is a `ValueError` or a `TypeError`; the command prints one line and ends with exit code 2. Made by
`python docs/refusals.py` from the tests, which assert each line.

## From Python

`NET`, `X`, `Y`, `batch()` and `step(...)` are a small network, five samples, and a step over them that is in order but
for what is given; `narrow(...)` is such a step with parameters in float32, `run()` a run over them.

| call | is refused with |
|---|---|
{calls}

## The command

| command | is refused with |
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
