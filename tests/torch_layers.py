"""Models of layers beside the same modules of PyTorch in float64, and how far they are apart."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from adamshap.reference import (
    Activation,
    Attention,
    AvgPool2d,
    Batch,
    Conv2d,
    Embedding,
    Flatten,
    LayerNorm,
    Linear,
    MaxPool2d,
    MeanOverPositions,
    Positions,
    Residual,
    RMSNorm,
    Sequential,
    convnet,
    models,
    transformer,
)
from adamshap.reference.contract import ACTIVATIONS, Array, Params

torch = pytest.importorskip("torch", reason="extra `peers`: torch")
nn = torch.nn


class Learned(nn.Module):  # type: ignore[name-defined,misc]
    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(context, width))

    def forward(self, x: Any) -> Any:
        return x + self.weight[: x.shape[1]]


class SelfAttention(nn.MultiheadAttention):  # type: ignore[name-defined,misc]
    def forward(self, x: Any) -> Any:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return super().forward(x, x, x, attn_mask=mask, need_weights=False)[0]


class Added(nn.Sequential):  # type: ignore[name-defined,misc]
    def forward(self, x: Any) -> Any:
        return x + super().forward(x)


class MeanOfPositions(nn.Module):  # type: ignore[name-defined,misc]
    def forward(self, x: Any) -> Any:
        return x.mean(dim=1)


class LanguageModel(nn.Module):  # type: ignore[name-defined,misc]
    """PyTorch's own encoder, with a causal mask."""

    def __init__(
        self, vocab: int, context: int, width: int, depth: int, heads: int, norm: str, tied: bool, bias: bool
    ) -> None:
        super().__init__()
        normed: Callable[[], Any] = {
            "layer": lambda: nn.LayerNorm(width, bias=bias),
            "rms": lambda: nn.RMSNorm(width, eps=1e-5),
        }[norm]
        self.embedding, self.positions = nn.Embedding(vocab, width), nn.Embedding(context, width)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, nn.functional.gelu, batch_first=True, norm_first=True, bias=bias
        )
        block.norm1, block.norm2 = normed(), normed()
        self.encoder = nn.TransformerEncoder(block, depth, normed(), enable_nested_tensor=False)
        self.head = nn.Linear(width, vocab, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Any) -> Any:
        T = tokens.shape[1]
        x = self.embedding(tokens) + self.positions(torch.arange(T))
        mask = nn.Transformer.generate_square_subsequent_mask(T, dtype=x.dtype)
        return self.head(self.encoder(x, mask=mask, is_causal=True))


FUNCTIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}
MODULES: dict[str, Callable[[Any], Any]] = {
    "linear": lambda one: nn.Linear(one.d_in, one.d_out, one.bias),
    "embedding": lambda one: nn.Embedding(one.vocab, one.width),
    "positions": lambda one: Learned(one.context, one.width),
    "layer_norm": lambda one: nn.LayerNorm(one.width, one.eps, bias=one.bias),
    "rms_norm": lambda one: nn.RMSNorm(one.width, one.eps),
    "attention": lambda one: SelfAttention(one.width, one.heads, bias=one.bias, batch_first=True),
    "residual": lambda one: Added(*map(module_of, one.layers)),
    "activation": lambda one: FUNCTIONS[one.function](),
    "conv2d": lambda one: nn.Conv2d(
        one.c_in, one.c_out, one.kernel, one.stride, one.padding, groups=one.groups, bias=one.bias
    ),
    "avg_pool2d": lambda one: nn.AvgPool2d(one.kernel, one.stride),
    "max_pool2d": lambda one: nn.MaxPool2d(one.kernel, one.stride),
    "flatten": lambda one: nn.Flatten(),
    "mean_over_positions": lambda one: MeanOfPositions(),
}


def module_of(layer: Any) -> Any:
    return MODULES[layer.kind](layer)


