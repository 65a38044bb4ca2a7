"""Mistakes in the optimiser: its coefficients, weight decay, and the state that it returns."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from adamshap.reference import adam, models
from adamshap.reference.adam import Coefficients, bias_correction
from adamshap.reference.contract import AdamState, Array, CompletedSteps, Params, Step
from adamshap.verify.faults.fault import LESS, SEEN, Fault, Wrap, computes_with, decayed, returns, sees
from adamshap.verify.implementation import Ask, Query
from adamshap.verify.optimisers import settings_by_name, with_settings


def _coefficients(change: Callable[[Coefficients, Any, int, Array, Array], Coefficients]) -> Wrap:
    """Return a fault with other coefficients: ``change(right ones, adam, t, m, v)``."""

    def make(right: Any) -> Any:
        return lambda settings, t, m, v: change(right(settings, t, m, v), settings, t, m, v)

    return computes_with(adam.coefficients, make)


def _settings(**changes: Callable[[Any], Any]) -> Wrap:
    """Return a fault with other settings of Adam."""

    def change(adam: Any) -> Any:
        return replace(adam, **{name: f(adam) for name, f in changes.items()})

    return sees(lambda step: replace(step, adam=with_settings(step.adam, change)))


def _corrected_with(change: Callable[[int], int]) -> Wrap:
    return computes_with(adam.bias_correction, lambda right: lambda beta, t: right(beta, max(change(t), 1)))


def _state(change: Callable[[Step], tuple[Params, Params]]) -> Wrap:
    """Return a fault with another m and v."""
    return sees(lambda step: replace(step, state=AdamState(step.state.step, *change(step))))


def _advanced_v(step: Step) -> tuple[Params, Params]:
    _, state = adam.update(step)
    return step.state.m, state.v


def _advanced_state(step: Step) -> tuple[Params, Params]:
    _, state = adam.update(step)
    return state.m, state.v


def _floored_denominator(right: Any) -> Any:
    return lambda c, g: np.maximum(adam.root(c, g), c.eps)


def _floored_difference(right: Any) -> Any:
    """Compute A[a, b] of A(g) = η (μ + k g) / max(r(g), ε); the denominator is already replaced."""

    def difference(c: Coefficients, a: Array, b: Array) -> Array:
        a, b = np.broadcast_arrays(a, b)
        low_a, low_b = (adam.root(c, g) < c.eps for g in (a, b))
        with np.errstate(divide="ignore", invalid="ignore"):
            # Not used where a = b: then both are low, or neither is.
            across = (adam.update_map(c, a) - adam.update_map(c, b)) / (a - b)
            above = right(replace(c, eps=0.0), a, b)
            below = c.lr * c.k / np.float64(c.eps)
        return np.where(low_a & low_b, below, np.where(low_a | low_b, across, above))

    return difference


def _floored(ask: Ask) -> Ask:
    inner = computes_with(adam.denominator, _floored_denominator)(ask)
    return computes_with(adam.divided_difference, _floored_difference)(inner)


def _coupled_gradients(right: Any) -> Any:
    def gradients(step: Step) -> Params:
        weight = 1 / step.n if step.reduction == "mean" else 1.0
        decays = {name: weight * step.settings(name).weight_decay for name in step.params}
        return {name: x + decays[name] * step.params[name] for name, x in right(step).items()}

    return gradients


def _coupled(ask: Ask) -> Ask:
    inner = computes_with(adam.decayed, lambda _: lambda step: dict(step.params))(ask)
    return computes_with(models.sample_gradients, _coupled_gradients)(inner)


def _weights_decayed(right: Any) -> Any:
    def weights_alone(step: Step) -> Params:
        return {name: p if name.endswith("weight") else step.params[name] for name, p in right(step).items()}

    return weights_alone


def _decay_last(step: Step, query: Query, result: Any, ask: Ask) -> Any:
    params, state = result
    shrink = {name: 1 - one.lr * one.weight_decay for name, one in settings_by_name(step).items()}
    wrong = {name: (p - decayed(step, name) + step.params[name]) * shrink[name] for name, p in params.items()}
    return wrong, state


def _state_with(m: Callable[..., Array], v: Callable[..., Array], steps: int = 1) -> Wrap:
    """Return a fault by which `update` returns another state: ``m(m, g, β1)`` and ``v(v, x, g, β2)``."""

    def change(step: Step, query: Query, result: Any, ask: Ask) -> Any:
        x, g = models.sample_gradients(step), models.batch_gradient(step)
        received = {name: c.received(g[name]) for name, c in adam.step_coefficients(step).items()}
        betas = {name: step.settings(name).betas for name in g}
        state = AdamState(
            CompletedSteps(step.state.step + steps),
            {name: m(step.state.m[name], received[name], betas[name][0]) for name in g},
            {name: v(step.state.v[name], x[name], received[name], betas[name][1]) for name in g},
        )
        return result[0], state

    return returns(change, "update")


def _right_m(m: Array, g: Array, beta: float) -> Array:
    return beta * m + (1 - beta) * g


def _right_v(v: Array, x: Array, g: Array, beta: float) -> Array:
    return beta * v + (1 - beta) * g**2


FAULTS: tuple[Fault, ...] = (
    # Adam's coefficients
    Fault(
        "eps-inside-root",
        "ε inside the square root",
        LESS,
        _settings(eps_root=lambda a: a.eps_root + a.eps, eps=lambda a: 0.0),
    ),
    Fault("eps-root-ignored", "ε_root left out", "PyTorch has none", _settings(eps_root=lambda a: 0.0)),
    Fault(
        "eps-root-before-correction",
        "ε_root added to v before its bias correction",
        "optax adds it after",
        _coefficients(
            lambda c, a, t, m, v: replace(c, kappa=(a.betas[1] * v + a.eps_root) / bias_correction(a.betas[1], t))
        ),
    ),
    Fault(
        "eps-before-correction",
        "ε/√c2 for ε: ε added to √v before its bias correction",
        "Keras (TensorFlow) does so",
        _coefficients(lambda c, a, t, m, v: replace(c, eps=a.eps / np.sqrt(bias_correction(a.betas[1], t)))),
    ),
    Fault(
        "eps-as-floor",
        "max(√, ε) for √ + ε in the denominator",
        "ε as a guard against division by 0",
        _floored,
    ),
    Fault(
        "no-bias-correction",
        "no bias correction",
        LESS,
        computes_with(adam.bias_correction, lambda right: lambda beta, t: 1.0),
    ),
    Fault(
        "bias-correction-of-m-only",
        "bias correction of m but not of v",
        SEEN,
        _coefficients(lambda c, a, t, m, v: replace(c, kappa=a.betas[1] * v + a.eps_root, q=1 - a.betas[1])),
    ),
    Fault(
        "bias-correction-previous",
        "bias correction with t − 1",
        "the step counter is read before it is advanced",
        _corrected_with(lambda t: t - 1),
    ),
    Fault(
        "bias-correction-next",
        "bias correction with t + 1",
        "the step counter is read after scoring",
        _corrected_with(lambda t: t + 1),
    ),
    Fault(
        "bias-correction-capped",
        "bias correction that ends at t = 100",
        "large t: a table or a float16 power",
        _corrected_with(lambda t: min(t, 100)),
    ),
    Fault(
        "state-already-corrected",
        "m and v taken as bias-corrected already",
        "some libraries store m̂ and v̂",
        _coefficients(lambda c, a, t, m, v: replace(c, mu=a.betas[0] * m, kappa=a.betas[1] * v + a.eps_root)),
    ),
    Fault("v-after-the-step", "v_t for v_{t−1}", "v is updated before scoring", _state(_advanced_v)),
    Fault(
        "state-after-the-step",
        "m and v of after the step",
        "the state is updated before scoring",
        _state(_advanced_state),
    ),
    Fault("betas-swapped", "β1 and β2 swapped", "argument order", _settings(betas=lambda a: a.betas[::-1])),
    Fault(
        "v-not-decayed",
        "√v without the factor β2 and the bias correction",
        "the state's root is at hand",
        _coefficients(lambda c, a, t, m, v: replace(c, kappa=v + a.eps_root)),
    ),
    Fault(
        "m-not-decayed",
        "μ without the factor β1",
        SEEN,
        _coefficients(lambda c, a, t, m, v: replace(c, mu=m / bias_correction(a.betas[0], t))),
    ),
    Fault(
        "gradient-not-averaged",
        "k without the factor 1 − β1",
        "momentum as in SGD",
        _coefficients(lambda c, a, t, m, v: replace(c, k=1 / bias_correction(a.betas[0], t))),
    ),
    Fault(
        "square-not-averaged",
        "q without the factor 1 − β2",
        SEEN,
        _coefficients(lambda c, a, t, m, v: replace(c, q=1 / bias_correction(a.betas[1], t))),
    ),
    Fault(
        "no-momentum",
        "m left out",
        "the momentum term is dropped as sample-independent",
        _coefficients(lambda c, a, t, m, v: replace(c, mu=np.zeros_like(m))),
    ),
    Fault(
        "square-left-out",
        "the batch's own g² left out of the denominator",
        "the variance is held fixed",
        _coefficients(lambda c, a, t, m, v: replace(c, q=1e-300)),
    ),
    # weight decay
    Fault("decay-coupled", "weight decay coupled (L2 in the loss)", "torch.optim.Adam's weight_decay", _coupled),
    Fault(
        "decay-without-lr",
        "weight decay not multiplied by the learning rate",
        "the AdamW paper's own form",
        computes_with(
            adam.decayed,
            lambda _: (
                lambda step: {name: p * (1 - step.settings(name).weight_decay) for name, p in step.params.items()}
            ),
        ),
    ),
    Fault(
        "decay-not-of-biases",
        "weight decay of the weights alone, not of the biases",
        "parameter groups without decay, as for transformers",
        computes_with(adam.decayed, _weights_decayed),
    ),
    Fault("decay-left-out", "weight decay left out", SEEN, _settings(weight_decay=lambda a: 0.0)),
    Fault("decay-after-the-step", "weight decay applied after Adam's step", SEEN, returns(_decay_last, "update")),
    # the state that `update` returns
    Fault("m-without-decay", "m⁺ = m + (1 − β1) g", SEEN, _state_with(lambda m, g, beta: m + (1 - beta) * g, _right_v)),
    Fault(
        "v-of-per-sample-squares",
        "v⁺ made of Σ x_i² for g²",
        "per-sample g² for batch g²",
        _state_with(_right_m, lambda v, x, g, beta: beta * v + (1 - beta) * (x**2).sum(axis=0)),
    ),
    Fault("step-not-counted", "a step counter that does not advance", SEEN, _state_with(_right_m, _right_v, steps=0)),
)
