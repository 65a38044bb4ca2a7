"""Write the option tables of docs/command.md, from the command itself.

python docs/command.py        # a second
"""

import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import typer

from adamshap.reference.command.main import GROUP, build

PAGE = Path(__file__).parent / "command.md"
TABLE = re.compile(r"<!-- options: ([\w ]+) -->\n.*?<!-- end -->", re.S)


def filled(page: str) -> str:
    """Return `page` with every table between ``<!-- options: COMMAND -->`` and ``<!-- end -->`` regenerated."""
    root: Any = typer.main.get_command(build(entry_points(group=GROUP)))

    def fill(found: re.Match[str]) -> str:
        command = root
        for word in found[1].split():
            command = command.commands[word]
        rows = [_row(parameter) for parameter in command.params]
        return "\n".join(
            [f"<!-- options: {found[1]} -->", "| option | default | |", "|---|---|---|", *rows, "<!-- end -->"]
        )

    return TABLE.sub(fill, page)


def names(page: str) -> list[str]:
    """Return the commands that have a table in `page`."""
    return TABLE.findall(page)


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name, default = parameter.metavar or parameter.name.upper(), None
    elif parameter.is_flag:
        name, default = parameter.opts[0], None
    else:
        kind = parameter.display_type(typer.Context(typer.core.TyperCommand("any"))).strip("<>")
        value = parameter.metavar or kind.removesuffix(" range").replace("|", "/")  # a "|" would end the cell
        name, default = f"{parameter.opts[0]} {value}", parameter.default
    if isinstance(parameter.show_default, str):
        default = parameter.show_default
    cells = (f"`{name}`", "" if default is None else f"{default}", parameter.help or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
