"""``python -m adamshap.verify.on_gpu --out DIR --minutes 12``: see the package."""

import argparse
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from adamshap.verify.on_gpu.conductor import RUN, SIGNALS, Conductor
from adamshap.verify.on_gpu.plan import STAGES, Setting

COMPLETE, FAILED, PARTIAL = 0, 1, 3
"""Exit statuses: every stage passed; a check failed; a stage is missing or was cut short."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        parser.error(f"--out: got {str(options.out)!r}, which is not empty; needs a new folder for this run's results")
    with tempfile.TemporaryDirectory(prefix="adamshap-on-gpu-") as scratch:
        checkout = options.checkout or _checkout()
        setting = Setting(
            rehearsal=options.rehearse,
            scratch=scratch,
            checkout="" if checkout is None else str(checkout.resolve()),
            commit=options.commit or _commit(checkout),
            ghostsuite=str(options.ghostsuite.resolve()) if options.ghostsuite else "",
        )
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{scratch}/inductor")
        conductor = Conductor(options.out, 60 * options.minutes, setting, frozenset(options.stages.split(",")), _say)
        found = conductor.run()
        for number in SIGNALS:  # everything is written; at exit, Python would remove the conductor's handlers
            signal.signal(number, signal.SIG_IGN)
    _say(f"{conductor.receipt_file} and {options.out / RUN}")
    if found.partial:
        _say(f"partial: incomplete stages: {', '.join(found.missing)}")
        return PARTIAL
    return FAILED if found.failed else COMPLETE


def _parser() -> argparse.ArgumentParser:
    names = ",".join(stage.name for stage in STAGES)
    parser = argparse.ArgumentParser(
        prog="python -m adamshap.verify.on_gpu",
        description="Verify and measure the engine on this machine's GPU, and write a receipt.",
        epilog="Exit status 0: every stage passed. 1: a check failed. 3: a stage is missing or was cut short.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--minutes", type=_minutes, default=12.0, help="time limit of the whole run; default: 12")
    parser.add_argument("--rehearse", action="store_true", help="small sizes, on CuPy on the CPU: no evidence")
    parser.add_argument("--stages", type=_stages, default=names, metavar="NAMES", help=f"some of {names}")
    parser.add_argument(
        "--checkout",
        type=_folder,
        metavar="DIR",
        help="the repository, for its tests; default: the current folder if it is a checkout",
    )
    parser.add_argument("--commit", default="", help="the commit of the checkout, for machines without git")
    parser.add_argument("--ghostsuite", type=_folder, metavar="DIR", help="a checkout of GhostSuite, to time it too")
    return parser


def _minutes(text: str) -> float:
    minutes = float(text)
    if not (math.isfinite(minutes) and minutes > 0):
        raise argparse.ArgumentTypeError(f"got {text!r}; needs a number above 0")
    return minutes


def _stages(text: str) -> str:
    known = [stage.name for stage in STAGES]
    for name in text.split(","):
        if name not in known:
            raise argparse.ArgumentTypeError(f"got {name!r}; needs some of {','.join(known)}")
    return text


def _folder(text: str) -> Path:
    folder = Path(text)
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"got {text!r}, which is not a folder; needs a checkout")
    return folder


def _checkout() -> Path | None:
    here = Path.cwd()
    return here if (here / "tests" / "engine_devices.py").is_file() else None


def _commit(checkout: Path | None) -> str:
    if checkout is None:
        return ""
    try:
        described = subprocess.run(
            ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return described.stdout.strip()


def _say(line: str) -> None:
    try:
        print(line, flush=True)
    except OSError:  # the reader of the output is gone: the run continues, and Python must not complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
