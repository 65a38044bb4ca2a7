"""Look for false alarms: run the quick profile, seed after seed, on correct implementations.

    python docs/false_alarms.py --seeds 1000                      # hours; can be stopped and restarted
    python docs/false_alarms.py variants --seeds 200 --cheap      # the right variants, on the cheap properties
    python docs/false_alarms.py mypackage.mine --seeds 20 --file mine.json
    python docs/false_alarms.py --first 1000 --seeds 100          # these hundred
    python docs/false_alarms.py --seeds 0                         # only print the contents of the file

An alarm on a correct implementation is a defect of the kit's tolerance. Each seed draws new cases for every property.
``variants`` stands for all of `adamshap.verify.candidates.variants`: code that rounds as other people's does. An answer
that only agrees with an acceptable variant of the method counts as an alarm, too: these implementations follow it.
The results are added to the file after every seed, and seeds already in it are skipped; a file from other code is
refused. The bound is evaluated only until an error proves to be within half of it, so shares below a half are upper
limits. Exit code 1 if there is an alarm.
"""

import argparse
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from adamshap import gpu
from adamshap.verify.candidates.variants import VARIANTS
from adamshap.verify.checking import check
from adamshap.verify.implementation import load
from adamshap.verify.layers.properties import LAYER_PROPERTIES
from adamshap.verify.optimisers.properties import OPTIMISER_PROPERTIES
from adamshap.verify.properties import PROPERTIES
from adamshap.verify.reproduction import snippet

TARGETS = ("engine", "adamshap.verify.candidates.torch_ghost")
VARIANTS_MODULE = "adamshap.verify.candidates.variants"
DTYPES = ("float64", "float32")
CHEAP = (
    "update",
    "utility",
    "marginals-first-first_order",
    "marginals-last-exact",
    "scores-frozen-start",
    "scores-tangent-midpoint",
    "scores-random_order-start",
    "scores-two_term-first",
    "influence",
)
"""Properties that take a small part of the time of all, and together compute everything that the method names."""

Job = tuple[int, tuple[tuple[str, str], ...]]
"""A seed, and the targets and dtypes still to be tried with it, in one process that draws its cases once."""


def try_seed(job: Job, only: tuple[str, ...]) -> list[list[dict[str, Any]]]:
    """Return the outcome of each property on the cases of one seed, for each target and dtype."""
    seed, pairs = job
    chosen = [one for one in (*PROPERTIES, *LAYER_PROPERTIES, *OPTIMISER_PROPERTIES) if not only or one.name in only]
    return [
        [
            {
                "property": outcome.property.name,
                "status": outcome.status,
                "cases": outcome.examples,
                "share": outcome.share,
                "sentence": outcome.finding.sentence if outcome.finding else "",
                "reproduce": snippet(outcome.finding.case, target) if outcome.finding else "",
            }
            # No timeout: hangs are not the subject here, and a first call may compile.
            for outcome in check(load(target), chosen, dtype=dtype, seed=seed, timeout=None)
        ]
        for target, dtype in pairs
    ]


def add(record: dict[str, Any], job: Job, found: list[list[dict[str, Any]]]) -> None:
    """Add one seed's outcomes to the record."""
    seed, pairs = job
    for (target, dtype), outcomes in zip(pairs, found, strict=True):
        run = record["runs"].setdefault(f"{target} {dtype}", {"seeds": [], "properties": {}, "alarms": []})
        run["seeds"].append(seed)
        for one in outcomes:
            if one["status"] in ("not offered", "not supported", "not tried"):
                continue
            entry = run["properties"].setdefault(one["property"], {"cases": 0, "largest_share": 0.0, "seed": seed})
            entry["cases"] += one["cases"]
            if one["share"] > entry["largest_share"]:
                entry["largest_share"], entry["seed"] = one["share"], seed
            if one["status"] in ("failed", "acceptable"):
                run["alarms"].append({"seed": seed, **{k: one[k] for k in ("property", "sentence", "reproduce")}})


