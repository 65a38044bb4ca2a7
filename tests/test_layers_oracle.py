"""Every function of the oracle with models of layers, and with anybody's function."""

import re
from dataclasses import replace
from typing import Any

import autograd.numpy as anp
import numpy as np
import pytest
from layer_models import MODELS, NET, SIZES, every_model, rows, step_of

from adamshap.reference import (
    Adam,
    AdamState,
    Batch,
    Function,
    LayerNorm,
    Linear,
    RMSNorm,
    Sequential,
    Step,
    attribute,
    game,
    influence,
    losses,
    marginals,
    metagradient,
    models,
    retrained,
    retraining,
    scores,
    slopes,
    transformer,
    update,
    utility,
)
from adamshap.reference.contract import GRADIENTS, SCORE_SLOPES, Array, Snapshot
from adamshap.verify.usual_rounding import usual_rounding

# --- a step ----------------------------------------------------------------------------------------------------------


@every_model
def test_the_sample_gradients_are_the_slope_of_each_loss(name: str) -> None:
    step = step_of(name)
    generator = np.random.default_rng(5)
    towards = {key: generator.standard_normal(p.shape) for key, p in step.params.items()}

    def at(stride: float) -> Array:
        moved = {key: p + stride * towards[key] for key, p in step.params.items()}
        return models.sample_losses(step.net, moved, step.train)

    gradients = models.each_gradient(step.net, step.params, step.train)
    slope = sum(np.tensordot(x, towards[key], towards[key].ndim) for key, x in gradients.items())
    h = 1e-4  # Richardson: the error is of fourth order
    differences = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    np.testing.assert_allclose(slope, differences, rtol=1e-7, atol=1e-9)


@every_model
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("slope", SCORE_SLOPES)
def test_scores_are_the_mean_of_those_by_validation_sample(name: str, slope: Any, gradient: Any) -> None:
    step = step_of(name)
    mean = scores(step, slope, gradient)
    each = scores(step, slope, gradient, per_validation=True)
    assert each.shape == (4, 3)
    np.testing.assert_allclose(each.mean(axis=1), mean, rtol=1e-9, atol=1e-12 * np.abs(each).max())


@every_model
def test_the_secant_shares_out_the_step_that_the_data_make(name: str) -> None:
    step = step_of(name)
    x, c = models.sample_gradients(step), game.step_coefficients(step)
    g = {key: x_i.sum(axis=0) for key, x_i in x.items()}
    S = slopes.step_slopes(step, "secant", x, g, (4, 4))
    for key in g:
        moved = game.update_map(c[key], g[key]) - game.update_map(c[key], np.zeros_like(g[key]))
        np.testing.assert_allclose((S[key] * x[key]).sum(axis=0), moved, rtol=1e-9, atol=1e-15)
    everybody, nobody = np.ones(4, bool), np.zeros(4, bool)
    gain = utility(step, everybody) - utility(step, nobody)
    assert scores(step, "secant", "path", nodes=(8, 4)).sum() == pytest.approx(gain, rel=1e-8)
    assert scores(step, "tangent", efficient=True).sum() == pytest.approx(gain, rel=1e-8)


@every_model
def test_marginals_add_up(name: str) -> None:
    step = step_of(name)
    shapley, first, last = (marginals(step, kind) for kind in ("shapley", "first", "last"))  # type: ignore[arg-type]
    assert shapley.values.sum() == pytest.approx(shapley.total - shapley.empty, rel=1e-9)
    one = np.arange(4) == 1
    assert first.values[1] == utility(step, one) - first.empty
    assert last.values[1] == last.total - utility(step, ~one)


