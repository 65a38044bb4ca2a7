"""Each layer wrong once: the comparison with PyTorch sees it."""

from dataclasses import replace
from typing import Any

import autograd.numpy as anp
import numpy as np
import pytest
from torch_layers import PAIRS, language

from adamshap.reference import images, layers, losses
from adamshap.reference.contract import Array, Params

SEEN = 1e-7
"""A mistake makes a difference of more."""

RIGHT = dict(layers.FORWARD)
CONSTANT = losses.constant


def with_some(params: Any, changed: Params) -> Any:
    """The parameters, boxed or not, with some of them changed."""
    return {name: params[name] for name in params} | changed


def seen_once(layer: Any, params: Params, name: str, ids: Array) -> Any:
    """An embedding whose repeated tokens have a gradient once."""
    rows = RIGHT["embedding"](layer, params, name, ids)
    first = np.array([[token not in sequence[:t] for t, token in enumerate(sequence)] for sequence in ids])[..., None]
    return rows * first + CONSTANT(rows) * ~first


def unbiased(layer: Any, params: Params, name: str, x: Any) -> Any:
    ratio, gain = (x.shape[-1] - 1) / x.shape[-1], f"{name}.weight"
    scaled = with_some(params, {gain: params[gain] * ratio**0.5})
    return RIGHT["layer_norm"](replace(layer, eps=layer.eps * ratio), scaled, name, x)


def heads_first(layer: Any, params: Params, name: str, x: Any) -> Any:
    """Rows of the projection taken as (heads, 3, d)."""

    def moved(p: Any) -> Any:
        split = p.reshape(*p.shape[: axis(p)], layer.heads, 3, -1, *p.shape[axis(p) + 1 :])
        return anp.swapaxes(split, axis(p), axis(p) + 1).reshape(p.shape)

    def axis(p: Any) -> int:
        return p.ndim - len(layer.shapes["in_proj_weight"])

    weight = f"{name}.in_proj_weight"
    return RIGHT["attention"](layer, with_some(params, {weight: moved(params[weight])}), name, x)


def swapped(layer: Any, params: Params, name: str, x: Any) -> Any:
    """Queries for keys and keys for queries."""
    order = np.r_[layer.width : 2 * layer.width, : layer.width, 2 * layer.width : 3 * layer.width]
    weight, bias = f"{name}.in_proj_weight", f"{name}.in_proj_bias"
    changed = {weight: params[weight][..., order, :], bias: params[bias][..., order]}
    return RIGHT["attention"](layer, with_some(params, changed), name, x)


def flipped(layer: Any, params: Params, name: str, x: Any) -> Any:
    weight = f"{name}.weight"
    return RIGHT["conv2d"](layer, with_some(params, {weight: params[weight][..., ::-1, ::-1]}), name, x)


def other_groups(layer: Any, params: Params, name: str, x: Any) -> Any:
    return RIGHT["conv2d"](layer, params, name, x[:, ::-1])


def shared_ties(layer: Any, params: Params, name: str, x: Any) -> Any:
    each = images.windows(x, layer.kernel, layer.steps)
    return anp.max(each, axis=(4, 5))


def detached(which: str, kind: str) -> Any:
    """A layer one of whose parameters has no gradient."""

    def forward(layer: Any, params: Params, name: str, x: Any) -> Any:
        full = getattr(layer, "weight", f"{name}.{which}") if kind == "tied_linear" else f"{name}.{which}"
        return RIGHT[kind](layer, with_some(params, {full: CONSTANT(params[full])}), name, x)

    return forward


