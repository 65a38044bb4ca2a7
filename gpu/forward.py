"""The batch's pass through the model: captures, gradient, norms for σ, and the validation samples' captures at θ."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from adamshap.gpu.arrays import Arrays, BatchGradient, like
from adamshap.gpu.captures import Captures, write_sums
from adamshap.gpu.clipping import clip
from adamshap.gpu.context import EngineContext
from adamshap.gpu.norms import Norms, add_norms
from adamshap.gpu.state import VALIDATION, StepInput

__all__ = ["ForwardResult", "capture_chunk", "captured_chunks", "forward_and_gradient"]


@dataclass(frozen=True)
class ForwardResult:
    """The results of the batch's pass.

    Parameters
    ----------
    captures : Captures or None
        Captures of the batch, if it was one chunk.
    start : Captures or None
        Captures of the validation samples at θ, if wanted.
    g : BatchGradient
    norms : Norms or None
        Norms for σ, if wanted.
    train_loss : number
    factor : number or None
        c, by which `g` and `norms` are multiplied but not the captures; None without clipping.
    slope : dict of arrays or None
        Memory for S; None is that of `g`, which nothing needs after it.
    norms_of : callable or None
        Function from names of parameters to their norms, in place of `norms`, if only some may be wanted.
    """

    captures: Captures | None
    start: Captures | None
    g: BatchGradient
    norms: Norms | None
    train_loss: Any
    factor: Any = None
    slope: Arrays | None = None
    norms_of: Callable[[Collection[str]], Norms] | None = None


def forward_and_gradient(
    step: StepInput,
    valid_weight: float,
    *,
    start_wanted: bool,
    norms_wanted: bool,
    variance: str,
    some_norms: bool = False,
) -> ForwardResult:
    """Run the batch through the model, in chunks, and the validation samples with it if Γ at θ is wanted.

    `valid_weight` is the weight of a validation sample's own loss. With `some_norms` the norms are left for later where
    the captures are kept and the host can choose: then the result has `norms_of` in place of `norms`.
    """
    context, batch, chunks = step.context, step.batch, step.chunks
    later = norms_wanted and some_norms and len(chunks) == 1 and not context.backend.on_cuda
    g, norms = BatchGradient(like(context, "gradient")), Norms() if norms_wanted and not later else None
    start = captures = None
    if start_wanted and batch.together is not None and len(chunks) == 1:
        start, captures = _run_together(step, valid_weight)
    elif start_wanted:
        context.now("forward pass", VALIDATION)
        workspace = context.stack.workspace(context, "start", batch.valid_x)
        start = context.stack.run(context, workspace, step.state.theta, batch.valid_y, valid_weight)
    loss = 0.0
    for number, chunk in enumerate(chunks):
        if captures is None or number:
            captures = capture_chunk(step, chunk)
        write_sums(context, captures, g, add=number > 0)
        loss = loss + captures.losses.sum(dtype="float64")
        if norms is not None:
            add_norms(context, norms, captures, variance)
    factor = clip(context, step.hyperparameters.clipped, g)
    if norms is not None and factor is not None:
        norms.clip(context, factor)
    kept = captures if len(chunks) == 1 else None
    norms_of = partial(_norms_of, context, kept, variance, factor) if later and kept is not None else None
    return ForwardResult(kept, start, g, norms, loss / batch.n, factor, norms_of=norms_of)


def _norms_of(context: EngineContext, captures: Captures, variance: str, factor: Any, names: Collection[str]) -> Norms:
    """Return the norms of some parameters, times the `factor` of a clipped gradient."""
    norms = Norms()
    if not names:
        return norms
    add_norms(context, norms, captures.of(context, names), variance)
    if factor is not None:
        norms.clip(context, factor)
    return norms


def _run_together(step: StepInput, valid_weight: float) -> tuple[Captures, Captures]:
    """Run validation samples and batch in one pass at θ, and return the captures of each."""
    context, batch, n_val = step.context, step.batch, step.batch.n_val
    context.now("forward pass", slice(0, batch.n))
    workspace = context.stack.workspace(context, "train", batch.together)
    weights = context.buffers.get("weights", (n_val + batch.n, 1))
    weights[:n_val], weights[n_val:] = valid_weight, step.weight
    labels = context.backend.xp.concatenate([batch.valid_y, batch.y])
    captures = context.stack.run(context, workspace, step.state.theta, labels, weights)
    return captures.rows(slice(0, n_val)), captures.rows(slice(n_val, None))


def capture_chunk(step: StepInput, chunk: slice) -> Captures:
    """Run some samples of the batch through the model at θ."""
    context = step.context
    context.now("forward pass", chunk)
    workspace = context.stack.workspace(context, "train", step.batch.x[chunk])
    return context.stack.run(context, workspace, step.state.theta, step.batch.y[chunk], step.weight)


def captured_chunks(step: StepInput, captures: Captures | None) -> Any:
    """Yield each chunk with its captures; chunks go through the model again unless the captures were kept."""
    for chunk in step.chunks:
        yield chunk, capture_chunk(step, chunk) if captures is None else captures
