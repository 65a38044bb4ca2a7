"""One run with its states kept, and each sample's scores by every estimator that follows the run.

==================  =========================  =====================================================================
method              name                       meaning
==================  =========================  =====================================================================
x_i                 ``Run.contributions``      each sample's contribution to a step's gradient, 1/n of its own
s_it                ``step_scores``            the scores of each step, by slope and by SGD's formula
section 6           ``carried``                momentum credited to the samples that built it up
−dL(θ_T)/dω_i       ``unrolled``               by the run in reverse, with a choice of the curvature H of a step
==================  =========================  =====================================================================

Slopes and splits are the oracle's. L is the mean loss of a set of validation samples; there are K such sets, and all
scores have a last axis for them. `unrolled` takes H as the Hessian (the metagradient), as n Σ_z x_z x_zᵀ
(AdamW-influence, arXiv 2605.18814), or as 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from adamshap.reference.adam import Coefficients, coefficients, update_map
from adamshap.reference.carry import SPLITS
from adamshap.reference.contract import Adam, Array, Schedule, StepNumber
from adamshap.reference.slopes import SLOPE_FUNCTIONS, SlopeInput
from adamshap.verify.claims.language.stacked import Data, Flat, states

NODES = (4, 4)
"""Nodes of "random_order"."""
SLOPES = ("frozen", "linearized", "tangent", "secant", "random_order")
SGD = "sgd"
Curvature = Literal["hessian", "fisher", "none"]


@dataclass(frozen=True, eq=False)
class Run:
    """A run of one copy. Passes are in the dtype of its states, everything else in float64.

    Parameters
    ----------
    flat : Flat
    optimiser : Adam or Schedule
    data : tuple of tensors
        All N training samples.
    index : int tensor (steps, batch)
    theta : tensor (steps + 1, P)
        Before each step, and after the last.
    m, v : tensors (steps + 1, P)
        Adam's moments, likewise.
    """

    flat: Flat
    optimiser: Adam | Schedule
    data: Data
    index: Tensor
    theta: Tensor
    m: Tensor
    v: Tensor

    @property
    def count(self) -> int:
        """The number N of training samples."""
        return len(self.data[0])

    def adam(self, t: int) -> Adam:
        """Return the settings of step t + 1, which starts from state t."""
        return self.optimiser.at(StepNumber(t + 1), "")

    def batch(self, t: int) -> Data:
        """Return the samples of the step that starts from state t."""
        x, y = (part[self.index[t]] for part in self.data)
        return x, y

    def contributions(self, t: int) -> Tensor:
        """Return x_i (n, P) of the step that starts from state t."""
        return self.flat.each_gradient(self.theta[t], self.batch(t)).double() / self.index.shape[1]

    def gradients(self, theta: Tensor, valid: Sequence[Data]) -> Tensor:
        """Return ∇L (K, P) of each set of validation samples at `theta`; sets of equal sizes go through together."""
        theta = theta.to(self.theta.dtype)
        if len({len(x) for x, _ in valid}) == 1:
            x, y = (torch.stack(parts) for parts in zip(*valid, strict=True))
            slope = grad(lambda p, x, y: self.flat.mean_loss(p, (x, y)))
            together: Tensor = vmap(slope, (None, 0, 0))(theta, x, y)
            return together.double()
        return torch.stack([self.flat.gradient(theta, data) for data in valid]).double()

    def losses(self, t: int, valid: Sequence[Data]) -> Array:
        """Return L (K,) of each set of validation samples in state t."""
        return np.array([float(self.flat.mean_loss(self.theta[t], data)) for data in valid])

    def coefficients(self, t: int) -> Coefficients:
        """Return the coefficients of Adam's map in the step that starts from state t."""
        m, v = (moment[t].double().numpy() for moment in (self.m, self.v))
        return coefficients(self.adam(t), StepNumber(t + 1), m, v)


def recorded(flat: Flat, optimiser: Adam | Schedule, data: Data, index: Tensor) -> Run:
    """Train from θ_0 on the batches `index` (steps, batch), and return the run."""
    weight = torch.full(index.shape, 1 / index.shape[1], dtype=flat.start.dtype)
    kept: tuple[list[Tensor], ...] = ([], [], [])
    for state in states(flat, optimiser, data, index[:, None], weight[:, None]):
        for part, tensor in zip(kept, (state.theta, state.m, state.v), strict=True):
            part.append(tensor[0].clone())
    theta, m, v = (torch.stack(part) for part in kept)
    return Run(flat, optimiser, data, index, theta, m, v)