@every_model
def test_the_influence_is_the_slope_of_the_loss_in_the_weight(name: str) -> None:
    step = step_of(name)
    x, c, start = models.sample_gradients(step), game.step_coefficients(step), game.decayed(step)

    def after(weights: Array) -> float:
        g = game.coalition_gradient(x, weights)
        end = {key: start[key] - game.update_map(c[key], g[key]) for key in g}
        return models.mean_loss(step.net, end, step.valid)

    h, eye = 1e-4, np.eye(4)
    slope = [
        (8 * (after(1 + h * e) - after(1 - h * e)) - (after(1 + 2 * h * e) - after(1 - 2 * h * e))) / (12 * h)
        for e in eye
    ]
    np.testing.assert_allclose(-influence(step), slope, rtol=1e-6, atol=1e-12)


@every_model
def test_products_at_every_position_are_off_by_the_size_of_the_errors(name: str) -> None:
    """The kit's bounds are measured so; a sequence's positions are rounded each by itself."""
    step = step_of(name)
    right = models.each_gradient(step.net, step.params, step.train)
    with usual_rounding(1e-9, np.random.default_rng(0)):
        off = models.each_gradient(step.net, step.params, step.train)
        again = models.each_gradient(step.net, step.params, step.train)
    for key, x in right.items():
        assert np.abs(off[key] - x).max() < 1e-6 * max(np.abs(x).max(), 1e-3)
    assert any((off[key] != again[key]).any() for key in right)


def test_what_the_optimiser_sees_of_a_tie_is_both_uses() -> None:
    step = step_of("tied transformer")
    both = models.loss_gradient(step.net, step.params, step.train)["embedding.weight"]
    untied = transformer(**SIZES, tied=False)
    params = step.params | {"head.weight": step.params["embedding.weight"]}
    apart = models.loss_gradient(untied, params, step.train)
    np.testing.assert_allclose(both, apart["embedding.weight"] + apart["head.weight"], rtol=1e-12, atol=1e-15)
    assert min(np.abs(apart[name]).max() for name in ("embedding.weight", "head.weight")) > 1e-3


def test_a_position_sees_none_after_it() -> None:
    step = step_of("tied transformer")
    later = np.array(step.train.x)
    later[:, 2:] = (later[:, 2:] + 1) % 5
    before, after = (models.outputs(step.net, step.params, x) for x in (step.train.x, later))
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert (before[:, 2:] != after[:, 2:]).any(axis=-1).all()


def test_an_uncounted_position_has_no_part_in_the_loss() -> None:
    logits, labels = np.random.default_rng(0).standard_normal((2, 3, 4)), np.array([[1, -100, 2], [-100, -100, 0]])
    one, other = losses.mean_cross_entropy(logits, labels)
    by_position = losses.cross_entropy(logits.reshape(6, 4), np.array([1, 0, 2, 0, 0, 0]))
    assert one == pytest.approx((by_position[0] + by_position[2]) / 2, rel=1e-15)
    assert other == pytest.approx(by_position[5], rel=1e-15)


# --- runs ------------------------------------------------------------------------------------------------------------


def trained(name: str, **options: Any) -> Any:
    model, batch = MODELS[name]
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 3, "seed": 4, "slope": "secant", "gradient": "path"}
    return attribute(model, Adam(0.001, weight_decay=0.1), batch(5, 6), batch(2, 7), **(settings | options))  # type: ignore[arg-type]


@every_model
def test_a_run_accounts_for_the_whole_change_of_the_loss(name: str) -> None:
    run = trained(name, credit="carry", nodes=(16, 4))
    config = run.config
    before, after = (
        models.mean_loss(config.network, params, config.valid) for params in (run.initial_params, run.params)
    )
    assert run.scores.sum() + run.decay.sum() == pytest.approx(before - after, rel=1e-9, abs=1e-12)
    smooth = name != "convnet"  # whose max pool has kinks, which quadrature goes across
    assert np.abs(run.closed).max() < (1e-6 if smooth else 1e-2) * np.abs(run.scores).max()
    assert not np.array_equal(run.scores, trained(name, credit="carry", seed=5).scores)


