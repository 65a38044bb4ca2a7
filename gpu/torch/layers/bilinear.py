"""Bilinear layers: x_i = Σ_t b_t ⊗ x_t ⊗ y_t, as an array of its own."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import nn

from adamshap.gpu.captures import Capture, Dense
from adamshap.torch.layers.registry import Use, over_positions
from adamshap.torch.layers.rewrites import Recorder, rewrite
from adamshap.torch.memory import array_of


@rewrite(nn.Bilinear)
def _bilinear(recorder: Recorder, input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
    """Return the module's own output: only one of its two inputs would be seen."""
    output: torch.Tensor = type(recorder.module).forward(recorder.module, input1, input2)
    recorder.refuse_input(output, 0, max(output.ndim, 2))
    recorder.record(output, input1, ("weight", "bias"), partial(_of_both, input2.detach()))
    return output


def _of_both(y: torch.Tensor, use: Use) -> Iterable[Capture]:
    if "weight" in use.names:
        x, y, b = (one.reshape(use.n, -1, one.shape[-1]) for one in (use.a, y, use.b))
        yield Dense(use.names["weight"], array_of(torch.einsum("nto,nti,ntj->noij", b, x, y)))
    if "bias" in use.names:
        yield Dense(use.names["bias"], array_of(over_positions(use.b, use.b.shape[-1:])))
