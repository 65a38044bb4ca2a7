"""``adamshap verify``: test any implementation on random problems, and diagnose its mistake."""

import importlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adamshap.reference.command.errors import CommandError
from adamshap.reference.contract import AUTO, needed
from adamshap.verify.models import SEQUENTIAL
from adamshap.verify.models.sequential import LAYERS
from adamshap.verify.optimisers import FEATURES

if TYPE_CHECKING:  # these need Hypothesis, which may be missing
    from adamshap.verify.checking import Outcome
    from adamshap.verify.diagnosis import Diagnosis
    from adamshap.verify.properties import Property

_EXTRAS = {"two_term": "kind", "micro_batch": "micro_batch"}
"""Extras that a command may offer, with the option of `scores` that declares each of them in a Python function."""

_CAPTURES = "captures"
"""The function that a command need not offer."""


def verify_command(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            show_default=False,
            help="The implementation: package.module, package.module:object, or an entry point of the group"
            " adamshap.implementations.",
        ),
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            show_default=False,
            help='Instead of TARGET, a program in any language: "./mine {case} {result}" reads a JSON file with a list'
            " of cases and writes one with the answers; adamshap.verify.process describes both formats.",
        ),
    ] = None,
    offers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXTRA",
            show_default=False,
            help="What COMMAND offers beyond the contract: scores with slope two_term for each kind, or with"
            " micro_batch, or the function captures; may be given several times. A TARGET declares it by the parameters"
            " of its scores, and by a function captures.",
        ),
    ] = None,
    supports: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="What COMMAND supports beyond perceptrons with one Adam: stacks of layers, by each kind of layer that"
            " it takes (linear, embedding, …), or sequential for all of them; optimisers with groups, schedule, clip or"
            " l2; the slope auto; may be given several times. A TARGET declares it by its attribute SUPPORTS.",
        ),
    ] = None,
    profile: Annotated[
        Literal["quick", "ci", "thorough"],
        typer.Option(help="Number of random cases: 15, 60 or 600 for each property."),
    ] = "quick",
    dtype: Annotated[
        Literal["float64", "float32"], typer.Option(help="Dtype of the inputs, which sets the rounding allowed.")
    ] = "float64",
    only: Annotated[
        list[str] | None, typer.Option(metavar="PROPERTY", help="Check only this property; may be given several times.")
    ] = None,
    edges: Annotated[
        bool,
        typer.Option(
            "--edges",
            help="Check every edge instead: sizes next to powers of 2, counts beyond 8, 16 and 32 bits, and values and"
            " settings that are 0, equal, opposite, tiny or at an end. Takes about two minutes for fast code.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random cases.")] = 0,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.001, help="Time limit in seconds of a call, or of a run of COMMAND for all cases of a property."
        ),
    ] = 60.0,
    in_process: Annotated[
        bool,
        typer.Option(
            "--in-process",
            help="Run TARGET in this process, to debug it; by default it runs in a process of its own, where it cannot"
            " harm the kit and its output is not shown.",
        ),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", show_default=False, help="Write the report as JSON.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", show_default=False, help="Write the report as a page.")
    ] = None,
) -> None:
    """Test TARGET, or COMMAND, against the oracle on random problems, and diagnose its mistake.

    Exit code 0: every property tested holds. 1: one fails. 2: the implementation could not be tested.
    """
    if (target is None) == (command is None):
        raise CommandError("needs a TARGET or --command, and not both")
    if in_process and target is None:
        raise CommandError("--in-process is for a TARGET: a COMMAND is always a process of its own")
    known_offers = (*_EXTRAS, _CAPTURES)
    unknown = [name for name in offers or () if name not in known_offers]
    if unknown:
        raise CommandError(f"--offers: got {unknown[0]!r}; needs one of {', '.join(known_offers)}")
    if offers and command is None:
        raise CommandError(
            f"--offers: got {offers[0]!r} with a TARGET, which declares it by the parameters of its scores, and by a"
            " function captures; needs --command"
        )
    known_models = (SEQUENTIAL, *LAYERS, *FEATURES, AUTO)
    unknown = [name for name in supports or () if name not in known_models]
    if unknown:
        raise CommandError(f"--supports: got {unknown[0]!r}; needs one of {', '.join(known_models)}")
    if supports and command is None:
        raise CommandError(
            f"--supports: got {supports[0]!r} with a TARGET, which declares it by its attribute SUPPORTS; needs"
            " --command"
        )
    tried = str(command if target is None else target)
    with needed("Hypothesis", by="verify", extra="verify", error=CommandError):
        importlib.import_module("hypothesis")
    from rich.console import Console

    from adamshap.verify import report
    from adamshap.verify.edges.properties import EDGE_PROPERTIES
    from adamshap.verify.implementation import KitError, LoadError
    from adamshap.verify.layers.properties import LAYER_PROPERTIES
    from adamshap.verify.optimisers.properties import OPTIMISER_PROPERTIES
    from adamshap.verify.properties import PROPERTIES

    usual = (*PROPERTIES, *LAYER_PROPERTIES, *OPTIMISER_PROPERTIES)
    known = {one.name: one for one in (EDGE_PROPERTIES if edges else usual)}
    groups = {one.group for one in known.values() if one.group}
    unknown = [name for name in only or () if name not in known and name not in groups]
    if unknown:
        names = f"{', '.join(sorted(groups))}, or one of their properties" if edges else ", ".join(known)
        choice = "--edges beside it" if not edges and unknown[0].startswith("edge-") else f"one of {names}"
        raise CommandError(f"--only: got {unknown[0]!r}; needs {choice}")
    for file in (json_file, html_file):
        if file is not None and not file.absolute().parent.is_dir():
            raise CommandError(f"cannot write to {str(file)!r}: its folder does not exist")
    chosen = [one for name, one in known.items() if not only or name in only or one.group in only]
    try:
        if target is None:
            outcomes, diagnosis = _try_command(
                tried, chosen, profile, dtype, seed, timeout, offers or [], frozenset(supports or ())
            )
        else:
            sys.path.insert(0, "")  # a module in the working directory, as `python -m` finds it
            outcomes, diagnosis = _try_target(tried, chosen, profile, dtype, seed, timeout, in_process=in_process)
    except (LoadError, KitError) as error:
        raise CommandError(str(error)) from error
    result = report.Report(tried, profile, dtype, seed, outcomes, diagnosis)
    unwritten = ""
    try:
        # Escape what UTF-8 cannot encode, such as undecodable bytes from the command line.
        if json_file is not None:
            text = json.dumps(report.to_json(result), indent=2, ensure_ascii=False)
            json_file.write_text(text, encoding="utf-8", errors="backslashreplace")
        if html_file is not None:
            html_file.write_text(report.to_html(result), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        unwritten = f"cannot write the report: {error}"
    report.show(Console(), result)
    if unwritten:
        raise CommandError(unwritten)
    if not any(outcome.status in report.TRIED for outcome in outcomes):
        raise CommandError("no property could be tried on what the target offers")
    if result.failed:
        raise typer.Exit(1)


def _try_command(
    command: str,
    chosen: "list[Property]",
    profile: str,
    dtype: str,
    seed: int,
    timeout: float,
    offers: list[str],
    supports: frozenset[str],
) -> "tuple[list[Outcome], Diagnosis | None]":
    from adamshap.verify.checking import first_of_groups
    from adamshap.verify.diagnosis import diagnose
    from adamshap.verify.process import check_command

    candidate, outcomes = check_command(
        command,
        chosen,
        profile=profile,
        dtype=dtype,
        seed=seed,
        timeout=timeout,
        extras=frozenset(_EXTRAS[name] for name in offers if name in _EXTRAS),
        supports=supports,
        captures=_CAPTURES in offers,
    )
    # A command enforces its own time limit.
    return outcomes, diagnose(candidate, first_of_groups(outcomes), dtype=dtype, timeout=None)


def _try_target(
    target: str,
    chosen: "list[Property]",
    profile: str,
    dtype: str,
    seed: int,
    timeout: float,
    *,
    in_process: bool,
) -> "tuple[list[Outcome], Diagnosis | None]":
    from adamshap.verify.checking import check, first_of_groups
    from adamshap.verify.diagnosis import diagnose
    from adamshap.verify.implementation import load
    from adamshap.verify.isolation import isolated

    with nullcontext(load(target)) if in_process else isolated(target, timeout) as candidate:
        limit = timeout if in_process else None  # a candidate in its own process enforces its own
        outcomes = check(candidate, chosen, profile=profile, dtype=dtype, seed=seed, timeout=limit)
        return outcomes, diagnose(candidate, first_of_groups(outcomes), dtype=dtype, timeout=limit)
