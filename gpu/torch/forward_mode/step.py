"""Scores without captures: ⟨P, f ∇ℓ_i⟩ as the derivative of a sample's loss along P, and the factor f.

The user's function returns the samples' losses ℓ_i, of which p.grad = f Σ_i ∇ℓ_i, with one factor f for the whole step.
In the checked steps f comes from the gradients of Σ_i ℓ_i, parameter by parameter. In the others it comes from one
direction D, as ⟨p.grad, D⟩ = f Σ_i ⟨D, ∇ℓ_i⟩ (docs/method.md 4): from P itself, unless the samples' parts cancel, and
then from p.grad. Every further direction has to agree with it.

======  ===============  ==================================================
paper   name             meaning
======  ===============  ==================================================
f       ``factor``       p.grad over Σ_i ∇ℓ_i
D, P    ``direction``    direction, by parameter
======  ===============  ==================================================
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from adamshap.gpu.arrays import like
from adamshap.gpu.backend import Backend
from adamshap.gpu.captures import Captures
from adamshap.gpu.context import EngineContext
from adamshap.reference.contract import AUTO, Array, Estimator, refuse
from adamshap.torch.backward import differentiated
from adamshap.torch.captures.block import Block
from adamshap.torch.captures.hooks import Hooks
from adamshap.torch.checks.factor import LOOSE, UNITS, Comparison, common_factor
from adamshap.torch.forward_mode.closures import losses_of, refuse_interaction, with_outputs
from adamshap.torch.forward_mode.derivatives import Along, Derivatives
from adamshap.torch.memory import array_of
from adamshap.torch.passes import StepPasses

__all__ = ["ForwardStep", "GradientHooks", "refuse_slope", "step_of"]

ALIGNED = 0.1
"""Least |Σ_i ⟨D, ∇ℓ_i⟩| over Σ_i |⟨D, ∇ℓ_i⟩| of a direction that gives f."""

SCALES = (0.7, 0.9)
"""Factors by which the losses are multiplied, so that their gradients show how much rounding changes them."""

LATE = "in a lambda, x and y are those of the last block: lambda x=x, y=y: …"

FEW = (
    "a function that leaves out a part of the model, a part that backward() saw another way, such as by detach or"
    " no_grad, autocast to a low dtype, or an edit of the parameter's .grad"
)
MANY = (
    f"losses of other samples than the block's ({LATE}), weights of samples or a mean of parts of a batch that"
    " backward() has and the losses have not, random numbers that are drawn in another order than in `samples`, a"
    " backward pass outside `samples`, or clipping by value"
)


class GradientHooks(Hooks):
    """Hooks without captures, on a model of any modules: they note which parameters a backward pass reaches."""

    def _attach(self, module: torch.nn.Module, path: str, own: dict[str, str]) -> None:
        self._name(module, path, own)

    def _listen(self, module: torch.nn.Module, path: str, own: dict[str, str]) -> None:
        self._name(module, path, own)


def refuse_slope(estimator: Estimator) -> None:
    """Refuse a slope that needs Σ_i x_i², which no derivative of the losses gives."""
    if estimator.slope in ("random_order", AUTO) and estimator.contraction == "forward":
        got = f"{estimator.slope!r} with contraction 'forward', which needs Σ x_i² of parameters without captures"
        refuse("slope", got, "'secant', the nearest to it; or 'tangent', 'linearized', 'frozen', 'sgd'")


@dataclass
class ForwardStep:
    """The samples of one step, whose losses can be differentiated along P (`captures.collection.Differentiable`).

    Parameters
    ----------
    derivatives : Derivatives
    blocks : sequence of Block
    named : dict of parameters
        Those that take part in the step.
    gradients : dict of arrays
        p.grad.
    number : int
        Of the step, for messages.
    factor : float or None
        f; None until a direction gives it.
    error : float
        Largest estimated error of a score so far, over the largest score of its direction.
    calls : int
        Number of forward passes before the step.
    noise : dict of float
        Norm of the rounding error of Σ_i ∇ℓ_i by parameter, where the step is checked.
    """

    derivatives: Derivatives
    blocks: Sequence[Block]
    named: Mapping[str, torch.nn.Parameter]
    gradients: Mapping[str, Array]
    number: int
    factor: float | None = None
    error: float = 0.0
    calls: int = 0
    noise: dict[str, float] = field(default_factory=dict)

    @property
    def history(self) -> dict[str, float]:
        """What a run's history has of the step."""
        passes = float(self.derivatives.calls - self.calls)
        return {"factor": self.factor or 1.0, "forward_passes": passes, "forward_error": self.error}

    @property
    def chunk(self) -> tuple[slice, Captures]:
        """All samples, without captures."""
        return slice(0, sum(block.n for block in self.blocks)), Captures((), None, self)

    def rows(self, which: slice) -> "ForwardStep":
        """Refuse: the user's function returns the losses of all samples of a block."""
        raise AssertionError("a block's samples have one function")

    def add_dots(self, context: EngineContext, direction: Mapping[str, Any], out: Any) -> None:
        """Add each sample's score, f ⟨D, ∇ℓ_i⟩ for D the `direction`, to `out`."""
        context.now("forward mode")
        found = self.derivatives.along(self.blocks, self.named, direction)
        product = _dot(self.gradients, direction)
        if self.factor is None:
            self.factor = self._factor(context, direction, found, product)
        self._compare(direction, found, product, self.factor)
        if (largest := float(abs(found.values).max())) > 0:
            self.error = max(self.error, found.error / largest)
        out += context.backend.real(self.factor * found.values)

    def _factor(self, context: EngineContext, direction: Mapping[str, Any], found: Along, product: float) -> float:
        """Return f, from this direction or, where that does not determine it, from p.grad."""
        total, size = float(found.values.sum()), float(abs(found.values).sum())
        errors = len(found.values) * found.error
        if abs(total) > ALIGNED * size and errors <= LOOSE * size:
            return self._positive(product / total)
        length = math.sqrt(_dot(self.gradients, self.gradients))
        if length == 0:
            return 1.0
        unit = like(context, "unit gradient")
        for name, gradient in self.gradients.items():
            context.backend.xp.multiply(gradient, gradient.dtype.type(1 / length), out=unit[name])
        total = float(self.derivatives.along(self.blocks, self.named, unit).values.sum())
        return self._positive(length / total if total else -math.inf)

    def _positive(self, factor: float) -> float:
        if not 0 < factor < math.inf:
            got = f"gradients at step {self.number} in whose direction the sum of the losses does not grow"
            refuse("optimizer", got, f"one factor times the gradient of the losses' sum; likely: {MANY}")
        return factor

    def _compare(self, direction: Mapping[str, Any], found: Along, product: float, factor: float) -> None:
        """Refuse losses whose derivative along `direction` is not that of p.grad."""
        n, total = len(found.values), float(found.values.sum())
        unit = UNITS * float(np.finfo(next(iter(self.gradients.values())).dtype).eps) / 2
        lengths = math.sqrt(_dot(self.gradients, self.gradients) * _dot(direction, direction))
        allowed = factor * (LOOSE * float(abs(found.values).sum()) + 2 * n * found.error) + n * unit * lengths
        if not abs(product - factor * total) <= allowed:
            got = (
                f"losses whose sum changes by {factor * total:.3g} along a direction at step {self.number}, where the"
                f" gradient says {product:.3g}"
            )
            needs = f"losses of which backward() took the gradient; likely: {FEW}; or {MANY}"
            refuse("losses()", got, needs)


