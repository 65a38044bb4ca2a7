"""Look for false alarms: the quick profile, seed after seed, on implementations that are right.

    python docs/false_alarms.py --seeds 1000                      # hours; stop and start it as you like
    python docs/false_alarms.py mypackage.mine --seeds 20 --file mine.json
    python docs/false_alarms.py --seeds 0                         # only print what the file holds

An alarm on a right implementation is a defect of the kit's tolerance. Each seed draws new cases for every property.
What was found is added to the file after every seed, and seeds that it holds are not tried again; a file made by other
code is refused. Exit code 1 where there is an alarm.
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

from adamshap import gpu, reference, verify
from adamshap.verify.checking import check
from adamshap.verify.implementation import load
from adamshap.verify.properties import PROPERTIES
from adamshap.verify.receipt import source_hash
from adamshap.verify.reproduction import snippet

TARGETS = ("engine", "adamshap.verify.candidates.torch_ghost")
DTYPES = ("float64", "float32")
Job = tuple[str, str, int]


def try_seed(target: str, dtype: str, seed: int, only: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return what became of each property on the cases of one seed."""
    chosen = [one for one in PROPERTIES if not only or one.name in only]
    return [
        {
            "property": outcome.property.name,
            "status": outcome.status,
            "cases": outcome.examples,
            "share": outcome.share,
            "sentence": outcome.finding.sentence if outcome.finding else "",
            "reproduce": snippet(outcome.finding.case, target) if outcome.finding else "",
        }
        # A hang is not what is looked for, and a first call may compile.
        for outcome in check(load(target), chosen, dtype=dtype, seed=seed, timeout=None)
    ]


def add(record: dict[str, Any], job: Job, outcomes: list[dict[str, Any]]) -> None:
    """Add one seed's outcomes to the record."""
    target, dtype, seed = job
    run = record["runs"].setdefault(f"{target} {dtype}", {"seeds": [], "properties": {}, "alarms": []})
    run["seeds"].append(seed)
    for one in outcomes:
        if one["status"] in ("not offered", "not supported"):
            continue
        entry = run["properties"].setdefault(one["property"], {"cases": 0, "largest_share": 0.0, "seed": seed})
        entry["cases"] += one["cases"]
        if one["share"] > entry["largest_share"]:
            entry["largest_share"], entry["seed"] = one["share"], seed
        if one["status"] == "failed":
            run["alarms"].append({"seed": seed, **{k: one[k] for k in ("property", "sentence", "reproduce")}})


def read(file: Path, source: str, only: tuple[str, ...]) -> dict[str, Any]:
    """Return the record of earlier seeds, an empty one where there is no file."""
    if not file.exists():
        return {"source": source, "only": list(only), "runs": {}}
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if (record["source"], record["only"]) != (source, list(only)):
        sys.exit(f"{file}: got a record of other code or other properties; needs --file with a new name")
    return record


def write(file: Path, record: dict[str, Any]) -> None:
    """Write the record whole or not at all."""
    half = file.with_suffix(".half")
    half.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(half, file)


def jobs(record: dict[str, Any], targets: list[str], dtypes: tuple[str, ...], seeds: int) -> Iterator[Job]:
    """Yield what is not in the record yet, seed by seed."""
    for seed, target, dtype in itertools.product(range(seeds), targets, dtypes):
        if seed not in record["runs"].get(f"{target} {dtype}", {"seeds": []})["seeds"]:
            yield target, dtype, seed


def show(record: dict[str, Any]) -> bool:
    """Print the record as a table; return whether it holds an alarm."""
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
    """Try seeds until they or the minutes are used up, and print what the file then holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET", help="as for adamshap verify")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to this many")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: both")
    parser.add_argument("--only", action="append", default=[], metavar="PROPERTY", help="this property only")
    parser.add_argument("--file", type=Path, default=Path("false-alarms.json"), help="where results are gathered")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no seed after this many")
    parser.add_argument("--processes", type=int, default=1, help="how many seeds at a time")
    given = parser.parse_args()
    folders = (Path(module.__file__).parent for module in (reference, gpu, verify))
    source = hashlib.sha256("".join(map(source_hash, folders)).encode()).hexdigest()
    only = tuple(given.only)
    record = read(given.file, source, only)
    waiting = jobs(record, given.targets, tuple(given.dtype or DTYPES), given.seeds)
    end = time.monotonic() + 60 * given.minutes
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        running: dict[Any, Job] = {}
        while True:
            while len(running) < given.processes and time.monotonic() < end and (job := next(waiting, None)):
                running[pool.submit(try_seed, *job, only)] = job
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                add(record, running.pop(done), done.result())
                write(given.file, record)
    sys.exit(1 if show(record) else 0)


if __name__ == "__main__":
    main()