@every_model
@pytest.mark.parametrize("credit", ["step", "carry"])
def test_a_run_that_is_resumed_ends_as_one_that_was_not(name: str, credit: str) -> None:
    kept: list[Snapshot] = []
    whole = trained(name, credit=credit, on_checkpoint=lambda step, state: kept.append(state()))
    again = trained(name, credit=credit, resume=kept[1])
    np.testing.assert_array_equal(again.scores, whole.scores)
    for key, p in whole.params.items():
        np.testing.assert_array_equal(again.params[key], p)


@every_model
def test_training_again(name: str) -> None:
    run = trained(name)
    config = retraining.config_of(run)
    without = np.arange(5) != 2
    expected = retraining.final_loss(config, without.astype(float)) - retraining.final_loss(config, np.ones(5))
    assert retrained(run, [2])[0] == expected
    h, one = 1e-4, np.eye(5)[2]
    ends = {k: retraining.final_loss(config, 1 + k * h * one) for k in (-2, -1, 1, 2)}
    slope = (8 * (ends[1] - ends[-1]) - (ends[2] - ends[-2])) / (12 * h)
    assert metagradient(run)[2] == pytest.approx(-slope, rel=1e-5, abs=1e-9)


def test_a_state_of_a_model_with_another_layer_is_refused() -> None:
    kept: list[Snapshot] = []
    one, other = (Sequential((Linear(3, 4), LayerNorm(4), last, Linear(4, 2))) for last in TWO_LAYERS)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 3}
    attribute(one, Adam(), rows(5, 0), rows(2, 1), on_checkpoint=lambda _, state: kept.append(state()), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"resume: got the state of another run, which differs in network\.layers"):
        attribute(other, Adam(), rows(5, 0), rows(2, 1), resume=kept[0], **options)  # type: ignore[arg-type]


TWO_LAYERS = (LayerNorm(4, bias=False), RMSNorm(4))
"""With parameters of the same names and shapes."""


# --- anybody's model -------------------------------------------------------------------------------------------------


def test_a_function_gives_what_the_described_model_does() -> None:
    step = step_of("function")
    described = replace(step, net=NET)
    np.testing.assert_allclose(scores(step), scores(described), rtol=1e-10)
    for name, p in update(described)[0].items():
        np.testing.assert_allclose(update(step)[0][name], p, rtol=1e-12)


def function_step(losses: Any, batch: Batch | None = None) -> Step:
    params = {"w": np.array([0.5, -1.0])}
    batch = Batch(np.array([[1, 2], [3, 1], [0, 4]]), np.array([0, 1, 1])) if batch is None else batch
    return Step(Function({"w": (2,)}, losses), params, Adam(), AdamState.zeros(params), batch, batch)


def test_a_function_meets_integers_as_integers() -> None:
    def indexed(params: Any, batch: Batch) -> Any:
        return params["w"][batch.x[:, 0] % 2] ** 2 * batch.y

    x = models.sample_gradients(function_step(indexed).as_float64())["w"]
    np.testing.assert_allclose(x, np.array([[0, 0], [0, -2], [1, 0]]) / 3)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (
            lambda params, batch: (batch.x - batch.x.mean(axis=0)) @ params["w"],
            "Function.losses: got a loss of sample 0 of",
        ),
        (lambda params, batch: anp.sum(batch.x @ params["w"]), "Function.losses: got a result of shape (); needs one"),
        (lambda params, batch: batch.x * params["w"], "Function.losses: got a result of shape (3, 2); needs one"),
    ],
)
def test_a_function_of_samples_that_interact_is_refused(losses: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        scores(function_step(losses))


def test_a_run_needs_parameters_to_start_with() -> None:
    model = Function({"w": (2,)}, lambda params, batch: (batch.x @ params["w"]) ** 2)
    with pytest.raises(ValueError, match=re.escape("Function.init: got None; needs the parameters")):
        attribute(model, Adam(), rows(3, 0), rows(2, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Function\.init: got the names"):
        Function({"w": (2,)}, model.losses, {"v": np.ones(2)}).init(0)
