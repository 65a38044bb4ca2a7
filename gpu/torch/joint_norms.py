"""√Σ x² of each parameter over the samples of several processes, for σ (docs/method.md 11)."""

from typing import Any

import numpy as np

from adamshap.gpu.captures import RootSquares
from adamshap.gpu.norms import Norms
from adamshap.reference.contract import refuse
from adamshap.torch.processes import FEW, Processes

__all__ = ["join_norms"]

ROOT, PRODUCT, CORRECTED = 1, 2, 3
"""Forms of √Σ x²: an array, of rank one, of rank one with a correction; 0 is none."""


def join_norms(processes: Processes, norms: Norms) -> None:
    """Replace √Σ x² of each parameter by those over the samples of all processes.

    Squares are added in double, where those of float32 neither over- nor underflow. A process without a use of the
    parameter has the form of an array of zeros, which adds nothing to any form.

    Parameters
    ----------
    processes : Processes
    norms : Norms
        Of this process's samples, for every parameter that takes part in the step.

    Raises
    ------
    ValueError
        Different forms of one parameter.
    """
    if not processes.several:
        return
    _, codes = processes.agree(each={name: _form(found) for name, found in norms.items()})
    forms = dict(zip(processes.names, codes.max(axis=0).astype(int).tolist(), strict=True))
    differs = ((codes != 0) & (codes != codes.max(axis=0))).any(axis=0)
    if differs.any():
        got = f"other uses of {processes.names[int(differs.argmax())]!r} in some processes than in others"
        refuse("variance", got, "'exact', or the same calls of each module in all processes")
    names = [name for name in processes.names if forms[name]]
    large = {name for name in names if forms[name] == ROOT and norms[name].root.size > FEW}
    for some in ([name for name in names if name not in large], *([name] for name in names if name in large)):
        _join(processes, norms, {name: _parts(norms[name], forms[name]) for name in some})


def _join(processes: Processes, norms: Norms, parts: dict[str, dict[str, Any]]) -> None:
    squares = {
        (name, key): np.atleast_1d(part.astype(np.float64) ** 2)
        for name, own in parts.items()
        for key, part in own.items()
    }
    processes.add_up(list(squares.values()))
    for name, own in parts.items():
        roots = {key: np.sqrt(squares[name, key]).astype(part.dtype) for key, part in own.items()}
        norms[name] = RootSquares(**{key: root.reshape(own[key].shape) for key, root in roots.items()})


def _form(found: RootSquares) -> int:
    """Return the form of √Σ x², 0 if it is an array of zeros."""
    if found.root is not None:
        return ROOT if found.root.any() else 0
    return PRODUCT if found.own is None else CORRECTED


def _parts(found: RootSquares, form: int) -> dict[str, Any]:
    """Return the arrays of a form; zeros if `found` has no samples and so another one."""
    names = {ROOT: ("root",), PRODUCT: ("row", "col"), CORRECTED: ("row", "col", "own", "apart")}[form]
    if form == ROOT or found.root is None:
        return {name: getattr(found, name) for name in names}
    matrix = found.root.reshape(len(found.root), -1)
    none = {"row": matrix[:, 0].copy(), "col": matrix[0].copy(), "own": matrix[0, 0], "apart": matrix[0, 0]}
    return {name: none[name] for name in names}
