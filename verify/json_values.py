"""JSON values: checked objects, and short texts of values for error messages."""

import json
from typing import Any

from adamshap.reference.contract import refuse

__all__ = ["Json", "brief", "object_with"]

Json = dict[str, Any]


def object_with(field: str, value: Any, names: tuple[str, ...]) -> Json:
    """Return `value` if it is an object with exactly `names`."""
    if not isinstance(value, dict):
        refuse(field, brief(value), f"an object with exactly the names {', '.join(names)}", TypeError)
    if set(value) != set(names):
        refuse(field, f"the names {', '.join(map(str, value)) or '(none)'}", f"exactly the names {', '.join(names)}")
    return value


def brief(value: Any) -> str:
    """Return `value` as JSON, truncated to 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
