"""Retraining with other sample weights: leave-one-out, and the derivative of the whole run."""

import dataclasses
import weakref
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from adamshap import gpu
from adamshap.reference import (
    Adam,
    AdamState,
    Batch,
    Network,
    Step,
    attribute,
    influence,
    marginals,
    metagradient,
    retrained,
    retraining,
)
from adamshap.reference.contract import RunConfig
from adamshap.reference.models import mean_loss
from adamshap.verify.strategies import steps
from adamshap.verify.tolerance import assert_within, conditioning, parameter_count, rounding, unit_roundoff


def problem(n: int = 11, activation: Any = "tanh") -> tuple[Network, Batch, Batch]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((n + 5, 4))
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)
    return Network((4, 5, 3), activation), Batch(x[:n], y[:n]), Batch(x[n:], y[n:])


# --- against other computations of the same number


@given(step=steps(max_depth=2, max_width=5, max_n=6, kinds=("fresh",)))
@settings(max_examples=20)
def test_a_run_of_one_step_is_that_step(step: Step) -> None:
    """Leave-one-out retraining equals the game's last marginal, and the metagradient the influence."""
    config = RunConfig(step.net, step.adam, step.train, step.valid, 1, step.n, 0, step.reduction)
    options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    run = attribute(**options)
    once = dataclasses.replace(step, params=step.net.init(0))

    def last(given_: Step) -> Any:
        return marginals(given_, "last").values

    scale = sum(mean_loss(step.net, p, step.valid) for p in (once.params, run.params))
    terms = parameter_count(step) * (step.n + step.n_val)
    bound = rounding(scale, terms) + conditioning(last, once)
    assert_within(retrained(run, range(step.n)), last(once), bound, "retrained")
    expected = influence(once)
    bound = rounding(np.abs(expected).max() + scale, terms) + conditioning(influence, once)
    assert_within(metagradient(run), expected, bound, "metagradient")


