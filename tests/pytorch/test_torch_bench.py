"""``adamshap bench --model gpt``: its JSON, tables and refusals. Its measurements depend on the machine."""

import json
import sys
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from adamshap.gpu.bench import bench_command
from adamshap.reference.command.main import GROUP, build
from adamshap.torch.bench import against, gpt
from adamshap.torch.bench.loop import Loop
from adamshap.torch.bench.memory import peak_mib
from adamshap.torch.bench.model import Model, Sizes
from adamshap.verify.tolerance import assert_within, rounding

TINY = Sizes(layers=1, heads=2, width=8, vocabulary=16, context=6, n=4)
app = typer.Typer()
app.command()(bench_command)


@pytest.fixture(autouse=True)
def small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt, "CASES", (gpt.GptCase(TINY, 2, 2), gpt.GptCase(TINY, 1, 2)))
    monkeypatch.setattr(gpt, "peak_mib", lambda sizes, n_val, options, threads: 30.0 if options else 20.0)


def test_json_has_a_row_for_each_step(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    arguments = ["--model", "gpt", "--rank", "2", "--threads", "1", "--json", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert json.loads(out.read_text()) == report
    names = ["plain"] + [f"{name}, {kind}" for name in gpt.ESTIMATORS for kind in ("exact", "rank 2")]
    names.append("secant, bfloat16")
    assert [(row["n_val"], row["variant"]) for row in report["rows"]] == [(v, name) for v in (2, 1) for name in names]
    for row in report["rows"]:
        parts = row["parts_ms"]
        assert {"forward and backward", "Adam"} <= set(parts)
        scored = row["variant"] != "plain"
        assert scored == ({"checks", "slope and point of Γ", "validation pass", "P", "contraction"} <= set(parts))
        assert ("norms of the samples" in parts) == ("random_order" in row["variant"] or "auto" in row["variant"])
        assert ("computing factors of P" in parts) == row["variant"].endswith("rank 2")
        assert row["ms"] > 0
        assert (row["tied"], row["threads"], row["computes"]) == (True, 1, None)
        assert row["peak_ratio"] == (1.5 if scored else 1.0)
        floors = {
            "exact": 12 / (16 + 3 * row["n_val"]),
            "rank 2": 4 / (4 + row["n_val"]),
            "bfloat16": 12 / (14 + 3 * row["n_val"]),
        }
        assert row["floor"] == (floors[row["variant"].rsplit(", ", 1)[1]] if scored else 1.0)


def test_scores_are_compared_with_exact_ones() -> None:
    rows = {row["variant"]: row for row in gpt.measure_gpt(gpt.CASES[0], 2, threads=1)}
    assert rows["plain"]["pearson_with_exact"] is None
    for name, row in rows.items():
        if name.endswith("exact"):
            assert row["pearson_with_exact"] == pytest.approx(1.0, abs=1e-12)
    assert rows["secant, rank 2"]["pearson_with_exact"] < 0.99999 < rows["secant, bfloat16"]["pearson_with_exact"] < 1


def test_a_table_by_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [gpt.GptCase(replace(TINY, context=context), 2, 2) for context in (5, 6)]
    monkeypatch.setattr(gpt, "SMALLER", cases)
    arguments = ["--model", "gpt", "--sizes", "--rank", "2", "--threads", "1"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "240"})
    assert result.exit_code == 0, result.output
    count = sum(p.numel() for p in Model(TINY).parameters())
    lines = [line for line in result.output.splitlines() if f"{count:,}" in line or f"{count - TINY.width:,}" in line]
    assert len(lines) == len(cases)
    assert all(line.count(", 1.50") == 6 for line in lines)
    for name in ("secant, exact", "auto, rank 2", "random_order, rank 2"):
        assert name in result.output
    assert "of rank one" not in result.output


def test_tables_of_one_slope() -> None:
    arguments = ["--model", "gpt", "--slope", "linearized", "--gradient", "start", "--threads", "1"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "linearized + start, rank 16" in result.output
    assert "n_val = 1" in result.output
    assert "validation pass" not in result.output  # at θ, before the engine's phases
    assert "random_order" not in result.output


def test_in_late_steps_auto_is_secant() -> None:
    """The moments keep their size, corrected for bias."""
    scores = {}
    for slope in ("secant", "auto"):
        loop = Loop.of(TINY, 2, {"slope": slope}, 1)
        assert loop.attribution is not None
        for _ in range(3):
            loop.step()
        moments = [dict(state) for state in deepcopy(loop.optimiser.state_dict())["state"].values()]
        loop.ripen()
        for before, after in zip(moments, loop.optimiser.state.values(), strict=True):
            assert (float(before["step"]), float(after["step"])) == (3, 1000)
            for name, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.999)):
                corrected = after[name] / (1 - beta**1000)
                torch.testing.assert_close(corrected, before[name] / (1 - beta**3))
        early = loop.attribution.result().scores
        loop.step()
        scores[slope] = loop.attribution.result().scores - early
    size = np.abs(scores["secant"]).max() + np.abs(early).max()
    assert_within(scores["auto"], scores["secant"], rounding(size, TINY.n, np.float32), "scores")


