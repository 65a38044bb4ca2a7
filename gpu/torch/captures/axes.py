"""The axis of the samples: the first, or the second with ``batch_first=False`` and where the user says so."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from adamshap.reference.contract import refuse, shown

__all__ = ["axes_of"]

TRANSFORMER_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def axes_of(model: nn.Module, given: Mapping[str, int] | None) -> dict[str, int]:
    """Return the axis of the samples in inputs and outputs of each module, by its name.

    Parameters
    ----------
    model : torch.nn.Module
    given : mapping of str to int, optional
        The user's, each of a module and those inside it.

    Returns
    -------
    dict of int
        0 or 1. A module has that of the module around it, unless it says another one.

    Raises
    ------
    ValueError, TypeError
        A name that is no module's, or an axis other than 0 and 1.
    """
    found: dict[str, int] = {}
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        refuse("samples_axis", shown(given), "a mapping from names of modules to 0 or 1", TypeError)
    for path, module in model.named_modules():
        around = found[path.rpartition(".")[0]] if path else 0
        found[path] = given.get(path, _own(module, around))
    for path, axis in given.items():
        if path not in found:
            refuse("samples_axis", shown(path), "names of modules, as model.named_modules() has them")
        if type(axis) is not int or axis not in (0, 1):
            refuse(f"samples_axis[{path!r}]", shown(axis), "0 or 1")
    return found


def _own(module: Any, around: int) -> int:
    """Return the axis that a module of PyTorch says, or else the one around it."""
    if isinstance(module, nn.Transformer | nn.MultiheadAttention | nn.RNNBase):
        return 0 if module.batch_first else 1
    if isinstance(module, TRANSFORMER_LAYERS):
        return _own(module.self_attn, around)
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder) and len(module.layers):
        return _own(module.layers[0], around)
    return around
