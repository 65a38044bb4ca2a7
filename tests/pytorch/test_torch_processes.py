"""Several processes on this machine, by gloo: the scores are those of one process, and a failure ends all of them."""

import multiprocessing
import pickle
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="extra `torch`")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("PyTorch without gloo", allow_module_level=True)
from torch_processes import (  # noqa: E402
    COUNT,
    Scenario,
    all_mistakes,
    all_runs,
    alone,
    in_one_process,
    killed,
    page,
    resumed,
    start,
    two_steps,
)

from adamshap.reference.adam import step_coefficients  # noqa: E402
from adamshap.reference.contract import Estimator  # noqa: E402
from adamshap.reference.models import sample_gradients  # noqa: E402
from adamshap.reference.slopes import random_order_weight  # noqa: E402
from adamshap.torch import Attribution  # noqa: E402
from adamshap.verify.tolerance import assert_within, estimator_magnitude, score_bound  # noqa: E402

CLOSE = 1e-9
"""Largest error of a score in float64, of Σ_j |P_j x_ij|, as in torch_loops.py."""

SECONDS = 300
"""Time after which processes hang; they take some seconds of an idle processor."""

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch_processes"])  # imports once


SCENARIOS = {
    "default": Scenario(counted=True),
    "none on one": Scenario(batches=((3, 0), (0, 4), (2, 2)), options={"variance": "rank_one"}, clip=0.1),
    "rank one": Scenario(
        "gpt", {"variance": "rank_one", "gradient": "start"}, "groups", 0.2, 2, wrapped=False, counted=True
    ),
    "sketch": Scenario("gpt", {"slope": "secant", "rank": 2}, parts=2, counted=True),
    "efficient": Scenario(options={"efficient": True, "gradient": "path", "slope": "secant"}, clip=0.1),
    "two terms": Scenario(options={"slope": "two_term", "with_sgd": False}, optimizer="groups", clip=0.1),
    "convolutions": Scenario(
        "image", {"variance": "rank_one"}, batches=((1, 2, 1, 1), (2, 0)), counted=True, one_by_one=True
    ),
    "one branch": Scenario("branches", alone=True),
    "again": Scenario(again=True, options={"slope": "secant"}),
    "auto": Scenario(options={"slope": "auto"}, batches=((2, 1, 1, 2), (1, 2, 2, 1), (2, 2, 0, 1)), second=1e-5),
    # In float32, Adam's map magnifies rounding errors where v is 0.
    "float32": Scenario(batches=((3, 2, 1, 3),), counted=True, dtype=torch.float32, second=0.125),
    "float32 rank one": Scenario(
        "gpt",
        {"variance": "rank_one"},
        clip=0.1,
        batches=((3, 2, 1, 3),),
        counted=True,
        dtype=torch.float32,
        second=0.125,
    ),
    "autocast": Scenario("gpt", batches=((3, 2, 0, 3),), dtype=torch.float32, autocast=True, second=0.125),
}


def script() -> str:
    """Return the script of docs/torch.md."""
    text = (Path(__file__).parents[2] / "docs" / "torch.md").read_text(encoding="utf-8")
    found = re.search(r'```python title="parallel.py"\n(.*?)^```$', text, re.M | re.S)
    assert found is not None
    return found[1]


JOBS: dict[int, dict[str, tuple[Any, ...]]] = {
    2: {
        "runs": (all_runs, SCENARIOS),
        "resumed": (resumed, SCENARIOS["default"]),
        "mistakes": (all_mistakes,),
        "page": (page, script()),
        "alone": (alone,),
        "killed": (killed, "backward"),
    },
    4: {"runs": (all_runs, SCENARIOS), "killed": (killed, "step")},
}


