"""GhostSuite's gradient dot product of a linear layer, from a checkout of Jiachen-T-Wang/GhostSuite."""

import os
from pathlib import Path

import torch
from peer_gradients import functions_of
from torch import Tensor

FILE = Path(os.environ["ADAMSHAP_GHOSTSUITE"]) / "ghostEngines" / "supported_layers_grad_samplers_dotprod.py"
_, compute_linear_dot_product = functions_of(FILE, "_should_use_ghost_computation", "_compute_linear_dot_product")


def dot_products(a: Tensor, b: Tensor, n_val: int) -> tuple[Tensor, bool]:
    """⟨x_i, Σ_j x_j⟩ for inputs a (n + n_val, T, d_in) and output gradients b, and whether "ghost" was chosen."""
    layer = torch.nn.Linear(a.shape[-1], b.shape[-1], bias=False)
    compute_linear_dot_product(layer, a, b, n_val)
    return layer.weight.grad_dot_prod, layer.use_ghost_computation
