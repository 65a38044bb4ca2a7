"""The progress bar moves on a terminal, and does not appear elsewhere."""

import io
import time

import pytest
from rich.console import Console

from adamshap.reference.command import report
from adamshap.reference.command.report import progress_bar
from adamshap.reference.contract import Progress


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_is_for_terminals_only(terminal: bool) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=100, _environ={})
    with progress_bar(console, 3) as on_step:
        on_step(Progress(7, 15, 1, 0.12345, 2.5))
    shown = screen.getvalue()
    if terminal:
        for part in ("Epoch 2/3", "7/15", "loss 0.123", "validation 2.500"):
            assert part in shown
    else:
        assert shown == ""


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("slow", [True, False])
def test_a_slow_first_step_is_explained_once(monkeypatch: pytest.MonkeyPatch, terminal: bool, slow: bool) -> None:
    monkeypatch.setattr(report, "PATIENCE", 0.05 if slow else 60.0)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=100, _environ={})
    with progress_bar(console, 3, "It compiles.") as on_step:
        for step in range(2):
            time.sleep(0.3 if slow else 0.0)
            on_step(Progress(step, 15, 0, 0.1, 2.5))
    assert screen.getvalue().count("It compiles.") == (terminal and slow)


def test_the_reason_is_not_printed_after_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PATIENCE", 0.2)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, _environ={})
    with progress_bar(console, 3, "It compiles."):
        pass
    time.sleep(0.4)
    assert "It compiles." not in screen.getvalue()
