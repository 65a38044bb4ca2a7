"""What adapters need from PyTorch: gradients as one vector, in the order of the step's parameters."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamshap.reference import Step
from adamshap.reference.contract import Batch
from adamshap.verify.candidates import torch_ghost


def flat(arrays: dict[str, np.ndarray]) -> Tensor:
    return torch.cat([torch.tensor(np.array(array)).reshape(-1) for array in arrays.values()])


def gradient(step: Step, batch: Batch, reduction: str) -> Tensor:
    """The gradient of the batch's loss, (k,)."""
    model = torch_ghost._model(step)
    torch_ghost._loss(step, model, batch, reduction).backward()
    gradients = {name: p.grad for name, p in torch_ghost._names(model).items()}
    return torch.cat([gradients[name].reshape(-1) for name in step.params])


def contributions(step: Step) -> Tensor:
    """x_i of each sample, (n, k)."""
    weight = 1 / step.n if step.reduction == "mean" else 1.0
    return weight * torch.stack([gradient(step, step.train.take(np.array([i])), "sum") for i in range(step.n)])


def functions_of(file: Path, *names: str, **given: Any) -> Any:
    """Return functions of a file that cannot be imported here for what else it imports; `given` are their globals."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    space: dict[str, Any] = {"torch": torch, "nn": torch.nn, **given}
    exec(compile(tree, str(file), "exec"), space)
    return [space[name] for name in names]
