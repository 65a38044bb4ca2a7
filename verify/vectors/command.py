"""``adamshap vectors``: export, check and run the portable test vectors."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adamshap.reference.command.errors import CommandError

if TYPE_CHECKING:
    from adamshap.verify.vectors.folder import Folder
    from adamshap.verify.vectors.running import Result

app = typer.Typer(
    help="Portable test vectors: copy them out, check a copy, or run them on an implementation.", no_args_is_help=True
)

_OFFERS = ("two_term", "captures")

_Version = Annotated[int, typer.Option("--version", min=1, max=2, help="Version of the vectors.")]
_Folder = Annotated[
    Path | None,
    typer.Argument(metavar="DIR", show_default=False, help="A folder of vectors; the newest installed by default."),
]


@app.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="A new or an empty folder.")],
    version: _Version = 2,
    regenerate: Annotated[
        bool, typer.Option("--regenerate", help="Recompute every answer with the oracle (minutes), instead of copying.")
    ] = False,
) -> None:
    """Write the test vectors to DIR, with a README on how to use them."""
    from adamshap.verify.vectors import folder as folders
    from adamshap.verify.vectors.edition import EDITIONS

    try:
        if regenerate:
            from adamshap.verify.vectors.making import made

            folders.write(folder, made(EDITIONS[version]))
        else:
            folders.export(folder, EDITIONS[version])
    except folders.VectorError as error:
        raise CommandError(str(error)) from error
    typer.echo(f"wrote {folders.read(folder).counted} to {folder}")


@app.command("check")
def check_command(folder: _Folder = None) -> None:
    """Verify the checksums of DIR, and that the oracle still gives every expected answer.

    Exit code 0: everything agrees. 1: the oracle disagrees with a vector. 2: DIR is damaged, or not a vector folder.
    """
    from adamshap.verify.vectors.reproducing import answered_refusals, disagreements

    content = _read(folder)
    found = [*disagreements(content.vectors), *answered_refusals(content.refusals)]
    for sentence in found:
        typer.echo(sentence)
    typer.echo(f"{content.counted}, {len(found)} disagreements with the oracle")
    if found:
        raise typer.Exit(1)


@app.command("run")
def run_command(
    target: Annotated[
        str | None,
        typer.Argument(metavar="TARGET", show_default=False, help="The implementation, as for adamshap verify."),
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND", show_default=False, help="Instead of TARGET, a program, as for adamshap verify."
        ),
    ] = None,
    offers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXTRA",
            show_default=False,
            help="What COMMAND offers beyond the contract: two_term, captures; may be given twice.",
        ),
    ] = None,
    supports: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", show_default=False, help="What COMMAND supports, as for adamshap verify; may be repeated."
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--vectors", metavar="DIR", show_default=False, help="A folder of vectors; the newest installed."),
    ] = None,
    expected_failures: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Vectors that are known to fail: a name or a pattern with * on each line, remarks after #.",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Time limit in seconds of a call, or of a run of COMMAND.")
    ] = 60.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", show_default=False, help="Write the results as JSON.")
    ] = None,
) -> None:
    """Run the test vectors on TARGET, or on COMMAND.

    Exit code 0: every vector passes, fails as expected, or is not supported. 1: another one fails, or an expected
    failure passes. 2: the vectors could not be run.
    """
    if (target is None) == (command is None):
        raise CommandError("needs a TARGET or --command, and not both")
    if (offers or supports) and command is None:
        raise CommandError("--offers and --supports are for --command: a TARGET declares what it supports by itself")
    if unknown := [name for name in offers or () if name not in _OFFERS]:
        raise CommandError(f"--offers: got {unknown[0]!r}; needs one of {', '.join(_OFFERS)}")
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise CommandError(f"cannot write to {str(json_file)!r}: its folder does not exist")
    from adamshap.verify.implementation import LoadError
    from adamshap.verify.vectors.expected_failures import Expectations, ExpectationsError, read_expectations
    from adamshap.verify.vectors.results import Results

    content = _read(folder)
    try:
        names = [*(vector.name for vector in content.vectors), *(refusal.name for refusal in content.refusals)]
        expectations = Expectations() if expected_failures is None else read_expectations(expected_failures, names)
        if target is None:
            run = _run_program(str(command), content, timeout, offers or [], frozenset(supports or ()))
        else:
            run = _run_target(target, content, timeout)
    except (LoadError, ExpectationsError) as error:
        raise CommandError(str(error)) from error
    results = Results(str(target or command), content, run, expectations)
    if json_file is not None:
        try:
            text = json.dumps(results.to_json(), indent=2, ensure_ascii=False)
            json_file.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise CommandError(f"cannot write to {str(json_file)!r}: {error.strerror or error}") from error
    for line in results.lines():
        typer.echo(line)
    if not results.of("passed", "failed"):
        raise CommandError("no vector could be run on what the target supports")
    if results.unexpected or results.stale:
        raise typer.Exit(1)


def _read(folder: Path | None) -> "Folder":
    from adamshap.verify.vectors.edition import LATEST
    from adamshap.verify.vectors.folder import VectorError, read

    try:
        return read(folder or LATEST.folder)
    except VectorError as error:
        raise CommandError(str(error)) from error


def _run_target(target: str, content: "Folder", timeout: float) -> "list[Result]":
    from adamshap.verify.isolation import isolated
    from adamshap.verify.vectors.running import run_refusals, run_vectors

    sys.path.insert(0, "")  # a module in the working directory, as `python -m` finds it
    with isolated(target, timeout) as candidate:
        return [*run_vectors(candidate, content.vectors), *run_refusals(candidate, content.refusals)]


def _run_program(
    command: str, content: "Folder", timeout: float, offers: list[str], supports: frozenset[str]
) -> "list[Result]":
    from adamshap.verify.implementation import CAPTURES, FUNCTIONS, Implementation, Misbehaviour
    from adamshap.verify.process import CommandCandidate
    from adamshap.verify.vectors.running import asked, run_refusals_of_command, run_vectors

    program = CommandCandidate(command, timeout)
    functions = frozenset((*FUNCTIONS, CAPTURES) if CAPTURES in offers else FUNCTIONS)
    extras = frozenset({"kind"} if "two_term" in offers else ())
    candidate = Implementation(command, functions, program.ask, extras, supports, guard=None)
    try:
        program.prepare(asked(candidate, content.vectors))
    except Misbehaviour as error:
        typer.echo(f"all vectors in one file: the program {error}; each is run alone")
    results = list(run_vectors(candidate, content.vectors))
    return [*results, *run_refusals_of_command(program.replies, content.refusals)]