@dataclass(frozen=True)
class Pair:
    """A model, the same in PyTorch, and samples."""

    model: Sequential
    module: Any
    batch: Batch
    rounded: bool = False

    def params(self) -> Params:
        """Random parameters, biases and gains too, put into the module."""
        generator, module = np.random.default_rng(0), self.module.double()
        with torch.no_grad():
            for p in module.parameters():
                value = 0.5 * generator.standard_normal(tuple(p.shape))
                p.copy_(torch.as_tensor(np.round(2 * value) / 2 if self.rounded else value))
        return self.model.from_state_dict(module.state_dict())

    def theirs(self) -> tuple[Array, Array, list[Params]]:
        x, y = (torch.as_tensor(np.array(array)) for array in (self.batch.x, self.batch.y))
        each, gradients = [], []
        for i in range(self.batch.n):
            self.module.zero_grad()
            out = self.module(x[i : i + 1])
            if self.model.loss == "mse":
                loss = nn.functional.mse_loss(out, y[i : i + 1])
            else:
                loss = nn.functional.cross_entropy(out.reshape(-1, out.shape[-1]), y[i : i + 1].reshape(-1))
            loss.backward()
            each.append(loss.item())
            gradients.append({name: p.grad.numpy().copy() for name, p in self.module.named_parameters()})
        with torch.no_grad():
            outputs = self.module(x).numpy()
        return outputs, np.array(each), gradients

    def gap(self) -> float:
        """The largest difference from PyTorch, relative to the largest number of its array."""
        params = self.params()
        outputs, each, gradients = self.theirs()
        pairs = [
            (models.outputs(self.model, params, self.batch.x), outputs),
            (models.sample_losses(self.model, params, self.batch), each),
        ]
        ours = models.each_gradient(self.model, params, self.batch)
        mean = models.loss_gradient(self.model, params, self.batch)
        assert ours.keys() == mean.keys() == gradients[0].keys()
        for name in ours:
            pairs.append((ours[name], np.stack([gradient[name] for gradient in gradients])))
            pairs.append((mean[name], pairs[-1][1].mean(axis=0)))
        assert all(one.shape == other.shape for one, other in pairs)
        return max(float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-3)) for one, other in pairs)


def tokens(n: int, T: int, vocab: int) -> Array:
    """Some of them twice in a sequence."""
    x = np.random.default_rng(1).integers(0, vocab, (n, T))
    x[0, -1] = x[0, 0]
    return x


def some_labels(n: int, T: int, classes: int) -> Array:
    """Labels by position, some of them not counted, of each sample another number."""
    generator = np.random.default_rng(2)
    y = generator.integers(0, classes, (n, T))
    for i in range(n):
        y[i, : min(i, T - 1)] = -100
    return y


def language(
    T: int = 5, depth: int = 2, heads: int = 2, norm: Any = "layer", tied: bool = True, bias: bool = True
) -> Pair:
    settings = {"vocab": 7, "context": 5, "width": 8, "depth": depth, "heads": heads}
    model = transformer(**settings, norm=norm, tied=tied, bias=bias)  # type: ignore[arg-type]
    module = LanguageModel(**settings, norm=norm, tied=tied, bias=bias)
    return Pair(model, module, Batch(tokens(3, T, 7), some_labels(3, T, 7)))


def stacked(*chosen: Any, x: Array, y: Array, loss: Any = "cross_entropy") -> Pair:
    return Pair(Sequential(chosen, loss=loss), nn.Sequential(*map(module_of, chosen)), Batch(x, y))


def pictures(n: int, *shape: int) -> Array:
    """With equal numbers in every window, for the pools."""
    return np.random.default_rng(3).integers(-2, 3, (n, *shape)).astype(float)


CLASSES = np.array([2, 0, 1])
REAL = np.random.default_rng(4).standard_normal((3, 4, 6))


def image_stack(conv: Conv2d, *pool: Any, size: tuple[int, int] = (7, 6)) -> Pair:
    before = (conv, Activation("relu"), *pool, Flatten())
    shape = Sequential(before).out_shape("x", (conv.c_in, *size))
    return stacked(*before, Linear(shape[0], 3), x=pictures(3, conv.c_in, *size), y=CLASSES)


