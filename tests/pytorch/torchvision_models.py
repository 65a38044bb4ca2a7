"""torchvision's models, importable on a CPU build of PyTorch, too.

The wheel of torchvision that an index holds may be the one for CUDA. Beside a CPU build, its compiled operators stay
out, and the import fails at the first that it wants to describe; the models use none of them. So these are declared.
"""

import importlib.util

import pytest

torch = pytest.importorskip("torch", reason="extra `torch`")
if importlib.util.find_spec("torchvision") is None:
    pytest.skip("extra `peers`", allow_module_level=True)

_library = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _library.define(f"{_name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")

from torchvision import models  # noqa: E402

__all__ = ["models"]
