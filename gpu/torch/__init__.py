"""Attribution of your own PyTorch model in your own loop: hooks hand inputs and output gradients to the engine.

`Attribution` wraps a model and its optimiser; `register` adds a class of modules. This is the only package that
imports PyTorch, which the extra ``torch`` installs.
"""

from adamshap.torch.attribution import Attribution
from adamshap.torch.layers import Use, register
from adamshap.torch.processes import OtherProcessError

__all__ = ["Attribution", "OtherProcessError", "Use", "register"]
