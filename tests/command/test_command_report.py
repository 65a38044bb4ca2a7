"""The progress bar moves on a terminal, and does not appear elsewhere."""

import io

import pytest
from rich.console import Console

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