def test_a_loop_with_scores_trains_like_one_without() -> None:
    plain, scored = (Loop.of(TINY, 2, options, 1) for options in (None, {"slope": "secant"}))
    for _ in range(3):
        plain.step()
        scored.step()
    assert scored.attribution is not None
    assert scored.attribution.result().seen.tolist() == [3] * TINY.n + [0] * TINY.n  # the other half of the samples
    for p, q in zip(plain.model.parameters(), scored.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_memory_is_that_of_a_process_of_its_own() -> None:
    """Embeddings of 16 MiB: with gradients and both moments four times that."""
    wide = Sizes(layers=1, heads=1, width=64, vocabulary=2**16, context=2, n=1)
    assert 64 <= peak_mib(wide, 1, None, 1) < 64 + 4 * 16 + 32


def test_another_attribution_is_timed_beside_ours_without_ties(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package in place of GhostSuite, which takes the gradients as they are."""
    (tmp_path / "ghostEngines").mkdir()
    (tmp_path / "ghostEngines" / "__init__.py").write_text(STANDS_IN)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "ghostEngines", raising=False)
    arguments = ["--model", "gpt", "--against", "ghostsuite", "--checkout", str(tmp_path), "--threads", "1", "--json"]
    result = CliRunner().invoke(app, arguments)
    monkeypatch.delitem(sys.modules, "ghostEngines", raising=False)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output)["rows"]
    names = ["plain", "secant, exact", "secant, rank 16", "sgd at θ, exact", "ghostsuite"]
    assert [row["variant"] for row in rows] == 2 * names
    for row in rows:
        assert row["tied"] is False
        assert row["computes"] == against.QUANTITIES.get(row["variant"])
        assert (row["peak_mib"] is None) == (row["variant"] == "ghostsuite")


STANDS_IN = """
class GradDotProdEngine:
    def __init__(self, module, val_batch_size, loss_reduction):
        self.module, self.dot_product_log = module, []
        assert val_batch_size in (1, 2)

    def attach(self, optimiser):
        pass

    def attach_train_batch(self, X_train, Y_train, iter_num, batch_idx):
        assert len(X_train) == 4

    def aggregate_and_log(self):
        self.dot_product_log.append({"dot_product": None})

    def prepare_gradients(self):
        assert all(p.grad is not None for p in self.module.parameters())

    def clear_gradients(self):
        pass
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "opacus"], "without --model gpt"),
        (["--threads", "1"], "without --model gpt"),
        (["--model", "gpt", "--against", "torch"], "PyTorch's own"),
        (["--model", "gpt", "--device", "cuda"], "runs on the CPU"),
        (["--model", "gpt", "--checkout", "."], "without --against ghostsuite"),
        (["--model", "gpt", "--against", "ghostsuite"], "a checkout of"),
        (["--model", "gpt", "--against", "ghostsuite", "--checkout", "docs"], "a folder with ghostEngines/"),
        (["--sizes"], "without --model gpt"),
        (["--model", "gpt", "--sizes", "--slope", "sgd"], "got 'sgd' with --sizes"),
        (["--model", "gpt", "--sizes", "--against", "opacus"], "got 'opacus' with --sizes"),
        (["--model", "mlp"], "is not one of 'gpt'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(build(entry_points(group=GROUP)), ["bench", *arguments])
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("peer", ["dattri-llm", "opacus"])
def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, peer: str) -> None:
    monkeypatch.setitem(sys.modules, peer.replace("-", "_"), None)
    result: Any = CliRunner().invoke(build(entry_points(group=GROUP)), ["bench", "--model", "gpt", "--against", peer])
    assert result.exit_code == 2
    assert f"{peer!r}, which is not installed" in result.stderr
    assert f"pip install {peer}" in result.stderr
