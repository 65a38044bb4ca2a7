"""The command ``adamshap``: finds the subcommands by their entry points, and shows errors as one line."""

import inspect
import io
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from adamshap.reference.command.errors import (
    INTERNAL,
    INTERRUPTED,
    TERMINATED,
    TRAINING_DIVERGED,
    CommandError,
    internal_error,
    one_line,
)

GROUP = "adamshap.commands"
EXIT_CODES = (
    f"Exit codes: 0 done; 1 a check failed; 2 wrong usage or bad input; {TRAINING_DIVERGED} training diverged"
    f" (non-finite values); {INTERNAL} internal error (the message names the file with its traceback); {INTERRUPTED}"
    f" Ctrl-C; {TERMINATED} SIGTERM."
)


class _OneLineErrors(TyperGroup):
    """A group of commands whose errors are one line on stderr, with the exit codes of `EXIT_CODES`."""

    def main(self, args: Sequence[str] | None = None, **settings: Any) -> NoReturn:  # type: ignore[override]
        settings["standalone_mode"] = False  # so that errors propagate and are shown here
        given = list(sys.argv[1:] if args is None else args)
        _leave_out_types_of_flags(self)
        try:
            code = super().main(given or ["--help"], **settings)
        except (CommandError, typer.TyperException) as error:
            _fail(error)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            with one_line():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise CommandError("interrupted", INTERRUPTED) from None


def _leave_out_types_of_flags(command: Any) -> None:
    """Leave the type out of the help of flags, --help included, in `command` and all its subcommands: <bool>."""
    for parameter in command.get_params(typer.Context(command)):
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    for part in getattr(command, "commands", {}).values():
        _leave_out_types_of_flags(part)


def _fail(error: CommandError | typer.TyperException) -> NoReturn:
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context is not None else ""
        message = error.format_message() + hint
    else:
        message = str(error)
    print("adamshap:", " ".join(message.split()), file=sys.stderr)
    sys.exit(error.exit_code)


def _show_version(wanted: bool) -> None:
    if wanted:
        print("adamshap", version("adamshap"))
        raise typer.Exit


def _root(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Find out which training examples helped and which hurt a network trained with Adam."""


def build(commands: Iterable[EntryPoint]) -> typer.Typer:
    """Return the application with one subcommand for each of `commands`.

    An entry point names a function that Typer can turn into a command, or a whole ``typer.Typer``. One that cannot be
    loaded becomes a command that reports the reason; the others are not affected.
    """
    app = typer.Typer(
        name="adamshap", cls=_OneLineErrors, callback=_root, epilog=EXIT_CODES, pretty_exceptions_enable=False
    )
    for point in sorted(commands, key=lambda point: point.name):
        try:
            part = point.load()
            trial = typer.Typer()
            _add(trial, point.name, part)
            typer.main.get_command(trial)  # a signature that Typer cannot read must not break the other commands
        except Exception as error:
            _add_broken(app, point, error)
        else:
            _add(app, point.name, part)
    return app


def _add(app: typer.Typer, name: str, part: object) -> None:
    if isinstance(part, typer.Typer):
        app.add_typer(part, name=name)
    elif callable(part):
        app.command(name, help=_flowing(inspect.getdoc(part)))(part)
    else:
        raise TypeError(f"a {type(part).__name__} is no command")


def _flowing(text: str | None) -> str | None:
    """Return `text` with each paragraph on one line, since the terminal wraps it anew."""
    if text is None:
        return None
    paragraphs = text.split("\n\n")
    plain = (not any(line.startswith((" ", "-", "*")) for line in part.splitlines()) for part in paragraphs)
    return "\n\n".join(" ".join(p.split()) if flows else p for p, flows in zip(paragraphs, plain, strict=True))


def _add_broken(app: typer.Typer, point: EntryPoint, error: Exception) -> None:
    message = f"the command '{point.name}' cannot be loaded ({point.value})"

    def report() -> None:
        if isinstance(error, ImportError):  # a missing package, which the user can install
            raise CommandError(f"{message}: {type(error).__name__}: {error}") from error
        raise internal_error(error, during=message)

    anything = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(
        point.name, context_settings=anything, add_help_option=False, help="Cannot be loaded: run it to see why."
    )(report)


def main() -> None:
    """Run the command: the console script ``adamshap``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A class name that the terminal's encoding cannot represent must not end a run.
            stream.reconfigure(errors="backslashreplace")
    build(entry_points(group=GROUP))()
