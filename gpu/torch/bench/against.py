"""Steps with attribution by others, timed beside ours: GhostSuite, dattri-llm and Opacus.

Each takes the training step of one model and scores its samples against the mean validation loss, as its own
documentation says. None computes the same quantity as ours: `QUANTITIES` says what each does.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adamshap.reference.contract import refuse
from adamshap.torch.bench.model import Model, loss_of

__all__ = ["PEERS", "QUANTITIES", "ghostsuite_step", "refuse_absent", "step_of_peer"]

PEERS = ("ghostsuite", "dattri-llm", "opacus")

QUANTITIES = {
    "ghostsuite": "⟨∇L, x_i⟩, gradients at θ, by one pass over training and validation samples together;"
    " pairs of positions in bfloat16",
    "dattri-llm": "⟨∇L, x_i⟩, gradients at θ, by its DataSelectionCallback with a validation loader, no sample dropped",
    "opacus": "⟨∇L ⊙ η/(√v̂ + ε), x_i⟩, gradients at θ, each x_i materialised by GradSampleModule",
}
"""The scores that each computes."""

Pair = tuple[Tensor, Tensor]
"""Inputs and targets."""


def refuse_absent(peer: str, checkout: Path | None) -> None:
    """Refuse a peer that is not installed, with what to do."""
    if peer == "ghostsuite":
        if checkout is None:
            refuse("checkout", None, "a checkout of github.com/Jiachen-T-Wang/GhostSuite, which is no package")
        if not (checkout / "ghostEngines").is_dir():
            refuse("checkout", str(checkout), "a checkout of GhostSuite, a folder with ghostEngines/ in it")
        return
    module, how = {
        "dattri-llm": ("dattri_llm", "pip install dattri-llm==0.1.0"),
        "opacus": ("opacus", "pip install opacus"),
    }[peer]
    try:
        importlib.import_module(module)
    except ImportError as error:
        refuse("against", f"{peer!r}, which is not installed ({error})", how)


def step_of_peer(
    peer: str,
    checkout: Path | None,
    model: Model,
    optimiser: torch.optim.Optimizer,
    train: Pair,
    valid: Pair,
) -> Callable[[], Tensor]:
    """Return a training step that returns the scores of one of `PEERS`, (n,).

    Parameters
    ----------
    peer : str
    checkout : Path or None
        GhostSuite's folder.
    model : Model
        Without tied parameters, which none of the three takes in all its layers.
    optimiser : torch.optim.Optimizer
    train, valid : tuples of tensors
        Inputs and targets of the samples.
    """
    if peer == "ghostsuite":
        return ghostsuite_step(str(checkout), model, optimiser, train, valid)
    return {"dattri-llm": _dattri_llm_step, "opacus": _opacus_step}[peer](model, optimiser, train, valid)


def ghostsuite_step(
    checkout: str, model: Model, optimiser: torch.optim.Optimizer, train: Pair, valid: Pair
) -> Callable[[], Tensor]:
    """Return a training step with GhostSuite's gradient dot products; the validation samples go last in the batch."""
    if checkout not in sys.path:
        sys.path.insert(0, checkout)
    ghost_engines: Any = importlib.import_module("ghostEngines")
    engine = ghost_engines.GradDotProdEngine(module=model, val_batch_size=len(valid[0]), loss_reduction="mean")
    engine.attach(optimiser)
    loss_of_batch, (x, y) = loss_of(model), (torch.cat([one, other]) for one, other in zip(train, valid, strict=True))

    def step() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        engine.attach_train_batch(X_train=train[0], Y_train=train[1], iter_num=0, batch_idx=0)
        loss: Any = loss_of_batch(x, y)
        loss.backward()
        engine.aggregate_and_log()
        scores: Tensor = engine.dot_product_log.pop()["dot_product"]
        engine.prepare_gradients()
        optimiser.step()
        engine.clear_gradients()
        return scores

    return step


def _dattri_llm_step(model: Model, optimiser: torch.optim.Optimizer, train: Pair, valid: Pair) -> Callable[[], Tensor]:
    dattri_llm: Any = importlib.import_module("dattri_llm")
    callbacks: Any = importlib.import_module("dattri_llm.gradient.callbacks")
    loss_of_batch = loss_of(model)
    callback = callbacks.DataSelectionCallback(
        model,
        target="val_loader",
        val_loader=[valid],
        val_loss_fn=lambda _, batch: loss_of_batch(*batch),
        selection_kwargs={"threshold": float("-inf")},
    )
    config = dattri_llm.HookManagerConfig(linear_io=dattri_llm.REGISTER_ALL)
    manager = dattri_llm.HookManager(model, config=config, callbacks=[callback])

    def step() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        with manager.collect():
            loss: Any = loss_of_batch(*train)
            loss.backward()
        optimiser.step()
        scores: Tensor = callback.last_scores
        return scores

    return step


def _opacus_step(model: Model, optimiser: torch.optim.Optimizer, train: Pair, valid: Pair) -> Callable[[], Tensor]:
    opacus: Any = importlib.import_module("opacus")
    wrapped: Any = opacus.GradSampleModule(model, loss_reduction="mean")
    loss_of_batch = loss_of(wrapped)
    parameters: list[Any] = list(model.parameters())  # Opacus gives them grad_sample

    def step() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        wrapped.zero_grad(set_to_none=True)
        loss: Any = loss_of_batch(*train)
        loss.backward()
        wrapped.disable_hooks()
        gammas = torch.autograd.grad(loss_of_batch(*valid), parameters)
        wrapped.enable_hooks()
        scores = torch.zeros(len(train[0]))
        with torch.no_grad():
            for p, gamma in zip(parameters, gammas, strict=True):
                x: Any = p.grad_sample  # n times the part of x_i in the mean loss
                scores += x.flatten(1) @ (gamma * _slope(optimiser, p)).flatten() / len(train[0])
        optimiser.step()
        return scores

    return step


def _slope(optimiser: Any, p: Tensor) -> Tensor | float:
    """Return η/(√v̂ + ε) of a parameter; before the first step η, as the second moment is 0."""
    group, state = optimiser.param_groups[0], optimiser.state.get(p, {})
    if "exp_avg_sq" not in state:
        return float(group["lr"])
    unbiased = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
    slope: Tensor = group["lr"] / (unbiased.sqrt() + group["eps"])
    return slope