SMOOTH = ("tanh", "gelu", "silu", "sigmoid")


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("adam", [Adam(0.02, weight_decay=0.1), Adam(0.02, (0.5, 0.8), eps=1e-3, eps_root=1e-6)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_metagradient_is_the_limit_of_central_differences(activation: Any, adam: Adam, reduction: Any) -> None:
    """D(h) = f' + c h² + …: from D(h) and D(2h) f' is known to |D(2h) − D(h)|/3 + O(h⁴), and rounding adds u L/h."""
    net, train, valid = problem(activation=activation)
    run = attribute(net, adam, train, valid, epochs=3, batch_size=4, reduction=reduction)
    config, found = retraining.config_of(run), metagradient(run)
    # h² c ≈ u L / h: the step at which both errors are equal, for a loss and a weight of order 1.
    h = unit_roundoff("float64") ** (1 / 3)

    def central(sample: int, h: float) -> float:
        change = h * (np.arange(train.n) == sample)
        up, down = (retraining.final_loss(config, 1 + sign * change) for sign in (1, -1))
        return (down - up) / (2 * h)

    for sample in (0, 7):
        near, far = central(sample, h), central(sample, 2 * h)
        loss = mean_loss(net, run.params, valid)
        assert_within(found[sample], near, abs(far - near) + rounding(loss, 3 * 3) / h, f"metagradient[{sample}]")


def test_two_steps_by_hand() -> None:
    """One weight, one sample used twice, β = (1/2, 0), ε = 1: exact fractions, with dw/dω by hand."""
    net, adam = Network((1, 1), "identity", "mse", bias=False), Adam(0.5, (0.5, 0.0), eps=1.0)
    run = attribute(net, adam, Batch([[1.0]], [[0.0]]), Batch([[1.0]], [[0.0]]), epochs=2, batch_size=1)
    w0 = Fraction(float(run.initial_params["0.weight"][0, 0]))
    # The loss is w², so g = 2wω; v̂ = g², so an update is m̂ / (2 (|g| + 1)). d: derivatives by ω at ω = 1.
    sign = 1 if w0 > 0 else -1
    g1, dg1 = 2 * w0, 2 * w0
    m1, dm1 = g1 / 2, dg1 / 2
    D1, dD1 = abs(g1) + 1, sign * dg1
    w1 = w0 - (m1 / Fraction(1, 2)) / (2 * D1)
    dw1 = -(2 * dm1 * D1 - 2 * m1 * dD1) / (2 * D1**2)
    sign = 1 if w1 > 0 else -1
    g2, dg2 = 2 * w1, 2 * w1 + 2 * dw1
    m2, dm2 = m1 / 2 + g2 / 2, dm1 / 2 + dg2 / 2
    D2, dD2 = abs(g2) + 1, sign * dg2
    w2 = w1 - (m2 / Fraction(3, 4)) / (2 * D2)
    dw2 = dw1 - Fraction(4, 3) * (dm2 * D2 - m2 * dD2) / (2 * D2**2)
    scale = float(abs(w0) + abs(m1) + abs(m2))
    assert_within(run.params["0.weight"], [[float(w2)]], rounding(scale, 4), "weight")
    assert_within(metagradient(run), [-float(2 * w2 * dw2)], rounding(scale, 8), "metagradient")
    # Without the only sample the weight does not change.
    assert_within(retrained(run, [0]), [float(w0**2 - w2**2)], rounding(float(w0**2), 4), "retrained")


# --- memory and arguments


def test_the_run_itself_is_the_base() -> None:
    net, train, valid = problem()
    run = attribute(net, Adam(0.02, weight_decay=0.1), train, valid, epochs=2, batch_size=4)
    ours = retraining.final_loss(retraining.config_of(run), np.ones(train.n))
    loss = mean_loss(net, run.params, valid)
    assert_within(ours, loss, rounding(loss, 6 * 55), "final loss")


@pytest.mark.parametrize("steps_taken", [1, 2, 7, 16])
def test_about_the_root_of_the_states_is_kept(steps_taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net, train, valid = problem(n=3)
    run = attribute(net, Adam(), train, valid, epochs=steps_taken, batch_size=3)
    taken, kept, step = 0, 0, retraining.weighted_step
    alive: weakref.WeakSet[AdamState] = weakref.WeakSet()

    def counted(*arguments: Any) -> Any:
        nonlocal taken, kept
        taken, result = taken + 1, step(*arguments)
        alive.add(result[1])
        kept = max(kept, len(alive))
        return result

    monkeypatch.setattr(retraining, "weighted_step", counted)
    metagradient(run)
    assert taken <= 2 * steps_taken
    assert kept <= 2 * np.ceil(np.sqrt(steps_taken)) + 2  # segments, one segment's states, and the current one


def test_an_engines_run_is_trained_again() -> None:
    net, train, valid = problem()
    options: dict[str, Any] = {"epochs": 2, "batch_size": 4, "seed": 5}
    run = gpu.attribute(net, Adam(), train, valid, device="cpu", **options)
    ours = attribute(net, Adam(), train, valid, **options)
    np.testing.assert_array_equal(retrained(run, [1, 3]), retrained(ours, [1, 3]))
    np.testing.assert_array_equal(metagradient(run), metagradient(ours))


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([3, 11], ValueError, r"samples\[1\]: got 11; needs a training sample, 0 to 10"),
        ([-1], ValueError, r"samples\[0\]: got -1"),
        ([0.5], TypeError, r"samples\[0\]: got 0.5; needs an integer"),
        ([True], TypeError, r"samples\[0\]: got True"),
    ],
)
def test_an_invalid_sample_is_refused(samples: Any, error: Any, message: str) -> None:
    net, train, valid = problem()
    run = attribute(net, Adam(), train, valid, epochs=1)
    with pytest.raises(error, match=message):
        retrained(run, samples)


def test_a_run_without_its_configuration_is_refused() -> None:
    net, train, valid = problem()
    run = dataclasses.replace(attribute(net, Adam(), train, valid, epochs=1), config=None)
    for function in (metagradient, lambda r: retrained(r, [0])):
        with pytest.raises(ValueError, match=r"run\.config: got None; needs the run's RunConfig"):
            function(run)
        with pytest.raises(TypeError, match="run: got int; needs a Run"):
            function(3)
