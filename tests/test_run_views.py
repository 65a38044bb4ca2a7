"""The views of a run: a table, a figure, a log; and the example for users of scikit-learn."""

import io
import logging
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamshap import gpu
from adamshap.reference import Adam, Batch, Network, Progress, Run, attribute
from adamshap.reference.contract import CREDITS
from adamshap.reference.contract.views import BINS, histogram

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
GENERATOR = np.random.default_rng(4)
TRAIN, VALID = (Batch(GENERATOR.normal(size=(n, 3)), GENERATOR.integers(0, 2, n)) for n in (10, 4))


def run_of(trainer: Callable[..., Run] = attribute, **options: Any) -> Run:
    return trainer(Network((3, 4, 2)), Adam(lr=0.1), TRAIN, VALID, **{"epochs": 2, "batch_size": 4, **options})


RUN, EACH = run_of(), run_of(per_validation=True)


@pytest.mark.parametrize("run", [RUN, EACH], ids=["one score", "for each validation sample"])
def test_a_run_prints_as_one_line(run: Run) -> None:
    score = run.scores if run.scores.ndim == 1 else run.scores.mean(axis=1)
    low, high = np.argsort(score)[[0, -1]]
    ends = f"{score[low]:.3g} (sample {low}) to {score[high]:.3g} (sample {high})"
    assert repr(run) == f"Run(10 samples, 6 steps, scores from {ends})"


def test_the_frame_holds_the_scores() -> None:
    pytest.importorskip("pandas", reason="extra `tables`: pandas")
    table = RUN.to_frame()
    assert list(table.columns) == ["score", "sgd_score", "seen"]
    assert table.index.tolist() == list(range(10))
    for name, values in (("score", RUN.scores), ("sgd_score", RUN.sgd_scores), ("seen", RUN.seen)):
        assert np.array_equal(table[name], values)
    wide = EACH.to_frame()
    assert list(wide.columns) == [f"{name}[{k}]" for name in ("score", "sgd_score") for k in range(4)] + ["seen"]
    assert np.array_equal(wide["sgd_score[2]"], EACH.sgd_scores[:, 2])


@pytest.mark.parametrize("run", [RUN, EACH], ids=["one score", "for each validation sample"])
def test_the_figure_draws_the_scores(run: Run) -> None:
    figure = run.plot()
    bars, beside, losses = figure.axes
    score = run.scores if run.scores.ndim == 1 else run.scores.mean(axis=1)
    assert sum(bar.get_height() for bar in bars.patches) == len(score)
    assert BINS <= len(bars.patches) <= BINS + 2
    assert np.array_equal(np.asarray(beside.collections[0].get_offsets())[:, 1], score)
    assert [
        np.array_equal(line.get_ydata(), run.history[name])
        for line, name in zip(losses.lines, ("train_loss", "valid_loss"), strict=True)
    ] == [True, True]
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\x89PNG")


@given(st.lists(st.floats(-1e9, 1e9) | st.just(0.0) | st.floats(-1e-9, 1e-9), min_size=1), st.integers(1, 50))
def test_every_score_is_in_its_bin(scores: list[float], bins: int) -> None:
    values = np.array(scores)
    counts, edges = histogram(values, bins)
    assert counts.sum() == len(values)
    assert bins <= len(counts) <= bins + 2 or not values.any()
    assert 0.0 in edges
    zero = int(np.flatnonzero(edges == 0)[0])
    assert counts[:zero].sum() == (values < 0).sum()


@pytest.mark.parametrize(
    ("method", "package", "extra"), [("to_frame", "pandas", "tables"), ("plot", "matplotlib.figure", "demo")]
)
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, method: str, package: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'pip install "adamshap\[{extra}\]"'):
        getattr(RUN, method)()


# --- logging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("credit", CREDITS)
@pytest.mark.parametrize("trainer", [attribute, gpu.attribute], ids=["oracle", "engine"])
def test_coarse_events_are_logged(trainer: Callable[..., Run], credit: str, caplog: pytest.LogCaptureFixture) -> None:
    told: list[Progress] = []
    with caplog.at_level(logging.INFO, logger="adamshap"):
        run = run_of(trainer, on_step=told.append, credit=credit)
    lines = [record.getMessage() for record in caplog.records]
    assert {record.name for record in caplog.records} == {"adamshap"}
    assert len(told) == 6
    assert len(lines) == 4
    assert lines[0].startswith("training starts: Network(sizes=(3, 4, 2)")
    assert "10 training and 4 validation samples" in lines[0]
    for epoch, step in ((1, 3), (2, 6)):
        losses = [run.history[name][step - 1] for name in ("train_loss", "valid_loss")]
        assert lines[epoch] == (
            f"epoch {epoch} ends at step {step} of 6: training loss {losses[0]:.6g}, validation loss {losses[1]:.6g},"
            " both before the step"
        )
    assert lines[3] == "training ends after 6 steps"


def test_silent_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    run_of()
    assert capfd.readouterr() == ("", "")
    handlers = logging.getLogger("adamshap").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)


# --- scikit-learn ----------------------------------------------------------------------------------------------------


def test_the_example_for_scikit_learn(capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path(str(EXAMPLES / "sklearn_pipeline.py"))
    run, names = found["run"], found["named_train"]
    assert [found["labels"].classes_[label] for label in found["train"].y] == names.tolist()
    worst = np.argsort(run.scores)[:3]
    losses = run.history["valid_loss"]
    assert capsys.readouterr().out.splitlines() == [
        f"loss {losses[0]:.3f} -> {losses[-1]:.3f}",
        *(f"row {row}, {names[row]}: {run.scores[row]:+.1e}" for row in worst),
    ]
    assert losses[-1] < losses[0]
