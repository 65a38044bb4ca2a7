"""torchvision's models, also where torchvision's own operators are missing."""

import importlib.util

import pytest
import torchvision_operators  # noqa: F401

torch = pytest.importorskip("torch", reason="extra `torch`")
if importlib.util.find_spec("torchvision") is None:
    pytest.skip("extra `peers`", allow_module_level=True)

from torchvision import models  # noqa: E402

__all__ = ["models"]
