"""Attribution of your own PyTorch model in your own loop: hooks hand inputs and output gradients to the engine.

`Attribution` wraps a model and its optimiser; `register` adds a class of modules. `fidelity` compares scores with exact
marginals, for which `torch_step` gives the oracle a step of the model. This is the only package that imports PyTorch,
which the extra ``torch`` installs.
"""

from adamshap.reference.contract import needed

with needed("PyTorch", by="adamshap.torch", extra="torch"):
    import torch as _torch  # noqa: F401

from adamshap.torch.attribution import Attribution
from adamshap.torch.layers import Use, register
from adamshap.torch.oracle.comparison import Fidelity, fidelity
from adamshap.torch.oracle.step import torch_step
from adamshap.torch.processes import OtherProcessError

__all__ = ["Attribution", "Fidelity", "OtherProcessError", "Use", "fidelity", "register", "torch_step"]
