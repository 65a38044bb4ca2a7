"""Adam as a map from the gradient to the update, its divided difference, and one step.

Everything is elementwise: one coordinate has moments m and v before the step and receives the gradient g.

=======  =========================  ===========================================================
paper    name                       meaning
=======  =========================  ===========================================================
c1, c2   ``bias_correction``        1 − β1^t, 1 − β2^t
μ        ``Coefficients.mu``        β1 m / c1, the update's numerator without data
k        ``Coefficients.k``         (1 − β1) / c1
κ        ``Coefficients.kappa``     β2 v / c2 + ε_root, the squared denominator without data
q        ``Coefficients.q``         (1 − β2) / c2
r(g)     ``root``                   sqrt(κ + q g²)
D(g)     ``denominator``            r(g) + ε
A(g)     ``update_map``             η (μ + k g) / D(g)
A[a, b]  ``divided_difference``     (A(a) − A(b)) / (a − b), and A'(a) where a = b
d        ``Coefficients.shift``     λ₂ θ, or nothing: with L2 decay, A(g), D(g) and r(g) are those of d + g
θ⁺       ``update``                 θ − A(g) − η λ θ
=======  =========================  ===========================================================

Kingma & Ba (arXiv 1412.6980), Algorithm 1, with ε where PyTorch has it, ε_root where optax has it (added to the
bias-corrected second moment) and weight decay as in AdamW (arXiv 1711.05101), times the learning rate as in PyTorch.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from adamshap.reference.contract import (
    Adam,
    AdamState,
    Array,
    Params,
    Step,
    StepNumber,
    float64_step,
    refuse_overflow,
    refuse_zero_denominator,
)
from adamshap.reference.elementary import elementary
from adamshap.reference.models import batch_gradient


@elementary
def bias_correction(beta: float, t: int) -> float:
    """Return 1 − β^t without cancellation for β near 1."""
    # Below 1/2 nothing cancels; from 1/2 on, β − 1 is exact.
    return 1 - beta**t if beta < 0.5 else -math.expm1(t * math.log1p(beta - 1))


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of A(g) at fixed θ, m and v; ``mu``, ``kappa``, ``shift`` are arrays of the parameter's shape."""

    mu: Array
    k: float
    kappa: Array
    q: float
    eps: float
    lr: float
    shift: Array | None = None

    def received(self, g: Array) -> Array:
        """Return d + g, what Adam receives for the samples' gradient `g`."""
        return g if self.shift is None else self.shift + g


def coefficients(adam: Adam, t: StepNumber, m: Array, v: Array) -> Coefficients:
    """Return the coefficients of step `t` ≥ 1 for the moments `m` and `v` before it."""
    beta1, beta2 = adam.betas
    c1, c2 = bias_correction(beta1, t), bias_correction(beta2, t)
    return Coefficients(
        mu=beta1 * m / c1,
        k=(1 - beta1) / c1,
        kappa=beta2 * v / c2 + adam.eps_root,
        q=(1 - beta2) / c2,
        eps=adam.eps,
        lr=adam.lr,
    )


def step_coefficients(step: Step) -> dict[str, Coefficients]:
    """Return the coefficients of each parameter of `step`."""
    t, m, v = step.state.next_step, step.state.m, step.state.v
    found = {}
    for name, p in step.params.items():
        adam = step.settings(name)
        c = coefficients(adam, t, m[name], v[name])
        found[name] = replace(c, shift=adam.l2 * p) if adam.l2 else c
    return found


def decay_gradients(step: Step) -> Params:
    """Return d = λ₂ θ of each parameter with L2 decay."""
    return {name: c.shift for name, c in step_coefficients(step).items() if c.shift is not None}


def root(c: Coefficients, g: Array) -> Array:
    """Return r(g) = sqrt(κ + q g²); ``hypot``, so that no square over- or underflows."""
    return np.hypot(np.sqrt(c.kappa), math.sqrt(c.q) * c.received(g))


def denominator(c: Coefficients, g: Array) -> Array:
    """Return D(g) = r(g) + ε.

    Raises
    ------
    ValueError
        D is 0 (ε, κ and g are 0 in the step's dtype): no update exists.
    """
    D: Array = root(c, g) + c.eps
    refuse_zero_denominator(zeros(D), "v and the gradient are 0")
    return D


def zeros(D: Array) -> int:
    """Return the number of denominators that are 0 or, equivalent in practice, below the smallest normal number."""
    return int(np.count_nonzero(np.finfo(D.dtype).smallest_normal > D))


def update_map(c: Coefficients, g: Array) -> Array:
    """Return A(g) = η (μ + k g) / D(g), Adam's decrease of θ for the gradient `g` (docs/method.md 1)."""
    return c.lr * ((c.mu + c.k * c.received(g)) / denominator(c, g))


