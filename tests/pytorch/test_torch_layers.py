"""Convolutions, norms, bags and others: the scores of a step are the oracle's, by each sample's own backward pass."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch_loops import MODELS, VOCAB, Loop, assert_oracle_agrees, labels, tokens
from torch_one_layer import POSITIONS, WIDTH, Call, check, freeze

torch = pytest.importorskip("torch", reason="extra `torch`")
nn, F = torch.nn, torch.nn.functional
from adamshap.torch import Attribution  # noqa: E402
from adamshap.torch.layers import Recorder, rewrite  # noqa: E402
from adamshap.torch.layers.rewrites import REWRITES  # noqa: E402

# --- convolutions and norms ------------------------------------------------------------------------------------------


def pixels(layer: Any, x: Any) -> Any:
    return layer(x).tanh().flatten(2).mean(2)


def evaluated(layer: Any) -> Any:
    """Return a norm in eval mode, with random statistics."""
    with torch.no_grad():
        layer.running_mean.uniform_(-0.3, 0.3)
        layer.running_var.uniform_(0.5, 2)
    return layer.eval()


def enlarged(layer: Any, x: Any) -> Any:
    """Return the output of a transposed convolution of a size that the call says."""
    return pixels(lambda x: layer(x, output_size=[8, 8]), x)


IMAGES: dict[str, tuple[Callable[[], Any], tuple[int, ...], Call]] = {
    "dilation": (lambda: nn.Conv2d(2, 4, (3, 2), (2, 1), (2, 1), (2, 3), groups=2), (2, 5, WIDTH), pixels),
    "same, even kernel": (lambda: nn.Conv2d(2, 3, (2, 4), padding="same"), (2, 3, WIDTH), pixels),
    "same, dilation": (lambda: nn.Conv1d(2, 3, 2, padding="same", dilation=3, bias=False), (2, WIDTH), pixels),
    "valid": (lambda: nn.Conv1d(2, 3, 2, padding="valid"), (2, WIDTH), pixels),
    "circular": (lambda: nn.Conv2d(2, 3, 3, 2, (1, 2), padding_mode="circular"), (2, 3, WIDTH), pixels),
    "reflect, same": (lambda: nn.Conv1d(2, 3, 4, padding="same", padding_mode="reflect"), (2, WIDTH), pixels),
    "replicate": (lambda: nn.Conv3d(2, 3, 2, 1, 1, padding_mode="replicate"), (2, 2, 2, WIDTH), pixels),
    "three axes": (
        lambda: nn.Conv3d(2, 4, (2, 3, 1), (1, 2, 1), (0, 1, 1), (1, 2, 1), groups=2),
        (2, 3, 4, WIDTH),
        pixels,
    ),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, (3, 2), (2, 1), (1, 0)), (2, 3, WIDTH), pixels),
    "transposed, groups": (
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2, False, (2, 1)),
        (4, 3, WIDTH),
        pixels,
    ),
    "transposed, of a size": (lambda: nn.ConvTranspose2d(2, 3, 3, 2, 1), (2, 4, WIDTH), enlarged),
    "transposed, wide": (lambda: nn.ConvTranspose1d(2, 3, 2, 2, 0, 2, dilation=3), (2, WIDTH), pixels),
    "transposed, three axes": (lambda: nn.ConvTranspose3d(2, 3, 2, 2, 1, 1), (2, 2, 2, WIDTH), pixels),
    "instance norm": (lambda: nn.InstanceNorm1d(2, affine=True), (2, WIDTH), pixels),
    "instance norm in evaluation": (
        lambda: evaluated(nn.InstanceNorm3d(2, affine=True, track_running_stats=True)),
        (2, 2, 3, WIDTH),
        pixels,
    ),
    "prelu": (lambda: nn.PReLU(), (2, 3, WIDTH), pixels),
    "prelu of channels": (lambda: nn.PReLU(2), (2, 3, WIDTH), pixels),
    "bilinear": (lambda: nn.Bilinear(WIDTH, 2, 3), (2, WIDTH), lambda layer, x: layer(x, x.sin()[..., 1:3]).mean(1)),
    "bilinear, one position": (
        lambda: nn.Bilinear(WIDTH, WIDTH, 3, bias=False),
        (WIDTH,),
        lambda layer, x: layer(x, x.sin()),
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", IMAGES)
def test_images_and_other_layers(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, shape, call = IMAGES[case]
    check(layer, call, shape, monkeypatch)


# --- bags of embeddings ----------------------------------------------------------------------------------------------


def rows_of(layer: Any, x: Any) -> Any:
    return layer(x)


def with_offsets(layer: Any, x: Any) -> Any:
    """Return the bags of sequences of several lengths, some of them empty."""
    lengths = x[:, 0] % 3
    kept = torch.arange(x.shape[1]) < lengths[:, None]
    ends = lengths.cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends])
    weights = x[kept].double().cos() if layer.mode == "sum" else None
    return layer(x[kept], starts if layer.include_last_offset else starts[:-1], per_sample_weights=weights)


class Bags(nn.Module):  # type: ignore[name-defined,misc]
    """A bag of embeddings, and an output layer."""

    def __init__(self, call: Call, **options: Any) -> None:
        super().__init__()
        self.call, self.layer, self.head = call, nn.EmbeddingBag(VOCAB, WIDTH, **options), nn.Linear(WIDTH, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.call(self.layer, x).tanh())


BAGS: dict[str, tuple[Call, dict[str, Any]]] = {
    "sums": (rows_of, {"mode": "sum"}),
    "means with padding": (rows_of, {"mode": "mean", "padding_idx": -3}),
    "largest": (rows_of, {"mode": "max"}),
    "weighted, with offsets": (with_offsets, {"mode": "sum"}),
    "means, with offsets": (with_offsets, {"mode": "mean", "include_last_offset": True}),
    "largest, with offsets": (with_offsets, {"mode": "max", "padding_idx": 2}),
}


@pytest.mark.parametrize("case", BAGS)
def test_bags_of_embeddings(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, options = BAGS[case]
    monkeypatch.setitem(MODELS, "bags", (lambda: Bags(call, **options), tokens, labels))
    assert_oracle_agrees(Loop("bags", one_by_one=True), steps=1)


def test_an_instance_norm_in_training_mode_moves_its_statistics_and_does_not_use_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.InstanceNorm2d(2, affine=True, track_running_stats=True), nn.Flatten(), nn.Linear(12, 3))
    model.double()
    x, y = torch.randn(5, 2, 3, 2).double(), labels(5)
    adam = torch.optim.AdamW(model.parameters())
    attribution = Attribution(model, adam, validation=lambda: None, n_samples=5)
    with attribution.samples(range(5)):
        F.cross_entropy(model(x), y, reduction="sum").backward()
    captures = attribution._pending.blocks[0].captures
    for i in range(5):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        for (name, p), expected in zip(
            model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            (use,) = captures.rows(slice(i, i + 1)).by_name[name]
            np.testing.assert_allclose(use.sum_of(np, name, slice(0, len(p))), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_frozen_parts_of_a_transposed_convolution(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(lambda: nn.ConvTranspose1d(POSITIONS, 2, 2), pixels, (POSITIONS, WIDTH), monkeypatch, change=freeze((name,)))


# --- what is refused in the pass -------------------------------------------------------------------------------------


def refused(layer: Any, *inputs: Any, **options: Any) -> None:
    """Call a layer with three samples."""
    adam = torch.optim.AdamW(layer.parameters())
    attribution = Attribution(layer, adam, validation=lambda: None, n_samples=3)
    with attribution.samples(range(3)):
        out = layer(*inputs, **options)
        (out[0] if isinstance(out, tuple) else out).sum().backward()


REFUSED: dict[str, tuple[Callable[[], None], str]] = {
    "attention without samples": (
        lambda: refused(nn.MultiheadAttention(4, 2), *[torch.ones(5, 4)] * 3),
        "model module '': got MultiheadAttention with an input of shape (5, 4) for 3 samples; needs the samples of"
        " `index` along axis 1 of an input with 3 axes",
    ),
    "attention with samples elsewhere": (
        lambda: refused(nn.MultiheadAttention(4, 2), *[torch.ones(3, 5, 4)] * 3),
        "with an input of shape (3, 5, 4) for 3 samples; needs the samples of `index` along axis 1",
    ),
    "causal without a mask": (
        lambda: refused(nn.MultiheadAttention(4, 2), *[torch.ones(5, 3, 4)] * 3, is_causal=True),
        "got MultiheadAttention with is_causal=True without attn_mask; needs attn_mask, of which is_causal is a hint",
    ),
    "one sequence": (lambda: refused(nn.LSTM(4, 2), torch.ones(5, 4)), "got LSTM with an input of shape (5, 4) for 3"),
    "one row": (lambda: refused(nn.GRUCell(4, 2), torch.ones(4)), "got GRUCell with an input of shape (4,) for 3"),
    "one image": (
        lambda: refused(nn.Conv2d(3, 3, 1), torch.ones(3, 4, 4)),
        "an input of shape (3, 4, 4); needs an axis",
    ),
    "one transposed": (
        lambda: refused(nn.ConvTranspose1d(3, 3, 1), torch.ones(3, 4)),
        "got ConvTranspose1d with an input of shape (3, 4); needs an axis of samples before that of channels",
    ),
    "one instance": (
        lambda: refused(nn.InstanceNorm1d(3, affine=True), torch.rand(3, 4)),
        "got InstanceNorm1d with an input of shape (3, 4); needs an axis of samples before that of channels",
    ),
    "other bags": (
        lambda: refused(nn.EmbeddingBag(4, 2), torch.zeros(4, 2).long()),
        "got EmbeddingBag with an input of shape (4, 2) for 3 samples",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_input_without_an_axis_of_samples_is_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_a_forward_pass_of_an_instance_is_refused() -> None:
    layer = nn.GRU(4, 2)
    layer.forward = lambda x: nn.GRU.forward(layer, 2 * x)
    with pytest.raises(
        ValueError, match="model module '': got GRU with a forward of its own instance; needs the forwa"
    ):
        refused(layer, torch.ones(5, 3, 4))


# --- a layer of one's own --------------------------------------------------------------------------------------------


class Gated(nn.Module):  # type: ignore[name-defined,misc]
    """A layer that uses a weight of its own twice, by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Parameter(torch.randn(WIDTH))
        self.start = nn.Parameter(torch.randn(1, 1, WIDTH))

    def forward(self, x: Any) -> Any:
        x = torch.cat([self.start.expand(len(x), 1, -1), x], 1)
        return F.linear(F.linear(x, self.weight).sigmoid(), self.weight, self.bias).sum(1)


@pytest.mark.parametrize("right", [True, False])
def test_a_forward_pass_of_one_s_own_is_recorded(right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REWRITES, Gated, None)

    @rewrite(Gated)
    def forward(recorder: Recorder, x: Any) -> Any:
        x = torch.cat([recorder.rows("start"), x], 1)
        gate = recorder.linear(x, "weight", None) if right else F.linear(x, recorder.module.weight)
        return recorder.linear(gate.sigmoid(), "weight", "bias").sum(1)

    if right:
        check(Gated, lambda layer, x: layer(x), (POSITIONS, WIDTH), monkeypatch)
    else:
        with pytest.raises(ValueError, match=r"gradient of 'layer\.weight': got a gradient of norm"):
            check(Gated, lambda layer, x: layer(x), (POSITIONS, WIDTH), monkeypatch)
