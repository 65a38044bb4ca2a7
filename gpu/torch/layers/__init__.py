"""The captures of PyTorch's layers: one short function for each class of module, found in `LAYERS`.

A module for each family registers its classes when it is imported.
"""

from adamshap.torch.layers import attention, bilinear, convolutions, embeddings, linear, norms, recurrent  # noqa: F401
from adamshap.torch.layers.registry import LAYERS, Layer, Use, register
from adamshap.torch.layers.rewrites import Recorder, rewrite
from adamshap.torch.memory import array_of

__all__ = ["LAYERS", "Layer", "Recorder", "Use", "array_of", "register", "rewrite"]
