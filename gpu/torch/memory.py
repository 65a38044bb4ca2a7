"""The memory of PyTorch's tensors, as arrays."""

import numpy as np
import torch

from adamshap.reference.contract import Array

__all__ = ["array_of"]


def array_of(tensor: torch.Tensor) -> Array:
    """Return a tensor as a C-contiguous NumPy array, of the same memory if it is so already.

    Parameters
    ----------
    tensor : tensor
        On the CPU; its gradient is ignored.

    Returns
    -------
    array
        Of its shape and dtype.
    """
    return np.ascontiguousarray(tensor.detach().numpy())
