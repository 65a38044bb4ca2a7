"""Directional derivatives of samples' losses in forward mode: ⟨P, x_i⟩ without any gradient (docs/method.md 4).

⟨P, x_i⟩ = w d/dh ℓ(θ + h P; z_i) at h = 0. Forward mode carries the derivative of every intermediate result along P
from the parameters to the losses, by a rule for each operation: one pass for all samples, without a backward pass,
copies of the parameters, or x_i. It shares no derivative rule with `models.each_gradient`, which is the point.

=======  =============  ==================================================
method   name           meaning
=======  =============  ==================================================
P        ``direction``  one array per parameter, of its shape
ℓ        ``losses``     losses of the samples, (n,)
h        ``h``          step of a difference
=======  =============  ==================================================
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from autograd.differential_operators import make_jvp

from adamshap.reference import models
from adamshap.reference.contract import Array, Batch, Function, Model, Params, Step, named_arrays, refuse

__all__ = ["directional_derivatives", "forward_dot_products"]

MOVE = float(np.finfo(np.float64).eps) ** 0.2
"""Largest move of a loss in a difference of fourth order, in units of the largest loss: truncation, of the order of
MOVE⁴, and rounding, ε/MOVE, are then equal."""

FARTHEST = 2.0**-4
"""Largest length of a step, in units of ‖θ‖."""

TRIALS = 8


def directional_derivatives(network: Model, params: Params, batch: Batch, direction: Params) -> Array:
    """Return the derivative of each sample's loss along `direction`: d/dh ℓ(θ + h P; z_i) at h = 0.

    Parameters
    ----------
    network : Network
        Or another `Model`. For a `Function` with gradients of its own, differences of its losses are taken, with a
        relative error of about 1e-11; for all others the derivative is exact to rounding.
    params : dict of arrays
        θ.
    batch : Batch
    direction : dict of arrays
        P, of the shapes of `params`.

    Returns
    -------
    array (n,)
        ⟨P, ∇ℓ(θ; z_i)⟩.

    Raises
    ------
    ValueError, TypeError
        A direction of other names or shapes; a `Function` with an operation that autograd has no forward-mode rule for.
    """
    params = {name: np.asarray(p, np.float64) for name, p in params.items()}
    shapes = {name: p.shape for name, p in params.items()}
    given = named_arrays("direction", direction, shapes)
    direction = {name: np.asarray(given[name], np.float64) for name in params}

    def losses(at: Params) -> Any:
        return models.sample_losses(network, at, batch)

    if isinstance(network, Function) and network.gradients is not None:
        return _differences(losses, params, direction)
    try:
        _, derivatives = make_jvp(losses)(params)(direction)
    except NotImplementedError as error:
        if not isinstance(network, Function):
            raise
        needs = "operations with a forward-mode rule (autograd.extend.defjvp), or contraction 'ghost'"
        refuse("Function.losses", f"an operation without one ({error})", needs)
    return np.asarray(derivatives)


def forward_dot_products(step: Step, P: Params, clip: float = 1.0) -> Array:
    """Return ⟨P_j, x_i⟩, (n, J), for score matrices P (J, …): one pass for each j.

    Parameters
    ----------
    step : Step
    P : dict of arrays (J, …)
    clip : float
        c, the factor by which the batch gradient is clipped.
    """
    weight = clip * (1 / step.n if step.reduction == "mean" else 1.0)
    columns = []
    for j in range(len(next(iter(P.values())))):
        direction = {name: matrix[j] for name, matrix in P.items()}
        columns.append(weight * directional_derivatives(step.net, step.params, step.train, direction))
    return np.stack(columns, axis=1)


def _differences(losses: Callable[[Params], Any], params: Params, direction: Params) -> Array:
    """Return the derivatives along `direction` by (4 D(h/2) − D(h))/3, D the central difference."""
    own, length = (math.hypot(*np.concatenate([p.ravel() for p in group.values()])) for group in (params, direction))
    if length == 0:
        return np.zeros(len(np.asarray(losses(params))))

    def central(h: float) -> Array:
        ends = [{name: p + side * h * direction[name] for name, p in params.items()} for side in (1, -1)]
        up, down = (np.asarray(losses(end), np.float64) for end in ends)
        return (up - down) / (2 * h)

    size = float(np.abs(np.asarray(losses(params))).max()) or 1.0
    h, largest = MOVE * (own or 1.0) / length, FARTHEST * (own or 1.0) / length
    for _ in range(TRIALS):
        move = h * float(np.abs(central(h)).max()) / size
        if move <= MOVE and (move >= MOVE / 4 or h == largest):
            break
        h = min(largest, h * MOVE / (2 * move)) if move > 0 else largest
    return (4 * central(h / 2) - central(h)) / 3
