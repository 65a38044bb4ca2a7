"""The command bench: its JSON, tables and refusals. Its measurements depend on the machine and are not tested."""

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from adamshap.gpu import bench, bench_models
from adamshap.gpu.sketch import Sketch
from adamshap.reference.command.main import GROUP, build
from adamshap.verify.claims import cost

app = typer.Typer()
app.command()(bench.bench_command)


@pytest.fixture(autouse=True)
def small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bench_models.Transformer(depth=1, width=4, heads=2, vocab=5, positions=3)
    images = bench_models.Convnet(colours=2, side=4, channels=(2, 3))
    others = (bench.Case((), 4, 2, 3, model), bench.Case((), 4, 2, 3, images))
    cases = (bench.Case((20, 60, 60, 4), 64, 4, 3), *others, bench.Case((6, 8, 3), 8, 2, 3))
    monkeypatch.setattr(bench, "CASES", cases)


def test_json_has_a_row_for_exact_and_one_for_sketched_scores(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    result = CliRunner().invoke(app, ["--json", "--rank", "8", "--device", "cpu", "--out", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert json.loads(out.read_text()) == report
    assert [(row["sizes"], row["rank"]) for row in report["rows"]] == [
        ([20, 60, 60, 4], None),
        ([20, 60, 60, 4], 8),
        *2 * [([], None), ([], 8)],
        ([6, 8, 3], None),
        ([6, 8, 3], 8),
    ]
    wanted = {"n", "n_val", "slope", "gradient", "throughput_ratio", "plain_ms", "attributed_ms", "pearson_with_exact"}
    for row in report["rows"]:
        assert wanted <= set(row)
        assert 0 < row["floor"] < 1
        assert row["plain_ms"] > 0
        assert row["torch_plain_ms"] is None
        assert -1 <= row["pearson_with_exact"] <= 1
        assert row["carry"] is None if not row["sizes"] else row["carry"]["ms"] > 0
    # By hand: 12 blocks of 6 steps, of 8 samples with 8 kept inputs and 8 + 3 gradients, and a sum of 83 parameters.
    assert report["rows"][-1]["carry"]["kept_mib"] == 4 * 12 * (6 * 8 * (8 + 11) + 83) / 2**20
    assert report["machine"]["device"] == "cpu"


def test_auto_has_a_part_for_its_choice_and_no_carry() -> None:
    result = CliRunner().invoke(app, ["--json", "--slope", "auto", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    for row in json.loads(result.output)["rows"]:
        assert row["slope"] == "auto"
        assert row["parts_ms"]["choice of 'auto'"] > 0
        assert row["carry"] is None


def test_tables_and_torch() -> None:
    pytest.importorskip("torch")
    result = CliRunner().invoke(app, ["--against", "torch", "--device", "cpu"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "20-60-60-4" in result.output
    assert "PyTorch's plain step" in result.output
    assert "not timed" in result.output


def test_pytorchs_plain_step_is_that_of_the_same_model() -> None:
    pytest.importorskip("torch")
    from adamshap.gpu import bench_torch

    perceptron, transformer, images, _ = bench.CASES
    for case in (perceptron, transformer):
        wall, processor = bench_torch.torch_rounds(case) or ([], [])
        assert len(wall) == len(processor) == case.rounds
    assert bench_torch.torch_rounds(images) is None
    assert isinstance(transformer.other, bench_models.Transformer)
    optimiser, loss = bench_torch._transformer(transformer.other, transformer.n)
    theirs = sorted(tuple(p.shape) for group in optimiser.param_groups for p in group["params"])
    assert theirs == sorted(transformer.other.model.shapes.values())
    assert loss().ndim == 0


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--against", "is not one of 'torch'"),
        ("--slope", "is not one of 'sgd'"),
        ("--gradient", "is not one of 'start'"),
        ("--device", "is not one of 'auto'"),
        ("--out", "whose folder does not exist"),
    ],
)
def test_options_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, words: str
) -> None:
    monkeypatch.setattr(bench, "CASES", ())
    value = str(tmp_path / "no" / "file") if option == "--out" else "abacus"
    result = CliRunner().invoke(build(entry_points(group=GROUP)), ["bench", option, value])
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_claim_about_cost_reports_its_rows() -> None:
    settings = cost.Settings(1, bench.CASES[-1:])
    exact, sketched = cost.measure(settings, seed=0)
    assert (exact["network"], exact["rank"], sketched["rank"]) == ("6-8-3", None, cost.RANK)
    assert exact["floor"] == bench.floor(bench.CASES[-1], None)
    (table,) = cost.section(settings, [exact, sketched]).tables
    assert [row[:3] for row in table.rows] == [["6-8-3", "8", "exact"], ["6-8-3", "8", str(cost.RANK)]]


@pytest.mark.parametrize("rank", [None, 4])
def test_the_floor_counts_every_product(rank: Any) -> None:
    """By hand: layers 10-20 and 20-30, n = 100, n_val = 5."""
    case = bench.Case((10, 20, 30), 100, 5, 1)
    first, second = 10 * 20, 20 * 30
    plain = 100 * (2 * first + 3 * second)  # no gradient in the input
    scoring = 100 * (first + second)
    if rank is not None:
        assert Sketch(4).pays(100, 10, 20)
        scoring = 4 * (100 * (10 + 20 + 20 + 30) + 2 * (first + second))
    validation = 5 * (2 * first + 3 * second)
    for carry, times in ((False, 1), (True, 2)):
        expected = plain / (plain + times * (validation + scoring))
        np.testing.assert_array_max_ulp(np.array(bench.floor(case, rank, carry)), np.array(expected), 2)


@pytest.mark.parametrize("rank", [None, 1])
def test_the_floor_of_a_transformer(rank: Any) -> None:
    """By hand: two blocks of 4d² + 8d² weights and a head, and two products of T² d a block."""
    d, vocab, T = 6, 5, 7
    case = bench.Case((), 10, 3, 1, bench_models.Transformer(depth=2, width=d, heads=2, vocab=vocab, positions=T))
    weights, mixing = 2 * 12 * d * d + d * vocab, 2 * 2 * d * T * T
    scoring = 10 * T * weights
    if rank is not None:
        pairs = 2 * [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)] + [(d, vocab)]
        assert all(Sketch(1).pays(10 * T, *pair) for pair in pairs)
        scoring = sum(10 * T * (a + b) + 2 * a * b for a, b in pairs)
    sample = 3 * (T * weights + mixing)
    expected = 10 * sample / (13 * sample + scoring)
    np.testing.assert_array_max_ulp(np.array(bench.floor(case, rank)), np.array(expected), 2)


@pytest.mark.parametrize("rank", [None, 1])
def test_the_floor_of_a_convnet(rank: Any) -> None:
    """By hand: 3 × 3 kernels at 36 and at 9 places, a linear layer of 5 pixels, and no gradient in the images."""
    case = bench.Case((), 10, 3, 1, bench_models.Convnet(colours=2, side=6, channels=(4, 5)))
    first, second, last = 36 * 18 * 4, 9 * 36 * 5, 5 * 10
    scoring = 10 * (first + second + last)
    if rank is not None:
        assert Sketch(1).pays(360, 18, 4)
        assert Sketch(1).pays(90, 36, 5)
        assert Sketch(1).pays(10, 5, 10)
        scoring = sum(10 * T * (a + b) + 2 * a * b for T, a, b in [(36, 18, 4), (9, 36, 5), (1, 5, 10)])
    sample = 3 * (first + second + last) - first
    expected = 10 * sample / (13 * sample + scoring)
    np.testing.assert_array_max_ulp(np.array(bench.floor(case, rank)), np.array(expected), 2)