def _dot(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    return float(sum(float((array * other[name]).sum(dtype="float64")) for name, array in one.items()))


def step_of(
    backend: Backend, derivatives: Derivatives, passes: StepPasses, modules: Mapping[str, list[str]]
) -> ForwardStep:
    """Return the step, after the check of its gradients if it is due.

    Parameters
    ----------
    backend : Backend
    derivatives : Derivatives
    passes : StepPasses
    modules : dict
        Modules that have a parameter, by its name, for messages.
    """
    named, gradients, number = passes.named, passes.gradients, passes.number
    step = ForwardStep(derivatives, passes.blocks, named, gradients, number, calls=derivatives.calls)
    if not passes.checked:
        return step
    derivatives.calls += 1
    parts = [_gradients(block, derivatives.model, named) for block in step.blocks]
    unit = UNITS * float(np.finfo(next(iter(gradients.values())).dtype).eps)
    compared, xp = [], backend.xp
    for name, gradient in gradients.items():
        total, error = xp.zeros(gradient.shape), 0.0
        for part in parts:
            x, noise = part[name]
            total += x
            error += UNITS * noise + unit / 2 * float(xp.linalg.norm(x.ravel()))
        step.noise[name] = error
        compared.append(Comparison.of(backend, name, gradient.astype(np.float64), total, error))
    step.factor = common_factor(compared, backend, modules, number, (FEW, MANY))
    return step


def _gradients(
    block: Block, model: torch.nn.Module, named: Mapping[str, torch.nn.Parameter]
) -> dict[str, tuple[Array, float]]:
    """Return the gradients of the sum of a block's losses in double, each with the norm of its error by rounding."""
    tensors = list(named.values())
    with with_outputs(model, block.n) as outputs:
        losses = losses_of(block, model)

    def gradients(losses: torch.Tensor, scale: float, retain_graph: bool) -> list[Array]:
        weights = torch.full_like(losses, scale)
        found = differentiated("losses()", losses, tensors, weights, retain_graph=retain_graph)
        return [_double(x, p) / weights[0].item() for x, p in zip(found, tensors, strict=True)]

    try:
        refuse_interaction(losses, outputs)
        found = [gradients(losses, scale, True) for scale in (1.0, *SCALES)]
    except RuntimeError as error:
        if "retain_graph" not in str(error):
            raise
        found = [gradients(losses_of(block, model), scale, False) for scale in (1.0, *SCALES)]  # of a compiled model
    exact, *others = found
    spread = [math.sqrt(sum(_square(other[k] - x) for other in others) / len(others)) for k, x in enumerate(exact)]
    return dict(zip(named, zip(exact, spread, strict=True), strict=True))


def _double(x: torch.Tensor | None, p: torch.Tensor) -> Array:
    return array_of((torch.zeros_like(p) if x is None else x).double())


def _square(array: Array) -> float:
    return float((array * array).sum())
