"""The losses of a block's samples, from the user's own function, with the random numbers of the block's own pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from adamshap.reference.contract import check_callable, refuse, shown
from adamshap.torch.backward import differentiated
from adamshap.torch.captures.block import Block
from adamshap.torch.captures.hooks import BATCH_NORMS
from adamshap.torch.random_state import replayed
from adamshap.torch.undisturbed import undisturbed

__all__ = ["check_losses", "losses_of", "refuse_functions_of_blocks", "refuse_interaction", "with_outputs"]


def check_losses(losses: object, *, needed: bool) -> None:
    """Refuse a function of the losses that is `needed` and missing, or no function."""
    if losses is not None:
        check_callable("losses", losses)
    elif needed:
        needs = "a function that returns the losses of the block's samples: samples(index, losses=lambda: …)"
        refuse("losses", None, f"{needs}, for contraction 'forward' and verify_ghost")


def refuse_functions_of_blocks(options: Mapping[str, object]) -> None:
    """Refuse, for a loop that is not the user's own, options for which each `samples` takes a function."""
    for name, value in (("contraction", "forward"), ("verify_ghost", True), ("recompute", True)):
        if options.get(name) == value:
            needs = "an Attribution in a loop of your own, where samples(index, …) takes a function for each batch"
            refuse(name, shown(value), needs)


def losses_of(block: Block, model: nn.Module) -> torch.Tensor:
    """Return the losses (n,) of a block's samples at the present parameters, with their graph."""
    if block.losses is None:
        raise AssertionError("a block without losses")
    for path, module in model.named_modules():
        if isinstance(module, BATCH_NORMS) and (module.training or module.running_mean is None):
            got = f"{type(module).__name__} with statistics of the batch, by which samples interact"
            refuse(f"model module {path!r}", got, "eval mode with running statistics, or GroupNorm or LayerNorm")
    replay = nullcontext() if block.random is None else replayed(block.random)
    with undisturbed(model, "losses()"), replay, torch.enable_grad():
        losses = block.losses()
    if not isinstance(losses, torch.Tensor) or losses.shape != (block.n,):
        got = f"a tensor of shape {tuple(losses.shape)}" if isinstance(losses, torch.Tensor) else repr(losses)
        needs = f"the losses of the {block.n} samples of `index`, a tensor of shape ({block.n},): reduction='none'"
        refuse("losses()", got, needs, TypeError)
    if not losses.requires_grad:
        refuse("losses()", "a tensor without a graph", "the losses as computed, without detach or no_grad")
    if not losses.isfinite().all():
        refuse("losses()", "a number that is not finite", "finite losses", FloatingPointError)
    return losses


@contextmanager
def with_outputs(model: nn.Module, n: int) -> Iterator[list[tuple[str, nn.Module, torch.Tensor]]]:
    """Collect the modules' outputs that have an axis of `n`, with their graph."""
    outputs: list[tuple[str, nn.Module, torch.Tensor]] = []
    paths = {module: path for path, module in model.named_modules()}

    def hook(module: nn.Module, args: object, output: object) -> None:
        if isinstance(module, nn.Embedding) and _is_count(args):  # positions, which all samples share
            return
        if isinstance(output, torch.Tensor) and output.requires_grad and n in output.shape:
            outputs.append((paths[module], module, output))

    handles = [module.register_forward_hook(hook) for module in paths]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _is_count(args: object) -> bool:
    """Whether the only argument is 0, 1, 2, …."""
    if not isinstance(args, tuple) or len(args) != 1 or not isinstance(args[0], torch.Tensor):
        return False
    ids = args[0].reshape(-1)
    return torch.equal(ids, torch.arange(len(ids), device=ids.device, dtype=ids.dtype))


def refuse_interaction(losses: torch.Tensor, outputs: list[tuple[str, nn.Module, torch.Tensor]]) -> None:
    """Refuse losses of the first and the last sample that depend on parts of other samples in a module's output.

    The samples may lie along any axis, of length n, or of a multiple of n where positions are flattened into it. Along
    one of these axes, the derivative of a sample's loss must be 0 in the places of all samples but one. Two samples, as
    a sample on which all others depend interacts with none in its own loss.
    """
    n = len(losses)
    if n == 1 or not outputs:
        return
    for row, which in ((0, "first"), (n - 1, "last")):
        gradients = differentiated("losses()", losses[row], [one for *_, one in outputs], retain_graph=True)
        seen = set()
        for (path, module, _), gradient in reversed(list(zip(outputs, gradients, strict=True))):
            if gradient is not None:
                seen |= _places_of(gradient, n, path, module, which)
        if seen and row not in seen:
            got = f"losses of which the {which} depends on row {min(seen)} of the model's layers alone"
            refuse("losses()", got, "the losses in the order of `index`, of the same rows as the inputs")


def _places_of(gradient: torch.Tensor, n: int, path: str, module: nn.Module, which: str) -> set[int]:
    """Return the sample of n, along any axis, in whose place the gradient of one loss is not 0; refuse several."""
    axes = [axis for axis, length in enumerate(gradient.shape) if length and length % n == 0]
    parts = [_parts(gradient.movedim(axis, 0).reshape(gradient.shape[axis], -1).any(1), n) for axis in axes]
    fewest = min((one for some in parts for one in some), key=len)
    if len(fewest) > 1:
        got = f"{type(module).__name__} with an output of which the {which} sample's loss needs other samples' parts"
        needs = (
            f"samples that do not interact; if the {n} entries of an axis are no samples, such as positions that"
            " all samples share, a batch of another size"
        )
        refuse(f"model module {path!r}", got, needs)
    return {place for some in parts for one in some if len(one) == 1 for place in one}


def _parts(places: torch.Tensor, n: int) -> tuple[list[int], list[int]]:
    """Return the samples, of n, to which the marked places of an axis belong: if each has its own together, or n apart.

    An axis of the model's width may be a multiple of n, too.
    """
    together, apart = places.reshape(n, -1).any(1), places.reshape(-1, n).any(0)
    return together.nonzero().flatten().tolist(), apart.nonzero().flatten().tolist()