class Processes:
    """Processes that do their jobs one after another, as imports take most of the time."""

    def __init__(self, world: int, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.expected = {
            name: in_one_process(one, world) for name, one in SCENARIOS.items()
        }  # compiles the kernels once
        args = [(rank, world, str(folder), JOBS[world]) for rank in range(world)]
        processes = [PROCESSES.Process(target=start, args=one) for one in args]
        for process in processes:
            process.start()
        end = time.monotonic() + SECONDS
        for process in processes:
            process.join(max(end - time.monotonic(), 0))
        self.late = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()

    def results(self, job: str) -> list[Any]:
        """Return the result of each process, None of one that was killed."""
        files = [self.folder / f"{job} {rank}" for rank in range(self.world)]
        return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


@pytest.fixture(scope="module", params=sorted(JOBS))
def processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Processes:
    return Processes(request.param, tmp_path_factory.mktemp("processes"))


def bounds(step: Any, estimator: Estimator, largest: float, dtype: Any) -> Any:
    """Return the bound on the error of each sample's score in a step."""
    if dtype == torch.float32:
        added = score_bound(step, estimator.slope, estimator.gradient, dtype=np.float32)
    else:
        added = CLOSE * (estimator_magnitude(step, estimator) + largest)
    bound = np.zeros(COUNT)
    np.add.at(bound, np.asarray(step.train.y) % COUNT, added)
    return bound


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_scores_of_several_processes_are_those_of_one(name: str, processes: Processes) -> None:
    world, results = processes.world, processes.results("runs")
    scenario = SCENARIOS[name]
    assert all(isinstance(one, dict) for one in results), results
    found, run, _ = results[0][name]
    expected, whole = processes.expected[name]
    if scenario.autocast:  # in bfloat16: correlated with those in float64 as in test_torch_autocast.py
        which = whole.seen[:COUNT] > 0
        r = np.corrcoef(run.scores[which], expected[-1][0][which])[0, 1]
        assert r > 1 - (16 * torch.finfo(torch.bfloat16).eps / 2) ** 2 / 2
        return
    options = {key: value for key, value in scenario.options.items() if key not in ("with_sgd", "efficient")}
    own = Estimator(**{"slope": "random_order", **options})
    bound = [np.zeros(COUNT), np.zeros(COUNT)]
    for got, wanted in zip(found, expected, strict=True):
        for number, estimator in enumerate((own, Estimator("sgd", "start"))):
            largest = np.abs(wanted[number]).max()
            bound[number] += bounds(wanted[-1], estimator, largest, scenario.dtype)
            if scenario.options.get("with_sgd", number == 0) or number == 0:
                assert_within(got[number], wanted[number], bound[number], f"{world} processes' scores")
        np.testing.assert_array_equal(got[2], wanted[2])
    tight = {"rtol": 1e-9 if scenario.dtype == torch.float64 else 1e-5}
    for key, values in whole.history.items():
        np.testing.assert_allclose(run.history[key], values, **tight)
    for key, p in whole.params.items():
        np.testing.assert_allclose(run.params[key], p, **tight, atol=tight["rtol"] * np.abs(p).max())


def test_all_processes_have_the_whole_run_of_which_each_has_a_part(processes: Processes) -> None:
    results = processes.results("runs")
    for name in SCENARIOS:
        (_, run, _), *others = (result[name] for result in results)
        parts = [result[name][2] for result in results]
        for other in others:
            np.testing.assert_array_equal(other[1].scores, run.scores)
        for key in ("scores", "sgd_scores", "seen"):
            values = [getattr(part, key) for part in parts]
            np.testing.assert_allclose(sum(values), getattr(run, key), rtol=1e-12, atol=1e-12 * np.abs(values).max())
        if name == "default":
            assert all(0 < part.seen.sum() < run.seen.sum() for part in parts)


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_the_scores_of_a_step_are_those_of_the_samples_of_all_processes(name: str, processes: Processes) -> None:
    results = [result[name] for result in processes.results("runs")]
    found, run, _ = results[0]
    before = np.zeros(COUNT)
    for step, (scores, *_) in enumerate(found):
        index, added = run.step_index[step], np.zeros(COUNT)
        expected = SCENARIOS[name].shards(processes.world, step)
        assert index[index >= 0].tolist() == [sample for shard in expected for sample in shard]
        np.add.at(added, index[index >= 0], run.step_scores[step][index >= 0])
        np.testing.assert_allclose(added, scores - before, rtol=0, atol=1e-14 * np.abs(scores).max())
        before = scores
    for _, other, _ in results:
        np.testing.assert_array_equal(other.step_scores, run.step_scores)


def test_auto_by_a_process_of_its_own_would_choose_otherwise(processes: Processes) -> None:
    """The scenario tells the batch's gradient from the part of one process, at both thresholds."""
    world, chosen, differ = processes.world, set(), 0
    for number, (*_, step) in enumerate(processes.expected["auto"][0]):
        first = len(SCENARIOS["auto"].shards(world, number)[0])
        c = step_coefficients(step)
        for name, x in sample_gradients(step).items():
            whole, own = (random_order_weight(c[name], g) for g in (x.sum(axis=0), world * x[:first].sum(axis=0)))
            chosen.add(whole)
            differ += whole != own
    assert {0.0, 1.0} <= chosen
    assert differ > 0


@pytest.mark.parametrize("processes", [2], indirect=True)
def test_a_resumed_loop_ends_with_the_same_scores(processes: Processes) -> None:
    for whole, run, state in (results := processes.results("resumed")):
        for field in ("scores", "step_index", "step_scores", "step_sgd_scores"):
            np.testing.assert_array_equal(getattr(run, field), getattr(whole, field))
        assert state == results[0][2]
    in_one, _ = processes.expected["default"]
    np.testing.assert_allclose(state, in_one[1][0], rtol=1e-9)


@pytest.mark.parametrize("processes", [2], indirect=True)
def test_a_group_of_one_process_is_one_process(processes: Processes) -> None:
    expected = two_steps(Scenario().loop())
    for run in processes.results("alone"):
        assert sorted(run.params) == sorted(expected.params)
        np.testing.assert_allclose(run.scores, expected.scores, rtol=1e-12)


@pytest.mark.parametrize("processes", [2], indirect=True)
def test_the_script_of_the_page_repeats_a_sample_in_each_epoch(processes: Processes) -> None:
    one, other = processes.results("page")
    assert (one.seen >= 2).all()
    assert one.seen.sum() == 2 * 82
    np.testing.assert_array_equal(one.scores, other.scores)


ALL = {
    "edit": "model parameter '0.weight': got an edit in place",
    "failing validation": "no space left on the device",
    "validation not finite": "validation\\(\\): got nan",
    "sizes in one": "a loss without the number of its samples in process 0",
    "no size": "validation\\(\\): got a loss of 0 samples",
    "scaled": "multiplied by 0.5 in process 1 and 1 in 0",
    "without a gradient": "gradient of '0.weight': got None in some processes",
    "other settings": "other settings, or another model in process 1",
    "old state": "another number of steps in process 1",
    "no samples": "a step without samples \\(step 2\\) in any process",
    "other uses": "other uses of '0.weight' in some processes",
    "uneven inputs": "DistributedDataParallel model in its join\\(\\) context",
    "inner module": "model: got Sequential in one of 2 processes",
    "others' group": "process_group: got a group without this process",
    "each validation sample": "per_validation: got True in one of 2 processes",
    "forward mode": "contraction: got 'forward' in one of 2 processes",
    "verified": "verify_ghost: got True in one of 2 processes",
    "recomputed": "recompute: got True in one of 2 processes",
    "synchronised norm": "model module '1': got SyncBatchNorm",
    "rounded gradients": "gradient of .* got a gradient of norm",
    "fully sharded": "model: got a parameter of which each process has a part, DTensor 'weight'",
}
"""The sentence of each mistake."""

IN_ONE = {"edit", "failing validation", "validation not finite", "no size"}
"""Mistakes of process 1, of which process 0 hears."""


@pytest.mark.parametrize("processes", [2], indirect=True)
def test_a_mistake_ends_all_processes_with_one_sentence(processes: Processes) -> None:
    results = processes.results("mistakes")
    assert all(isinstance(one, dict) for one in results), results
    for name, sentence in ALL.items():
        for rank, result in enumerate(results):
            kind, message = result[name] or ("", "no error")
            assert re.search(sentence, message), (name, rank, kind, message)
            assert len(message.splitlines()) == 1
            other = name in IN_ONE and rank == 0
            assert (kind == "OtherProcessError") == other, (name, rank, kind)
            assert message.startswith("attribution: process 1 of 2 has failed: ") == other


def test_a_killed_process_ends_the_others_with_one_sentence(processes: Processes) -> None:
    assert not processes.late
    results = processes.results("killed")
    assert results.pop(1) is None
    for kind, message in results:
        assert kind == "OtherProcessError"
        assert re.match(r"attribution: process \d of \d waited in vain for another one", message)
        assert len(message.splitlines()) == 1


def test_a_group_needs_processes() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"process_group: got 'all'; needs torch\.distributed\.init_process_group"):
        Attribution(model, optimizer, validation=lambda: None, n_samples=2, process_group="all")