def divided_difference(c: Coefficients, a: Array, b: Array) -> Array:
    r"""Return A[a, b] = (A(a) − A(b)) / (a − b), and A'(a) where a = b; exact, symmetric, free of cancellation.

    Derivation. Let s = √κ, α = √q a, β = √q b, so that r_a = hypot(s, α) and r_b = hypot(s, β). From the definition

        A[a, b] D(a) D(b) / η = k D(b) − (μ + k b) φ,      φ = (r_a − r_b) / (a − b) = √q (α + β) / (r_a + r_b).

    In this form, the terms in k cancel when √κ and ε are small beside α and β. They are

        k (ε + r_b − b φ) = k (ε + (s² + r_a r_b − α β) / (r_a + r_b)).

    With angles, (s, α) = r_a (cos_a, sin_a), that is

        k (ε + H (cos_a cos_b + 1 − sin_a sin_b)),      H = r_a r_b / (r_a + r_b),

    and where sin_a sin_b > 0,

        1 − sin_a sin_b = (cos_a² + sin_a² cos_b²) / (1 + sin_a sin_b),

    a sum of squares. Only this positive sum and μ φ can still cancel: A has stationary points, and there its slope is
    truly ill-conditioned. Where r_a + r_b = 0 the angles and φ are set to 0: the symmetric derivative at the kink.
    """
    D_a, D_b = denominator(c, a), denominator(c, b)
    a, b = c.received(a), c.received(b)
    s, alpha, beta = np.broadcast_arrays(np.sqrt(c.kappa), math.sqrt(c.q) * a, math.sqrt(c.q) * b)
    r_a, r_b = np.hypot(s, alpha), np.hypot(s, beta)
    safe_a, safe_b, safe_sum = (np.where(r > 0, r, 1.0) for r in (r_a, r_b, r_a + r_b))
    cos_a, sin_a, cos_b, sin_b = s / safe_a, alpha / safe_a, s / safe_b, beta / safe_b
    product = sin_a * sin_b
    # Grouped so that swapping a and b changes no bit.
    squares = ((cos_a**2 + cos_b**2) + ((sin_a * cos_b) ** 2 + (sin_b * cos_a) ** 2)) / 2
    one_minus_product = np.where(product > 0, squares / (1 + np.maximum(product, 0.0)), 1 - product)
    half_harmonic = np.maximum(r_a, r_b) / safe_sum * np.minimum(r_a, r_b)
    phi = c.q * ((a + b) / safe_sum)  # from a + b, not α + β, whose roundings would stand out where a ≈ −b
    numerator = c.k * (c.eps + half_harmonic * (cos_a * cos_b + one_minus_product)) - c.mu * phi
    # Two divisions, the larger first: the product of two small denominators underflows.
    slope: Array = c.lr * (numerator / np.maximum(D_a, D_b) / np.minimum(D_a, D_b))
    return slope


def momentum_step(step: Step) -> Params:
    """Return A(0) for each parameter: the step that Adam takes without data."""
    return {name: update_map(c, np.zeros_like(step.params[name])) for name, c in step_coefficients(step).items()}


def decayed(step: Step) -> Params:
    """Return θ − η λ θ, the start of the step after weight decay, which is the same for every coalition."""
    start = {}
    for name, p in step.params.items():
        adam = step.settings(name)
        start[name] = p - adam.lr * adam.weight_decay * p
    return start


def update(step: Step) -> tuple[Params, AdamState]:
    """Take the step with the whole batch.

    Parameters
    ----------
    step : Step
        The step before it is taken; it is not changed.

    Returns
    -------
    params : dict of arrays
        θ⁺ = θ − A(g) − η λ θ (docs/method.md 1).
    state : AdamState
        m⁺ = β1 m + (1 − β1) g and v⁺ = β2 v + (1 − β2) g², with one more completed step.

    Raises
    ------
    ValueError
        A denominator of 0; results beyond float64.
    """
    step = float64_step(step)
    with np.errstate(over="ignore", invalid="ignore"):  # the results are checked below
        params, m, v = moved(step, batch_gradient(step))
    refuse_overflow(named_results(params, m, v), np.float64)
    return params, step.state.after(m, v)


def named_results(params: Params, m: Params, v: Params) -> Params:
    """Return the arrays of a step's result, keyed by their names in error messages."""
    groups = {"gradient of": m, "squared gradient of": v, "new": params}
    return {f"{group} {name!r}": array for group, named in groups.items() for name, array in named.items()}


def apply_gradient(step: Step, g: Params) -> tuple[Params, AdamState]:
    """Return parameters and state after the step with the batch gradient `g`, as `update` does."""
    params, m, v = moved(step, g)
    return params, step.state.after(m, v)


def moved(step: Step, g: Params) -> tuple[Params, Params, Params]:
    """Return θ⁺, m⁺ and v⁺ after the step with the batch gradient `g`, to which L2 decay adds λ₂ θ.

    `g` may be non-finite.
    """
    start, coefficients_, state = decayed(step), step_coefficients(step), step.state
    params, m, v = {}, {}, {}
    for name in start:
        beta1, beta2 = step.settings(name).betas
        params[name] = start[name] - update_map(coefficients_[name], g[name])
        received = coefficients_[name].received(g[name])
        m[name] = beta1 * state.m[name] + (1 - beta1) * received
        v[name] = beta2 * state.v[name] + (1 - beta2) * received**2
    return params, m, v
