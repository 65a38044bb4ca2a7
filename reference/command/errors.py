"""The one error that the command shows as a line instead of a traceback."""

# As shells have it for Ctrl-C and for SIGTERM.
INTERRUPTED = 130
TERMINATED = 143
# A run that came upon numbers that are not finite: the scores up to there are written.
BROKE_OFF = 3


class CommandError(Exception):
    """Something that the user can mend: shown as one line on stderr; `exit_code` is the command's."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
