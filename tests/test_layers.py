"""Models of layers: what their descriptions and their data may be, and who has no such layers."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layer_models import MODELS, NET, SIZES, every_model, pictures, sequences, step_of

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
    Positions,
    Residual,
    RMSNorm,
    Sequential,
    Step,
    TiedLinear,
    convnet,
    layers,
    scores,
    transformer,
)
from adamshap.reference.contract import Array, Model
from adamshap.verify.models import kind_of
from adamshap.verify.steps import perturbed

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


def test_the_kit_changes_quantities_only() -> None:
    step = step_of("tied transformer")
    changed = perturbed(step, 0.1, np.random.default_rng(0))
    assert all((p != step.params[key]).all() for key, p in changed.params.items())
    for one, other in ((changed.train, step.train), (changed.valid, step.valid)):
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.y, other.y)
    moved = perturbed(step_of("sequences to targets"), 0.1, np.random.default_rng(0))
    assert (moved.train.x != sequences(4, 2).x).all()
    assert (moved.train.y != sequences(4, 2).y).all()


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
        ("Function.gradients: got 3", lambda: Function({"w": (1,)}, len, None, 3)),  # type: ignore[arg-type]
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


def test_the_engine_refuses_what_it_has_no_layers_for() -> None:
    needs = "model.kind: got 'function'; needs one of perceptron, sequential, which the engine has layers for"
    step = step_of("function")
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


def test_the_kit_refuses_models_of_a_kind_that_it_does_not_draw() -> None:
    with pytest.raises(ValueError, match="kind: got 'function'; needs one of perceptron"):
        kind_of(step_of("function").net)