def source() -> str:
    """Return a hash of the project's loaded code and of the whole engine, which loads some modules when it runs."""
    loaded = {
        Path(module.__file__)
        for name, module in sys.modules.items()
        if name.startswith("adamshap.") and module.__file__
    }
    files = loaded | set(Path(gpu.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


def read(file: Path, code: str, only: tuple[str, ...]) -> dict[str, Any]:
    """Return the record of earlier seeds, or an empty one if the file does not exist."""
    if not file.exists():
        return {"source": code, "only": list(only), "runs": {}}
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if (record["source"], record["only"]) != (code, list(only)):
        sys.exit(f"{file}: got a record of other code or other properties; needs --file with a new name")
    return record


def write(file: Path, record: dict[str, Any]) -> None:
    """Write the record atomically."""
    half = file.with_suffix(".half")
    half.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(half, file)


def expanded(target: str) -> list[str]:
    """Return the targets that a name stands for."""
    return [f"{VARIANTS_MODULE}:{name}" for name in VARIANTS] if target == "variants" else [target]


def jobs(record: dict[str, Any], targets: list[str], dtypes: tuple[str, ...], seeds: range) -> Iterator[Job]:
    """Yield the jobs missing from the record, seed by seed."""
    for seed in seeds:
        pairs = tuple(
            (target, dtype)
            for target, dtype in itertools.product(targets, dtypes)
            if seed not in record["runs"].get(f"{target} {dtype}", {"seeds": []})["seeds"]
        )
        if pairs:
            yield seed, pairs


def show(record: dict[str, Any]) -> bool:
    """Print the record as a table; return whether it contains an alarm."""
    names = {name: None for run in record["runs"].values() for name in run["properties"]}
    print("| largest share of its bound | " + " | ".join(record["runs"]) + " |")
    print("|---|" + "---|" * len(record["runs"]))
    for name in names:
        cells = (run["properties"].get(name) for run in record["runs"].values())
        print(f"| `{name}` | " + " | ".join(f"{c['largest_share']:.3f}" if c else "–" for c in cells) + " |")
    for key, run in record["runs"].items():
        cases = sum(entry["cases"] for entry in run["properties"].values())
        print(f"{key}: {len(run['seeds'])} seeds, {cases} cases, {len(run['alarms'])} alarms")
        for alarm in run["alarms"]:
            print(f"  seed {alarm['seed']}, {alarm['property']}: {alarm['sentence']}")
    return any(run["alarms"] for run in record["runs"].values())


def main() -> None:
    """Try seeds until they or the minutes are used up, and print the contents of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET", help="as for adamshap verify")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed, 0 by default")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: both")
    parser.add_argument("--only", action="append", default=[], metavar="PROPERTY", help="this property only")
    parser.add_argument("--file", type=Path, default=Path("false-alarms.json"), help="collects the results")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no seed after this many minutes")
    parser.add_argument("--processes", type=int, default=1, help="how many seeds in parallel")
    parser.add_argument("--cheap", action="store_true", help="only the properties of `CHEAP`")
    given = parser.parse_args()
    only = (*given.only, *(CHEAP if given.cheap else ()))
    given.targets = [target for named in given.targets for target in expanded(named)]
    for target in given.targets:
        load(target)
    record = read(given.file, source(), only)
    seeds = range(given.first, given.first + given.seeds)
    waiting = jobs(record, given.targets, tuple(given.dtype or DTYPES), seeds)
    end = time.monotonic() + 60 * given.minutes
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        running: dict[Any, Job] = {}
        while True:
            while len(running) < given.processes and time.monotonic() < end and (job := next(waiting, None)):
                running[pool.submit(try_seed, job, only)] = job
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                add(record, running.pop(done), done.result())
                write(given.file, record)
    sys.exit(1 if show(record) else 0)


if __name__ == "__main__":
    main()
