"""Models of layers: what their descriptions refuse, and every function of the oracle with them."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import autograd.numpy as anp
import numpy as np
import pytest

from adamshap import gpu
from adamshap.reference import (
    Activation,
    Adam,
    AdamState,
    Attention,
    AvgPool2d,
    Batch,
    Conv2d,
    Embedding,
    Flatten,
    Function,
    LayerNorm,
    LazyRows,
    Linear,
    MaxPool2d,
    MeanOverPositions,
    Network,
    Positions,
    Residual,
    RMSNorm,
    Sequential,
    Step,
    TiedLinear,
    attribute,
    convnet,
    game,
    influence,
    layers,
    losses,
    marginals,
    metagradient,
    models,
    perceptron,
    retrained,
    retraining,
    scores,
    slopes,
    transformer,
    update,
    utility,
)
from adamshap.reference.contract import GRADIENTS, SCORE_SLOPES, Array, Model, Snapshot
from adamshap.verify.models import kind_of
from adamshap.verify.usual_rounding import usual_rounding

SIZES: dict[str, Any] = {"vocab": 5, "context": 4, "width": 4, "depth": 1, "heads": 2}


def tokens(n: int, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    x, y = generator.integers(0, 5, (2, n, 4))
    x[0, 3] = x[0, 0]
    y[:, 0] = np.where(generator.random(n) < 0.5, -100, y[:, 0])
    return Batch(x, y)


def sequences(n: int, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    return Batch(generator.standard_normal((n, 3, 4)), generator.standard_normal((n, 2)))


def pictures(n: int, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    return Batch(generator.standard_normal((n, 2, 4, 5)), generator.integers(0, 3, n))


def rows(n: int, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    return Batch(generator.standard_normal((n, 3)), generator.integers(0, 2, n))


NET = Network((3, 4, 2))
OWN = Function(NET.shapes, lambda params, batch: perceptron.sample_losses(NET, params, batch), NET.init)
MODELS: dict[str, tuple[Model, Callable[[int, int], Batch]]] = {
    "tied transformer": (transformer(**SIZES), tokens),
    "transformer of rms norms": (transformer(**SIZES, norm="rms", tied=False, bias=False, activation="silu"), tokens),
    "convnet": (convnet(image=(2, 4, 5), channels=(2, 3), outputs=3, activation="tanh"), pictures),
    "sequences to targets": (
        Sequential((Residual((LayerNorm(4), Attention(4))), MeanOverPositions(), Linear(4, 2)), loss="mse"),
        sequences,
    ),
    "function": (OWN, rows),
}
every_model = pytest.mark.parametrize("name", MODELS)


def step_of(name: str, **changes: Any) -> Step:
    model, batch = MODELS[name]
    generator, params = np.random.default_rng(1), model.init(0)
    params = {key: p + 0.3 * generator.standard_normal(p.shape) for key, p in params.items()}
    m = {key: 0.1 * generator.standard_normal(p.shape) for key, p in params.items()}
    v = {key: generator.uniform(0.01, 0.1, p.shape) for key, p in params.items()}
    adam = Adam(0.01, weight_decay=0.1)
    return replace(Step(model, params, adam, AdamState(3, m, v), batch(4, 2), batch(3, 3)), **changes)


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


# --- batches ---------------------------------------------------------------------------------------------------------


def test_tokens_and_labels_stay_integers_and_quantities_do_not() -> None:
    step = step_of("tied transformer")
    narrow = replace(step, params={key: p.astype(np.float32) for key, p in step.params.items()}).as_float64()
    assert narrow.train.x.dtype == step.train.x.dtype
    assert narrow.train.y.dtype == step.train.y.dtype
    whole = Batch(np.arange(24).reshape(1, 2, 3, 4), np.ones((1, 6), int))
    model = Sequential((Flatten(), Linear(24, 6)), loss="mse")
    params = model.init(0)
    real = Step(model, params, Adam(), AdamState.zeros(params), whole, whole).as_float64()
    assert real.train.x.dtype == real.train.y.dtype == np.float64


def test_data_larger_than_memory(tmp_path: Path) -> None:
    images = pictures(4, 0)
    mapped = np.memmap(tmp_path / "x", np.float64, "w+", shape=images.x.shape)
    mapped[:] = images.x
    batch = Batch(mapped, images.y)
    assert np.shares_memory(batch.x, mapped)
    step = step_of("convnet", train=images)
    np.testing.assert_array_equal(scores(replace(step, train=batch)), scores(step))
    model = Sequential((Linear(40, 3), Activation("tanh"), Linear(3, 3)))
    params = model.init(0)
    lazy, flat = (Batch(x, images.y) for x in (LazyRows(mapped), images.x.reshape(4, 40)))
    one, other = (Step(model, params, Adam(), AdamState.zeros(params), b, flat) for b in (lazy, flat))
    np.testing.assert_array_equal(scores(one), scores(other))


GPT = transformer(**SIZES)
CONV = convnet(image=(2, 4, 5), channels=(2,), outputs=3)
X, Y = np.zeros((2, 4), int), np.ones((2, 4), int)
PICTURES = np.zeros((2, 2, 4, 5))


@pytest.mark.parametrize(
    ("model", "x", "y", "message"),
    [
        (GPT, X.astype(float), Y, "data.x: got dtype float64; needs tokens, of an integer dtype"),
        (GPT, X + 5, Y, "data.x: got tokens from 5 to 5; needs tokens from 0 to 4"),
        (GPT, X - 1, Y, "data.x: got tokens from -1 to -1; needs tokens from 0 to 4"),
        (GPT, np.zeros((2, 5), int), np.ones((2, 5), int), "data.x: got samples of shape (5,), of which layer"),
        (GPT, np.zeros((2, 4, 4), int), Y, "data.x: got samples of shape (4, 4), of which layer 'embedding' gets"),
        (GPT, X, Y[:, 0], "data.y: got shape (2,); needs labels of shape (2, 4)"),
        (GPT, X, Y[:, :3], "data.y: got shape (2, 3); needs labels of shape (2, 4)"),
        (GPT, X, Y.astype(float), "data.y: got dtype float64; needs labels of shape (2, 4)"),
        (GPT, X, Y + 4, "data.y: got labels from 5 to 5; needs labels from 0 to 4, or -100"),
        (GPT, X, Y - 2, "data.y: got labels from -1 to -1; needs labels from 0 to 4, or -100"),
        (GPT, X, Y * [[1], [-100]], "data.y: got no counted label in sample 1; needs one other than -100"),
        (CONV, PICTURES, np.array([0, 3]), "data.y: got labels from 0 to 3; needs labels from 0 to 2"),
        (CONV, PICTURES, np.array([0, -100]), "data.y: got labels from -100 to 0; needs labels from 0 to 2"),
        (CONV, PICTURES[:, 0], np.array([0, 1]), "data.x: got samples of shape (4, 5), of which layer '0' gets (4, 5)"),
        (CONV, PICTURES[:, :1], np.array([0, 1]), "data.x: got samples of shape (1, 4, 5), of which layer '0' gets"),
        (CONV, PICTURES[:, :, :3, :], np.array([0, 1]), "of which layer '4' gets (4,); needs there (…, 8)"),
        (Sequential((Conv2d(2, 3, (1, 1)),)), PICTURES, np.array([0, 1]), "data.x: got outputs of shape (3, 4, 5)"),
        (Sequential((Linear(4, 2),), loss="mse"), X, Y, "data.y: got shape (2, 4); needs targets of shape (2, 2)"),
        (NET, np.zeros((2, 3, 4)), Y[:, 0], "data.x: got shape (2, 3, 4); needs shape (2, 3) for a network"),
        (NET, np.zeros((2, 3)), Y, "data.y: got shape (2, 4); needs labels of shape (2,)"),
    ],
)
def test_a_batch_that_does_not_suit_is_refused(model: Model, x: Array, y: Array, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        model.check_batch("data", Batch(x, y))


# --- descriptions ----------------------------------------------------------------------------------------------------

LINEAR = Linear(3, 2)


@pytest.mark.parametrize(
    ("message", "build"),
    [
        ("Linear.d_in: got 0", lambda: Linear(0, 2)),
        ("Linear.d_out: got 2.0", lambda: Linear(3, 2.0)),  # type: ignore[arg-type]
        ("Linear.bias: got 1", lambda: Linear(3, 2, 1)),  # type: ignore[arg-type]
        ("TiedLinear.weight: got ''", lambda: TiedLinear(3, 2, "")),
        ("Embedding.vocab: got True", lambda: Embedding(True, 2)),
        ("Positions.context: got 0", lambda: Positions(0, 2)),
        ("LayerNorm.eps: got -1", lambda: LayerNorm(3, eps=-1)),
        ("RMSNorm.eps: got None", lambda: RMSNorm(3, None)),  # type: ignore[arg-type]
        ("Attention.heads: got 3; needs a divisor of the width, 4", lambda: Attention(4, 3)),
        ("Activation.function: got 'swish'", lambda: Activation("swish")),  # type: ignore[arg-type]
        ("Conv2d.kernel[1]: got 0", lambda: Conv2d(2, 2, (1, 0))),
        ("Conv2d.padding: got -1", lambda: Conv2d(2, 2, (1, 1), padding=-1)),  # type: ignore[arg-type]
        ("Conv2d.stride: got (1, 1, 1)", lambda: Conv2d(2, 2, (1, 1), (1, 1, 1))),  # type: ignore[arg-type]
        ("Conv2d.groups: got 2; needs a divisor of both channels, 2 and 3", lambda: Conv2d(2, 3, (1, 1), groups=2)),
        ("MaxPool2d.kernel: got 'a'", lambda: MaxPool2d("a")),  # type: ignore[arg-type]
        ("AvgPool2d.stride: got 0", lambda: AvgPool2d((2, 2), 0)),  # type: ignore[arg-type]
        ("Residual.layers: got 3", lambda: Residual(3)),  # type: ignore[arg-type]
        ("Sequential.layers: got ()", lambda: Sequential(())),
        ("Sequential.layers[1]: got 3", lambda: Sequential((LINEAR, 3))),  # type: ignore[arg-type]
        ("Sequential.layers[1]: got Embedding", lambda: Sequential((LINEAR, Embedding(2, 3)))),
        ("Sequential.names: got 1 names", lambda: Sequential((LINEAR, LINEAR), ("a",))),
        ("Sequential.names: got two parameters 'a.weight'", lambda: Sequential((LINEAR, LINEAR), ("a", "a"))),
        ("Sequential.names[0]: got 'a.'", lambda: Sequential((LINEAR,), ("a.",))),
        ("Sequential.loss: got 'l1'", lambda: Sequential((LINEAR,), loss="l1")),  # type: ignore[arg-type]
        ("1.weight: got 'x'", lambda: Sequential((LINEAR, TiedLinear(2, 3, "x")))),
        ("1.weight: got '0.weight' of shape (2, 3)", lambda: Sequential((LINEAR, TiedLinear(2, 3, "0.weight")))),
        ("heads: got 3", lambda: transformer(**(SIZES | {"heads": 3}))),
        ("norm: got 'batch'", lambda: transformer(**SIZES, norm="batch")),  # type: ignore[arg-type]
        ("positions: got 'rotary'", lambda: transformer(**SIZES, positions="rotary")),  # type: ignore[arg-type]
        ("kernel: got 2", lambda: convnet(image=(1, 2, 2), channels=(2,), outputs=2, kernel=2)),
        ("image: got (1, 2)", lambda: convnet(image=(1, 2), channels=(2,), outputs=2)),
        ("channels[0]: got 0", lambda: convnet(image=(1, 2, 2), channels=(0,), outputs=2)),
        ("Function.shapes: got {}", lambda: Function({}, len)),  # type: ignore[arg-type]
        ("Function.shapes['w'][0]: got 0", lambda: Function({"w": (0,)}, len)),  # type: ignore[arg-type]
        ("Function.losses: got 3", lambda: Function({"w": (1,)}, 3)),  # type: ignore[arg-type]
    ],
)
def test_a_bad_description_is_refused_by_field(message: str, build: Callable[[], object]) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(message)}"):
        build()


@every_model
def test_fresh_parameters_have_the_names_and_shapes_and_depend_on_the_seed(name: str) -> None:
    model = MODELS[name][0]
    params, same, other = model.init(1), model.init(1), model.init(2)
    assert {key: p.shape for key, p in params.items()} == model.shapes
    assert all((params[key] == same[key]).all() for key in params)
    assert any((params[key] != other[key]).any() for key in params)


def test_numbers_and_pairs_are_the_same_description() -> None:
    assert Conv2d(2, 3, 3, 2, 1) == Conv2d(2, 3, (3, 3), (2, 2), (1, 1))  # type: ignore[arg-type]
    assert MaxPool2d(2) == MaxPool2d((2, 2), (2, 2))  # type: ignore[arg-type]
    assert Sequential([LINEAR]) == Sequential((LINEAR,), ("0",))  # type: ignore[arg-type]
    assert hash(transformer(**SIZES)) == hash(GPT)


def test_the_oracle_has_a_forward_pass_for_every_layer() -> None:
    kinds = {kind().kind if kind in (Flatten, MeanOverPositions, Activation) else kind.kind for kind in EVERY_LAYER}
    assert kinds == set(layers.FORWARD)


EVERY_LAYER: tuple[Any, ...] = (
    *(Activation, Attention, AvgPool2d, Conv2d, Embedding, Flatten, LayerNorm, Linear, MaxPool2d),
    *(MeanOverPositions, Positions, RMSNorm, Residual, TiedLinear),
)


# --- those who have no such layers -----------------------------------------------------------------------------------


@every_model
def test_the_engine_and_the_kit_refuse_what_they_have_no_layers_for(name: str) -> None:
    step = step_of(name)
    kind = step.net.kind
    needs = f"model.kind: got '{kind}'; needs one of perceptron, which the engine has layers for"
    config = (step.net, step.adam, step.train, step.valid)
    calls: list[Callable[[], object]] = [
        lambda: gpu.update(step),
        lambda: gpu.scores(step),
        lambda: gpu.influence(step),
        lambda: gpu.marginals(step),
        lambda: gpu.utility(step, np.ones(4, bool)),
        lambda: gpu.attribute(*config, epochs=1),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(ValueError, match=re.escape(needs)):
            call()
    with pytest.raises(ValueError, match=f"kind: got '{kind}'; needs one of perceptron"):
        kind_of(step.net)
