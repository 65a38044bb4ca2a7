"""``adamshap vectors``: export, regenerate and check the portable test vectors."""

from pathlib import Path
from typing import Annotated

import typer

from adamshap.reference.command.errors import CommandError

app = typer.Typer(help="Portable test vectors: copy them out, or check a copy.", no_args_is_help=True)


@app.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="A new or an empty folder.")],
    regenerate: Annotated[
        bool, typer.Option("--regenerate", help="Recompute every answer with the oracle (minutes), instead of copying.")
    ] = False,
) -> None:
    """Write the test vectors to DIR, with a README on how to use them."""
    from adamshap.verify import vector_files

    try:
        if regenerate:
            vector_files.write(folder, vector_files.make())
        else:
            vector_files.export(folder)
    except vector_files.VectorError as error:
        raise CommandError(str(error)) from error
    typer.echo(f"wrote {len(vector_files.read(folder))} vectors to {folder}")


@app.command("check")
def check_command(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", show_default=False, help="A folder of vectors; the installed one by default."),
    ] = None,
) -> None:
    """Verify the checksums of DIR, and that the oracle still gives every expected answer.

    Exit code 0: everything agrees. 1: the oracle disagrees with a vector. 2: DIR is damaged, or not a vector folder.
    """
    from adamshap.verify import vector_files

    try:
        vectors = vector_files.read(folder or vector_files.FOLDER)
    except vector_files.VectorError as error:
        raise CommandError(str(error)) from error
    found = vector_files.disagreements(vectors)
    for sentence in found:
        typer.echo(sentence)
    typer.echo(f"{len(vectors)} vectors, {len(found)} disagreements with the oracle")
    if found:
        raise typer.Exit(1)