MISTAKES: dict[str, tuple[str, str, Any]] = {
    "linear: no bias": (
        "real sequences",
        "linear",
        lambda one, p, name, x: RIGHT["linear"](replace(one, bias=False), p, name, x),
    ),
    "tied: one use": ("transformer", "tied_linear", detached("weight", "tied_linear")),
    "embedding: repeats once": ("transformer", "embedding", seen_once),
    "embedding: detached": ("transformer", "embedding", detached("weight", "embedding")),
    "positions: shifted": (
        "transformer, short",
        "positions",
        lambda one, p, name, x: x + p[f"{name}.weight"][..., 1 : x.shape[1] + 1, :],
    ),
    "layer norm: unbiased variance": ("transformer", "layer_norm", unbiased),
    "layer norm: no ε": (
        "transformer",
        "layer_norm",
        lambda one, p, name, x: RIGHT["layer_norm"](replace(one, eps=0.0), p, name, x),
    ),
    "layer norm: constant statistics": (
        "transformer",
        "layer_norm",
        lambda one, p, name, x: RIGHT["layer_norm"](one, p, name, CONSTANT(x)) + x - CONSTANT(x),
    ),
    "rms norm: ε outside": (
        "a large ε",
        "rms_norm",
        lambda one, p, name, x: (
            layers.along_last(p[f"{name}.weight"], x) * x / (anp.sqrt(anp.mean(x**2, axis=-1, keepdims=True)) + one.eps)
        ),
    ),
    "rms norm: mean taken off": (
        "transformer, rms",
        "rms_norm",
        lambda one, p, name, x: RIGHT["rms_norm"](one, p, name, x - anp.mean(x, axis=-1, keepdims=True)),
    ),
    "attention: heads before parts": ("transformer", "attention", heads_first),
    "attention: queries and keys": ("transformer", "attention", swapped),
    "residual: input once": ("transformer", "residual", lambda one, p, name, x: RIGHT["residual"](one, p, name, x) - x),
    "activation: GELU by tanh": (
        "transformer",
        "activation",
        lambda one, p, name, x: 0.5 * x * (1 + anp.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    ),
    "convolution: flipped": ("convolution", "conv2d", flipped),
    "convolution: groups in another order": ("convolution, groups", "conv2d", other_groups),
    "convolution: no bias": ("convolution", "conv2d", detached("bias", "conv2d")),
    "average pool: sum": (
        "average pool",
        "avg_pool2d",
        lambda one, p, name, x: 4 * RIGHT["avg_pool2d"](one, p, name, x),
    ),
    "max pool: ties share": ("max pool with ties", "max_pool2d", shared_ties),
    "flatten: places first": (
        "convolution",
        "flatten",
        lambda one, p, name, x: anp.transpose(x, (0, 2, 3, 1)).reshape(len(x), -1),
    ),
    "positions' mean: sum": ("tokens to classes", "mean_over_positions", lambda one, p, name, x: anp.sum(x, axis=1)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_any_layer_is_seen(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, kind, wrong = MISTAKES[mistake]
    monkeypatch.setitem(layers.FORWARD, kind, wrong)
    assert PAIRS[pair]().gap() > SEEN


def test_every_layer_has_a_mistake() -> None:
    assert {kind for _, kind, _ in MISTAKES.values()} == set(layers.FORWARD)


def causal_but(k: int) -> Any:
    def softmax(scores: Any) -> Any:
        seen = np.tril(np.ones(scores.shape[-2:], bool), k)
        e = anp.exp(anp.where(seen, scores, -np.inf))
        return e / anp.sum(e, axis=-1, keepdims=True)

    return softmax


def all_counted(logits: Any, labels: Array) -> Any:
    return losses.mean_cross_entropy(logits, np.where(labels < 0, 0, labels))


def mean_of_the_batch(logits: Any, labels: Array) -> Any:
    counted = (labels >= 0).sum(axis=1)
    return losses.mean_cross_entropy(logits, labels) * counted / counted.mean()


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [
        (layers, "causal_softmax", causal_but(1)),
        (layers, "causal_softmax", lambda scores: RIGHT_SOFTMAX(scores * 0.5**0.5)),  # 1/√width for two heads
        (losses, "mean_cross_entropy", mean_of_the_batch),
        (losses, "mean_cross_entropy", all_counted),
    ],
)
def test_a_mistake_in_mask_scale_or_mean_is_seen(
    module: Any, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(module, name)

    def planted(*given: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, right)
            return wrong(*given)

    monkeypatch.setattr(module, name, planted)
    assert language().gap() > SEEN


RIGHT_SOFTMAX = layers.causal_softmax