PAIRS: dict[str, Callable[[], Pair]] = {
    "transformer": language,
    "transformer, rms": lambda: language(norm="rms"),
    "transformer, rms, untied, no bias": lambda: language(norm="rms", tied=False, bias=False),
    "transformer, untied": lambda: language(tied=False),
    "transformer, no bias": lambda: language(bias=False),
    "transformer, one head": lambda: language(heads=1),
    "transformer, eight heads": lambda: language(heads=8, depth=1),
    "transformer, one position": lambda: language(T=1),
    "transformer, short": lambda: language(T=3, depth=1),
    "tokens to classes": lambda: stacked(
        Embedding(7, 6),
        Positions(5, 6),
        Residual((RMSNorm(6), Attention(6, 3))),
        MeanOverPositions(),
        Linear(6, 3),
        x=tokens(3, 4, 7),
        y=CLASSES,
    ),
    "a large ε": lambda: stacked(
        LayerNorm(6, eps=0.3), Attention(6, 2), RMSNorm(6, eps=0.2), Linear(6, 3), x=REAL, y=some_labels(3, 4, 3)
    ),
    "real sequences": lambda: stacked(
        Linear(6, 4),
        Residual((LayerNorm(4, bias=False), Attention(4, 2, bias=False))),
        Linear(4, 2, bias=False),
        x=REAL,
        y=np.random.default_rng(5).standard_normal((3, 4, 2)),
        loss="mse",
    ),
    "residuals in residuals": lambda: stacked(
        Residual((Linear(6, 6), Residual((RMSNorm(6), Residual((Attention(6, 2),)), Linear(6, 6, bias=False))))),
        Linear(6, 3),
        x=REAL,
        y=some_labels(3, 4, 3),
    ),
    "flattened sequences": lambda: stacked(Linear(6, 2), Flatten(), Linear(8, 3), x=REAL, y=CLASSES),
    "convolution": lambda: image_stack(Conv2d(2, 4, (3, 3))),
    "convolution, stride and padding": lambda: image_stack(Conv2d(2, 4, (3, 2), (2, 1), (1, 2))),
    "convolution, groups": lambda: image_stack(Conv2d(4, 6, (3, 3), padding=(1, 1), groups=2)),
    "convolution by channel": lambda: image_stack(Conv2d(4, 4, (2, 3), groups=4, bias=False)),
    "max pool": lambda: image_stack(Conv2d(2, 3, (1, 1)), MaxPool2d((2, 2))),
    "max pool with ties": lambda: replace(  # of units of equal weights, so that it matters which has the gradient
        stacked(
            Linear(2, 6, bias=False), MaxPool2d((2, 3)), Flatten(), Linear(12, 3), x=pictures(3, 2, 7, 2), y=CLASSES
        ),
        rounded=True,
    ),
    "overlapping pools": lambda: image_stack(
        Conv2d(2, 3, (1, 1)), MaxPool2d((3, 2), (1, 2)), AvgPool2d((2, 2), (1, 1))
    ),
    "average pool": lambda: image_stack(Conv2d(2, 3, (3, 3)), AvgPool2d((2, 2))),
    "convnet": lambda: constructed(convnet(image=(3, 5, 6), channels=(4, 6), outputs=3)),
    "convnet, averages": lambda: constructed(
        convnet(image=(1, 4, 2), channels=(2, 2, 2), outputs=3, kernel=1, pool="avg", activation="silu", bias=False)
    ),
    "images to targets": lambda: stacked(
        Conv2d(2, 3, (3, 3)), x=pictures(3, 2, 5, 4), y=pictures(3, 3, 3, 2), loss="mse"
    ),
} | {
    f"activation {name}": lambda name=name: stacked(  # type: ignore[misc]
        Linear(6, 5), Activation(name), Linear(5, 3), x=REAL, y=some_labels(3, 4, 3)
    )
    for name in ACTIVATIONS
}


def constructed(model: Sequential) -> Pair:
    channels, side = model.layers[0].c_in, (5, 6) if model.layers[0].c_in == 3 else (4, 2)  # type: ignore[attr-defined]
    return Pair(model, nn.Sequential(*map(module_of, model.layers)), Batch(pictures(3, channels, *side), CLASSES))
