"""torchvision, importable beside a CPU build of PyTorch, too. Import this before torchvision or transformers.

The wheel of torchvision that an index holds may be the one for CUDA. Beside a CPU build, its compiled operators stay
out, and the import fails at the first that it wants to describe, and with it that of transformers, which imports
torchvision where it finds it. Models use none of these operators, so they are declared here.
"""

import importlib.util

if importlib.util.find_spec("torch") is not None and importlib.util.find_spec("torchvision") is not None:
    import torch

    _library = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, _name):
            _library.define(f"{_name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