def step_scores(run: Run, valid: Sequence[Data], names: Sequence[str] = (SGD, *SLOPES)) -> dict[str, Array]:
    """Return the scores (steps, batch, K) of each slope, with ∇L at the midpoint, for SGD's formula at the start."""
    found: dict[str, list[Array]] = {name: [] for name in names}
    for t in range(len(run.index)):
        x, c, adam = run.contributions(t).numpy(), run.coefficients(t), run.adam(t)
        given = SlopeInput(c, x, x.sum(0), NODES)
        way = (update_map(c, np.zeros_like(given.g)) + update_map(c, given.g)) / 2
        middle = run.theta[t].double() * (1 - adam.lr * adam.weight_decay) - torch.from_numpy(way)
        start, midpoint = (run.gradients(theta, valid).numpy() for theta in (run.theta[t], middle))
        for name in names:
            gamma = start if name == SGD else midpoint
            found[name].append(x @ (gamma * SLOPE_FUNCTIONS[name](given)).T)
    return {name: np.array(scores) for name, scores in found.items()}


# --- momentum carried back -------------------------------------------------------------------------------------------


def carried(run: Run, valid: Sequence[Data], slopes: Sequence[str]) -> dict[str, Array]:
    """Return each sample's score (N, K), by slope, with momentum credited to the samples that built it up.

    What is left of a step's fall of the loss is spread over its batch.
    """
    total = {slope: np.zeros((run.count, len(valid))) for slope in slopes}
    carry = {slope: np.zeros((len(valid), run.theta.shape[1])) for slope in slopes}  # C_t: a unit of m after step t
    after = run.losses(len(run.index), valid)
    for t, x in _backwards(run):
        adam, g = run.adam(t), x.sum(0)
        beta1, theta, m = adam.betas[0], run.theta[t].double().numpy(), run.m[t].double().numpy()
        given = SlopeInput(run.coefficients(t), x, g, NODES)
        gamma = run.gradients((run.theta[t] + run.theta[t + 1]) / 2, valid).numpy()
        before = run.losses(t, valid)
        decay = adam.lr * adam.weight_decay * gamma @ theta
        for slope in slopes:
            split = SPLITS[slope](given)
            momentum = adam.lr * beta1 / (1 - beta1 ** (t + 1)) * split.inverse
            rest = (before - after - gamma @ (split.slope * g + momentum * m) - decay) / len(x)
            scores = x @ (gamma * split.slope + (1 - beta1) * carry[slope]).T + rest
            np.add.at(total[slope], run.index[t].numpy(), scores)
            carry[slope] = beta1 * carry[slope] + gamma * momentum
        after = before
    return total


# --- the run in reverse ----------------------------------------------------------------------------------------------


def unrolled(run: Run, valid: Sequence[Data], curvature: Curvature = "hessian") -> Array:
    r"""Return the rate (N, K) at which L(θ_T) falls as a sample's weight grows from 1.

    With u the derivatives by (θ⁺, m⁺, v⁺) after a step, D = √v̂⁺ + ε and c1, c2 the bias corrections,

        u_m' = u_m − η u_θ/(c1 D)      u_v' = u_v + η m̂⁺ u_θ/(2 c2 √v̂⁺ D²)      r = (1 − β1) u_m' + 2 (1 − β2) g u_v'

    are those by m⁺, v⁺ and g. Before the step they are (1 − η λ) u_θ + H r, β1 u_m' and β2 u_v'; a sample scores
    −⟨r, x_i⟩.
    """
    u = run.gradients(run.theta[-1], valid)
    u_m, u_v = torch.zeros_like(u), torch.zeros_like(u)
    total = torch.zeros(run.count, len(valid), dtype=torch.float64)
    for t, array in _backwards(run):
        x = torch.from_numpy(array)
        adam, g = run.adam(t), x.sum(0)
        (beta1, beta2), lr = adam.betas, adam.lr
        c1, c2 = 1 - beta1 ** (t + 1), 1 - beta2 ** (t + 1)
        root = (run.v[t + 1].double() / c2).sqrt()
        D = root + adam.eps
        per_root = torch.where(root > 0, 1 / root, 0.0)  # no slope at the kink
        u_m = u_m - lr / (c1 * D) * u
        u_v = u_v + lr * run.m[t + 1].double() / c1 * per_root / (2 * c2 * D**2) * u
        r = (1 - beta1) * u_m + 2 * (1 - beta2) * g * u_v
        total.index_add_(0, run.index[t], -(x @ r.T))
        u = (1 - lr * adam.weight_decay) * u
        if curvature == "hessian":
            u = u + _hessian_products(run, t, r)
        elif curvature == "fisher":
            u = u + len(x) * (r @ x.T) @ x
        u_m, u_v = beta1 * u_m, beta2 * u_v
    return total.numpy()


def _backwards(run: Run) -> Iterator[tuple[int, Array]]:
    for t in reversed(range(len(run.index))):
        yield t, run.contributions(t).numpy()


def _hessian_products(run: Run, t: int, r: Tensor) -> Tensor:
    """Return H r of the batch's mean loss for each row of `r`."""
    # Reverse mode twice: H is symmetric, and forward mode would compile rules with `torch.jit`, which is deprecated.
    slope = grad(lambda theta: run.flat.mean_loss(theta, run.batch(t)))
    pull = vjp(slope, run.theta[t])[1]
    found: Tensor = vmap(pull)(r.to(run.theta.dtype))[0]
    return found.double()
