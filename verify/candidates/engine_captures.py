"""What the engine's captures offer, one parameter at a time: Σ_i x_i, ⟨direction, x_i⟩ and Σ_i x_i².

They come from the functions that a step uses: `write_sums` for the gradient, `contract` for scores, `add_norms` for σ.
"""

from collections.abc import Mapping

from adamshap.gpu.arrays import like
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.captures import write_sums
from adamshap.gpu.layers import context_for
from adamshap.gpu.norms import Norms, add_norms
from adamshap.gpu.scores import contract
from adamshap.reference.contract import Array, Batch, Model, Params, real_parts

__all__ = ["captured"]


def captured(
    params: Params, batch: Batch, model: Model, directions: Mapping[str, Array], device: str
) -> dict[str, dict[str, Array]]:
    """Return "sum", "dot" and "squares" of each parameter, in the dtype of `params`."""
    backend = pick_backend(device, next(iter(params.values())).dtype.name)
    context, xp = context_for(model, backend), backend.xp
    tokens, labels = (part not in real_parts(model, batch) for part in ("x", "y"))
    x, y = backend.inputs("batch.x", batch.x, tokens), backend.targets("batch.y", batch.y, labels)
    theta, chosen = backend.reals(params, "params"), backend.reals(directions, "directions")
    with context.at_work():
        captures = context.stack.run(context, context.stack.workspace(context, "train", x), theta, y, 1.0)
        sums, norms = like(context, "gradient"), Norms()
        write_sums(context, captures, sums)
        add_norms(context, norms, captures, "exact")
        found = {}
        for name, direction in chosen.items():
            matrix = {other: direction if other == name else xp.zeros_like(theta[other]) for other in theta}
            dots = xp.zeros(len(x), backend.dtype)
            contract(context, captures, matrix, dots)
            found[name] = {"sum": sums[name], "dot": dots, "squares": norms[name].root ** 2}
    return {name: {what: backend.host(array).copy() for what, array in each.items()} for name, each in found.items()}
