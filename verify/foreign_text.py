"""Text that comes from a candidate, such as its exceptions' messages, as a report can hold it."""

from adamshap.verify.given import type_name
from adamshap.verify.insulation import RaisedInterrupt
from adamshap.verify.time_limit import TimeIsUp

__all__ = ["described", "message_of", "printable"]

LONGEST_TEXT = 2000
"""Characters of a candidate's text that are shown."""


def printable(text: str) -> str:
    """Return `text` cut to a length that can be read, with escapes for characters that no report can hold."""
    shown = str.__getitem__(text, slice(LONGEST_TEXT))
    cut = "…" if str.__len__(text) > LONGEST_TEXT else ""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in shown) + cut


def described(error: BaseException) -> str:
    """Return the type and the message of an exception."""
    name = "KeyboardInterrupt" if isinstance(error, RaisedInterrupt) else type_name(error)
    text = message_of(error)
    return f"{name}: {text}" if text else name


def message_of(error: BaseException) -> str:
    """Return the message of an exception, whatever its own methods do."""
    try:
        return str.__str__(str(error))  # which may be of a subclass, with methods of its own
    except TimeIsUp:
        raise
    except BaseException as second:
        return f"(a message that cannot be printed: {type_name(second)})"
