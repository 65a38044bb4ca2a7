"""Names shared by the tests of the command, in addition to the fixtures."""

from collections.abc import Callable

from typer.testing import Result

Command = Callable[..., Result]
# Training that takes no time.
TINY = ("--hidden", "4", "--epochs", "1", "--batch-size", "8")
