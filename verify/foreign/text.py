"""Text from a candidate, such as its exceptions' messages, made safe for reports."""

from adamshap.verify.foreign.insulation import RaisedInterrupt
from adamshap.verify.foreign.time_limit import TimeIsUp
from adamshap.verify.given import type_name

__all__ = ["described", "message_of", "printable"]

LONGEST_TEXT = 2000
"""Largest number of characters of a candidate's text in a report."""


def printable(text: str) -> str:
    """Return `text`, truncated, with escapes for unprintable characters."""
    shown = str.__getitem__(text, slice(LONGEST_TEXT))
    cut = "…" if str.__len__(text) > LONGEST_TEXT else ""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in shown) + cut


def described(error: BaseException) -> str:
    """Return the type and the message of an exception."""
    name = "KeyboardInterrupt" if isinstance(error, RaisedInterrupt) else type_name(error)
    text = message_of(error)
    return f"{name}: {text}" if text else name


def message_of(error: BaseException) -> str:
    """Return the message of an exception, even if its own methods fail."""
    try:
        return str.__str__(str(error))  # `str(error)` may be a subclass with methods of its own
    except TimeIsUp:
        raise
    except BaseException as second:
        return f"(a message that cannot be printed: {type_name(second)})"
