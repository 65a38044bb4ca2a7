"""Rehearsals of the run on a GPU: complete, with only the GPU machine's packages, and killed in every stage."""

import ast
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bare_machine
import jsonschema
import pytest
from processes import PATIENCE, children_of, wait_for

from adamshap.gpu.backend import DTYPES
from adamshap.reference.contract import ACTIVATIONS
from adamshap.verify import receipt
from adamshap.verify.on_gpu.conductor import LOG, RUN
from adamshap.verify.on_gpu.plan import STAGES
from adamshap.verify.on_gpu.throughput import NOT_BUILT
from adamshap.verify.properties import PROPERTIES

ROOT = Path(__file__).parents[2]
NAMES = [stage.name for stage in STAGES]
COMMAND = [sys.executable, "-m", "adamshap.verify.on_gpu", "--rehearse", "--minutes", "10"]

pytestmark = pytest.mark.usefixtures("cupy_on_cpu")  # skipped if a rehearsal cannot run


def content(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / RUN).read_text())
    return loaded


def the_receipt(folder: Path) -> Path:
    (file,) = [file for file in folder.glob("*.json") if file.name != RUN]
    return file


# --- a whole rehearsal ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / "sitecustomize.py").write_text(bare_machine.hook())
    out = folder / "out"
    result = subprocess.run(
        [*COMMAND, "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    log = (out / LOG).read_text() if (out / LOG).exists() else ""
    assert result.returncode == 0, result.stdout + result.stderr + log
    return out


def test_every_stage_passes_with_only_what_the_machine_has(rehearsed: Path) -> None:
    run = content(rehearsed)
    assert [(stage["name"], stage["status"], stage["failed"]) for stage in run["stages"]] == [
        (name, "passed", {}) for name in NAMES
    ]
    assert all(stage["required_done"] == stage["required"] > 0 for stage in run["stages"])
    assert {"autograd", "cupy-cuda13x", "numpy", "torch"} <= set(run["imported"])
    assert sorted(file.name for file in rehearsed.iterdir()) == sorted([RUN, LOG, the_receipt(rehearsed).name])


def test_it_holds_the_largest_error_of_every_property(rehearsed: Path) -> None:
    errors = json.loads(the_receipt(rehearsed).read_text())["largest_errors"]
    wanted = {f"{one.name} {dtype}, share of the bound" for one in PROPERTIES for dtype in DTYPES}
    assert wanted <= set(errors)
    assert "micro-batches of two terms float32, share of the bound" in errors  # a test of the checkout recorded it
    assert any(name.startswith("TF32") for name in errors)


def test_it_holds_the_throughput_and_says_what_is_not_built(rehearsed: Path) -> None:
    throughput = json.loads(the_receipt(rehearsed).read_text())["throughput"]
    for part in ("copy within the card", "matrix product, TF32", "random_order, exact", "secant, rank", "compiled"):
        assert any(part in name and value > 0 for name, value in throughput.items()), part
    notes = content(rehearsed)["stages"][NAMES.index("throughput")]["notes"]
    assert {name: notes[name] for name in NOT_BUILT} == NOT_BUILT
    assert not set(NOT_BUILT) & set(throughput)


def kernels_of_the_engine() -> set[str]:
    """Return the names of the engine's kernels, from the sources."""
    rules = {
        "adamshap_fused_{kind}": ("sgd", "frozen", "linearized", "previous", "nodes"),
        "adamshap_split_{kind}": ("frozen", "linearized", "nodes", "even"),
        "adamshap_own_share_{kind}": ("squared", "weight"),
        "adamshap_{name}": ACTIVATIONS,
    }
    found = set()
    for file in (ROOT / "gpu").glob("*/cuda.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and re.fullmatch(r"adamshap_\w*[^_]", str(node.value)):
                found.add(str(node.value))
            elif isinstance(node, ast.JoinedStr) and ast.unparse(node)[2:].startswith("adamshap_"):
                pattern = ast.unparse(node)[2:-1]
                start = pattern[: pattern.index("{")]
                found |= {start + kind for kind in rules[pattern]}
    return found


def test_the_smoke_test_launches_every_kernel(rehearsed: Path) -> None:
    notes = content(rehearsed)["stages"][NAMES.index("smoke")]["notes"]
    launched = {kernel for name, kernels in notes.items() if name.startswith("kernels") for kernel in kernels}
    kernels = kernels_of_the_engine()
    assert {
        "adamshap_fused_nodes",
        "adamshap_split_even",
        "adamshap_gelu",
        "adamshap_two_term_fit",
        "adamshap_whitening",
    } <= kernels
    assert kernels - launched == set()


def test_a_rehearsal_is_no_receipt(rehearsed: Path) -> None:
    file = the_receipt(rehearsed)
    whole = json.loads(file.read_text())
    assert file.name.startswith("rehearsal-")
    assert (whole["rehearsal"], whole["partial"], whole["machine"]["card"]) == (True, False, receipt.EMULATED)
    with pytest.raises(ValueError, match="comes from a rehearsal"):
        receipt.read(file)
    with pytest.raises(ValueError, match="comes from a rehearsal"):
        receipt.newest(rehearsed)
    schema = json.loads(receipt.SCHEMA_FILE.read_text())
    errors = {error.json_path for error in jsonschema.Draft202012Validator(schema).iter_errors(whole)}
    assert errors == {"$.rehearsal", "$.machine.card"}


# --- killed -----------------------------------------------------------------------------------------------------------


class Running:
    """A running rehearsal of one stage, possibly after others."""

    def __init__(self, folder: Path, stage: str, before: tuple[str, ...] = ()) -> None:
        self.out, self.stage = folder / "out", stage
        with (folder / "printed").open("wb") as printed:
            self.process = subprocess.Popen(
                [*COMMAND, "--out", str(self.out), "--stages", ",".join((*before, stage))],
                cwd=ROOT,
                stdout=printed,
                stderr=printed,
            )

    def children(self) -> list[int]:
        return children_of(self.process.pid)

    def outcome(self) -> dict[str, Any]:
        try:
            stage: dict[str, Any] = content(self.out)["stages"][NAMES.index(self.stage)]
        except FileNotFoundError:
            return {}
        return stage

    def wait_for(self, condition: Callable[[], Any]) -> None:
        wait_for(condition, str(self.outcome()))

    def check_what_was_written(self) -> None:
        """Check that every file is complete, the receipt is partial, and no process is left."""
        self.wait_for(lambda: not self.children())
        written = json.loads(the_receipt(self.out).read_text())
        assert (written["partial"], written["rehearsal"]) == (True, True)
        status = self.outcome()["status"]
        # A killed conductor may have written the previous version of the receipt.
        known = {status} if status in ("passed", "failed") else {"cut short", "not run"}
        assert written["stages"][self.stage] in known
        assert status in (*known, "running")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    running = []

    def begin(stage: str, *before: str) -> Running:
        running.append(Running(tmp_path, stage, before))
        return running[-1]

    yield begin
    for one in running:
        if one.process.poll() is None:
            one.process.terminate()
            one.process.wait()


@pytest.mark.parametrize("stage", NAMES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_run_that_is_killed_leaves_a_partial_receipt(
    start: Callable[..., Running], stage: str, number: signal.Signals
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    moment = random.Random(seed).uniform(0, 3)
    print(f"seed {seed}: after {moment:.3f} s")  # pytest shows it if the test fails
    run = start(stage)
    run.wait_for(lambda: run.children() or run.process.poll() is not None)
    time.sleep(moment)
    run.process.send_signal(number)
    status = run.process.wait(PATIENCE)
    if number == signal.SIGKILL:
        assert status in (-number, 3)  # 3: it had ended by itself
    else:
        assert status == 3
    run.check_what_was_written()
    if number == signal.SIGTERM and content(run.out)["stopped_by"]:
        assert run.outcome()["status"] in ("cut short", "passed")


def test_a_killed_run_keeps_the_stages_before(start: Callable[..., Running]) -> None:
    run = start("smoke", "machine")
    run.wait_for(lambda: run.outcome().get("status") == "running")
    run.process.kill()
    run.process.wait(PATIENCE)
    run.check_what_was_written()
    for stages in (content(run.out)["stages"][0], json.loads(the_receipt(run.out).read_text())["stages"]):
        assert "passed" in (stages.get("status"), stages.get("machine"))


@pytest.mark.parametrize("stage", ["smoke", "suite"])
def test_a_stage_goes_on_when_a_process_of_it_is_killed(start: Callable[..., Running], stage: str) -> None:
    run = start(stage)
    run.wait_for(lambda: run.children())
    run.wait_for(lambda: run.outcome().get("done"))
    done = len(run.outcome()["done"])
    os.kill(run.children()[0], signal.SIGKILL)
    run.wait_for(lambda: run.outcome()["failed"])
    run.wait_for(lambda: len(run.outcome()["done"]) > done + 1)  # more than the lost task
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(PATIENCE) == 3
    (how,) = run.outcome()["failed"].values()
    assert "was ended by SIGKILL" in how  # in a task or between two
    run.check_what_was_written()
