"""Attention and recurrent layers: the scores of a step are those of the oracle, by each sample's own backward pass."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from torch_loops import MODELS, VOCAB, Loop, T, assert_oracle_agrees, labels, tokens
from torch_one_layer import HEADS, POSITIONS, WIDTH, Call, check, freeze

torch = pytest.importorskip("torch", reason="extra `torch`")
nn, F = torch.nn, torch.nn.functional
from adamshap.torch import Attribution  # noqa: E402

# --- attention -------------------------------------------------------------------------------------------------------

HIDDEN = torch.ones(POSITIONS, POSITIONS, dtype=torch.bool).triu(1)


def itself(layer: Any, x: Any, **options: Any) -> Any:
    """Return what a sequence attends to in itself, with the weights where there are any."""
    across = not layer.batch_first
    x = x.transpose(0, 1) if across else x
    out, weights = layer(x, x, x, **options)
    out = (out.transpose(0, 1) if across else out).sum(1)
    return out if weights is None else torch.cat([out, weights.flatten(1)], 1)


def padded(layer: Any, x: Any) -> Any:
    return itself(layer, x, key_padding_mask=x[:, :, 0] > x[:, :1, 0], need_weights=False)


def own_masks(layer: Any, x: Any) -> Any:
    """Return what each head attends to by a mask of its own sample."""
    mask = x[:, None, :, :1].expand(-1, HEADS, -1, POSITIONS).flatten(0, 1)
    return itself(layer, x, attn_mask=mask, average_attn_weights=False)


def one_other(layer: Any, x: Any) -> Any:
    return two_others(layer, x, None)


def two_others(layer: Any, x: Any, value: Callable[[Any], Any] | None = torch.sin) -> Any:
    """Return what a sequence attends to in another one, whose values are another one again, or its own."""
    x = x if layer.batch_first else x.transpose(0, 1)
    positions = 1 if layer.batch_first else 0
    queries, keys = x.narrow(positions, 0, 2), x.narrow(positions, 1, 2)[..., : layer.kdim]
    out = layer(queries, keys, keys if value is None else value(keys)[..., : layer.vdim])[0]
    return out.sum(positions)


ATTENTION: dict[str, tuple[dict[str, Any], Call]] = {
    "of itself": ({}, itself),
    "without weights": ({}, lambda layer, x: itself(layer, x, need_weights=False)),
    "without biases": ({"bias": False}, itself),
    "causal": (
        {},
        lambda layer, x: itself(layer, x, attn_mask=HIDDEN, is_causal=True, need_weights=False),
    ),
    "causal, with weights": ({}, lambda layer, x: itself(layer, x, attn_mask=HIDDEN, is_causal=True)),
    "padded": ({}, padded),
    "own masks": ({}, own_masks),
    "masked and padded": (
        {},
        lambda layer, x: itself(layer, x, attn_mask=HIDDEN, key_padding_mask=x[:, :, 0] > x[:, :1, 0]),
    ),
    "of one other": ({}, one_other),
    "of two others": ({}, two_others),
    "of other widths": ({"kdim": 3, "vdim": 2}, two_others),
    "of other widths, without biases": ({"kdim": 3, "vdim": 3, "bias": False}, one_other),
    "more keys": ({"add_bias_kv": True, "add_zero_attn": True}, padded),
    "more keys, with weights": ({"add_bias_kv": True, "add_zero_attn": True}, own_masks),
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention(case: str, batch_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    options, call = ATTENTION[case]
    check(
        lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **options),
        call,
        (POSITIONS, WIDTH),
        monkeypatch,
    )


def pair(layer: Any, x: Any) -> Any:
    """Return the output of an encoder and decoder with a source and a target."""
    if layer.batch_first:
        return layer(x[:, :2], x[:, 1:], tgt_is_causal=False).sum(1)
    return layer(x[:, :2].transpose(0, 1), x[:, 1:].transpose(0, 1)).sum(0)


def sequence(layer: Any, x: Any) -> Any:
    """Return the output of a layer, along the axis that its attention has."""
    attention = next(module for module in layer.modules() if isinstance(module, nn.MultiheadAttention))
    return layer(x).sum(1) if attention.batch_first else layer(x.transpose(0, 1)).sum(0)


def transformer_layer(kind: Any, **options: Any) -> Any:
    return kind(WIDTH, HEADS, 5, 0.0, **options)


TRANSFORMERS: dict[str, tuple[Callable[[bool], Any], Call]] = {
    "encoder layer": (lambda first: transformer_layer(nn.TransformerEncoderLayer, batch_first=first), sequence),
    "encoder, norm first": (
        lambda first: nn.TransformerEncoder(
            transformer_layer(nn.TransformerEncoderLayer, batch_first=first, norm_first=True, activation="gelu"),
            2,
            nn.LayerNorm(WIDTH),
            enable_nested_tensor=False,
        ),
        sequence,
    ),
    "transformer": (lambda first: nn.Transformer(WIDTH, HEADS, 1, 1, 5, 0.0, batch_first=first), pair),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("case", TRANSFORMERS)
def test_transformers(case: str, batch_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, call = TRANSFORMERS[case]
    check(lambda: layer(batch_first), call, (POSITIONS, WIDTH), monkeypatch)


# --- recurrent layers ------------------------------------------------------------------------------------------------


def all_steps(layer: Any, x: Any) -> Any:
    """Return a sum over the outputs, beside the last states."""
    out, hidden = layer(x) if layer.batch_first else layer(x.transpose(0, 1))
    states = hidden if isinstance(hidden, tuple) else (hidden,)
    return torch.cat([out.sum(1 if layer.batch_first else 0), *(one for state in states for one in state)], 1)


def lengths_of(x: Any) -> Any:
    return 1 + (x[:, 0, 0] > 0).long() + (x[:, 0, 1] > 0).long()


def packed(layer: Any, x: Any) -> Any:
    """Return the outputs of sequences of several lengths, from a first state."""
    given = x if layer.batch_first else x.transpose(0, 1)
    pack = nn.utils.rnn.pack_padded_sequence(given, lengths_of(x), layer.batch_first, enforce_sorted=False)
    first = x.mean(1)[None, :, : layer.hidden_size].expand(layer.num_layers * (1 + layer.bidirectional), -1, -1)
    out, hidden = layer(pack, (first, first.sin()) if isinstance(layer, nn.LSTM) else first)
    steps = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0].sum(1)
    return torch.cat([steps, *(hidden[0] if isinstance(hidden, tuple) else hidden)], 1)


RECURRENT: dict[str, tuple[Callable[[bool], Any], Call]] = {
    "lstm": (lambda first: nn.LSTM(WIDTH, 3, batch_first=first), all_steps),
    "lstm in both directions": (
        lambda first: nn.LSTM(WIDTH, 3, 2, batch_first=first, bidirectional=True, bias=first),
        all_steps,
    ),
    "lstm with projections": (lambda first: nn.LSTM(WIDTH, 3, 2, proj_size=2, batch_first=first), all_steps),
    "lstm, packed": (lambda first: nn.LSTM(WIDTH, 3, 2, batch_first=first, bidirectional=True), packed),
    "gru": (lambda first: nn.GRU(WIDTH, 3, 2, batch_first=first), all_steps),
    "gru, packed": (lambda first: nn.GRU(WIDTH, 3, batch_first=first, bidirectional=True), packed),
    "rnn": (lambda first: nn.RNN(WIDTH, 3, batch_first=first), all_steps),
    "rnn with relu": (
        lambda first: nn.RNN(WIDTH, 3, nonlinearity="relu", bidirectional=True, batch_first=first),
        all_steps,
    ),
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("case", RECURRENT)
def test_recurrent_layers(case: str, batch_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, call = RECURRENT[case]
    check(lambda: layer(batch_first), call, (POSITIONS, WIDTH), monkeypatch)


def step_by_step(cell: Any, x: Any) -> Any:
    state = None
    for t in range(x.shape[1]):
        state = cell(x[:, t], state)
    return torch.cat(state, 1) if isinstance(state, tuple) else state


@pytest.mark.parametrize(
    "cell",
    [nn.LSTMCell, nn.GRUCell, nn.RNNCell, lambda *sizes: nn.RNNCell(*sizes, bias=False, nonlinearity="relu")],
)
def test_recurrent_cells(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check(lambda: cell(WIDTH, 3), step_by_step, (POSITIONS, WIDTH), monkeypatch)


# --- samples along the second axis -----------------------------------------------------------------------------------


class Words(nn.Module):  # type: ignore[name-defined,misc]
    """A language model with steps along the first axis throughout, as in PyTorch's own example, with positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Embedding(T, WIDTH)
        self.lstm, self.norm = nn.LSTM(WIDTH, 3), nn.LayerNorm(3)
        self.decoder, self.last = nn.Linear(3, VOCAB), nn.Linear(3, VOCAB)

    def forward(self, x: Any) -> Any:
        x = x.T
        x = self.embedding(x) + self.positions(torch.arange(len(x))[:, None])
        out, (h, _) = self.lstm(x)
        return self.decoder(self.norm(out)) + self.last(h[-1])


def of_steps(outputs: Any, y: Any) -> Any:
    """Return each sample's mean loss of outputs (T, n, …) and labels (n, T)."""
    return F.cross_entropy(outputs.permute(1, 2, 0), y, reduction="none").mean(1)


AXES = {"": 1, "last": 0}


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "words", (Words, tokens, lambda count: torch.randint(0, VOCAB, (count, T))))


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("n", [3, T])
def test_samples_along_the_second_axis(n: int) -> None:
    """With as many steps as samples, too."""
    loop = Loop("words", each=of_steps, options={"samples_axis": AXES}, one_by_one=True)
    assert_oracle_agrees(loop, steps=1, n=n)


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize(
    ("n", "axes", "message"),
    [
        (
            5,
            {},
            "model module 'embedding': got Embedding with an input of shape (4, 5) for 5 samples; needs the samples",
        ),
        (5, {"": 1}, "model module 'last': got Linear with an input of shape (5, 3) for 5 samples"),
        (T, {}, "with rows of which other samples' outputs depend; needs samples along the first axis of its input,"),
        (T, AXES | {"norm": 0}, "model module 'norm': got LayerNorm with rows of which other samples' outputs depend"),
    ],
)
def test_steps_are_not_taken_for_samples(n: int, axes: dict[str, int], message: str) -> None:
    loop = Loop("words", each=of_steps, options={"samples_axis": axes})
    with pytest.raises(ValueError, match=re.escape(message)):
        loop.step(torch.arange(n))


class Swapped(nn.Module):  # type: ignore[name-defined,misc]
    """Sequences (n, T, d) in a layer that takes (T, n, d), the default: samples see each other."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.LazyLinear(3)

    def forward(self, x: Any) -> Any:
        out = self.layer(x)
        return self.head((out[0] if isinstance(out, tuple) else out).mean(1))


@pytest.mark.parametrize(
    "layer", [nn.LSTM(WIDTH, 3), nn.GRU(WIDTH, 3), nn.TransformerEncoderLayer(WIDTH, HEADS, 5, 0.0)]
)
def test_a_forgotten_batch_first_is_refused(layer: Any) -> None:
    """With as many steps as samples the shapes fit."""
    model = Swapped(layer)
    x, y = torch.randn(5, 5, WIDTH), labels(5)
    model(x)
    adam = torch.optim.AdamW(model.parameters())
    attribution = Attribution(model, adam, validation=lambda: None, n_samples=5)
    message = r"model module '\S+': got \w+ with rows of which other samples' outputs depend"
    with pytest.raises(ValueError, match=message), attribution.samples(range(5)):
        F.cross_entropy(model(x), y).backward()


@pytest.mark.parametrize(
    ("layer", "frozen", "call"),
    [
        (lambda: nn.MultiheadAttention(WIDTH, HEADS), ("in_proj_weight", "out_proj.bias"), one_other),
        (lambda: nn.MultiheadAttention(WIDTH, HEADS, kdim=3, vdim=2), ("in_proj_bias", "k_proj"), two_others),
        (lambda: nn.GRU(WIDTH, 3), ("weight_hh", "bias_ih"), all_steps),
    ],
)
def test_frozen_parts(layer: Any, frozen: tuple[str, ...], call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    check(layer, call, (POSITIONS, WIDTH), monkeypatch, change=freeze(frozen))


# --- loops -----------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):  # type: ignore[name-defined,misc]
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.lstm = nn.LSTM(WIDTH, 3, 2, batch_first=batch_first, dropout=0.4, bidirectional=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        x = self.embedding(x)
        _, (h, _) = self.lstm(x if self.lstm.batch_first else x.transpose(0, 1))
        return self.head(torch.cat([h[-1], h[-2]], 1))


class Encoded(nn.Module):  # type: ignore[name-defined,misc]
    """An encoder, or an encoder and decoder, with dropout and padding."""

    def __init__(self, batch_first: bool, both: bool) -> None:
        super().__init__()
        self.embedding, self.both, self.batch_first = nn.Embedding(VOCAB, WIDTH), both, batch_first
        self.head = nn.Linear(WIDTH, 3)
        if both:
            self.body = nn.Transformer(WIDTH, HEADS, 1, 1, 5, 0.2, batch_first=batch_first)
        else:
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 5, 0.2, batch_first=batch_first)
            self.body = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Any) -> Any:
        hidden = x == 1
        hidden[:, 0] = False
        x = self.embedding(x)
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.body(*(x, x)[: 1 + self.both], src_key_padding_mask=hidden)
        return self.head(x.mean(1 if self.batch_first else 0))


DROPPING: dict[str, Callable[[bool], Any]] = {
    "lstm": Classifier,
    "encoder": lambda first: Encoded(first, False),
    "transformer": lambda first: Encoded(first, True),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("case", DROPPING)
def test_a_loop_with_dropout_is_the_one_without_attribution(case: str, batch_first: bool) -> None:
    """In float32, with every step checked: the rewritten forward pass draws the same random numbers."""
    params = []
    for attributed in (False, True):
        torch.manual_seed(0)
        model = DROPPING[case](batch_first)
        adam = torch.optim.AdamW(model.parameters(), lr=0.01)
        x, y = tokens(12), labels(12)

        def validation(model: Any = model, x: Any = x, y: Any = y) -> Any:
            model.eval()
            return F.cross_entropy(model(x[8:]), y[8:])

        attribution = Attribution(model, adam, validation=validation, n_samples=8, check_every=1)
        for _ in range(3):
            if attributed:
                with attribution.samples(range(8)):
                    F.cross_entropy(model(x[:8]), y[:8]).backward()
            else:
                attribution.detach()
                F.cross_entropy(model(x[:8]), y[:8]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            adam.step()
            adam.zero_grad()
        params.append([*(p.detach() for p in model.parameters()), torch.get_rng_state()])
        assert not any("forward" in vars(module) for module in model.modules())
    scores = attribution.result().scores
    assert torch.equal(params[0].pop(), params[1].pop())
    for one, other in zip(*params, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3 * 0.01)
    assert np.isfinite(scores).all()
    assert np.abs(scores).min() > 0


class Both(nn.Module):  # type: ignore[name-defined,misc]
    """Attention and a recurrent layer, which may be in a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(3, 3)
        self.encoder = nn.TransformerEncoderLayer(WIDTH, HEADS, 5, 0.2, batch_first=True)
        self.gru, self.kept = nn.GRU(WIDTH, 3, 2, dropout=0.3), "all"

    def inside(self, x: Any) -> Any:
        return self.gru(self.encoder(x).transpose(0, 1))[0].mean(0)

    def forward(self, x: Any) -> Any:
        x = self.before(x)
        if self.kept == "all" or not self.training:
            return self.head(self.inside(x))
        reentrant = self.kept == "none, reentrant"
        return self.head(torch.utils.checkpoint.checkpoint(self.inside, x, use_reentrant=reentrant))


def scores_of(model: Any, called: Any, twice: bool = False) -> Any:
    """Return the scores of two steps, of one or the second of two attributions."""
    torch.manual_seed(1)
    adam = torch.optim.AdamW(model.parameters(), lr=0.01)
    x, y = torch.randn(8, POSITIONS, WIDTH).double(), labels(8)

    def validation() -> Any:
        model.eval()
        return F.cross_entropy(called(x[5:]), y[5:])

    made = [Attribution(model, adam, validation=validation, n_samples=5) for _ in range(1 + twice)]
    for _ in range(2):
        with made[0].samples(range(5)), made[-1].samples(range(5)) if twice else nullcontext():
            F.cross_entropy(called(x[:5]), y[:5]).backward()
        adam.step()
        adam.zero_grad()
    return made[-1].result().scores


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("how", ["none", "none, reentrant", "compiled", "two attributions"])
def test_rewritten_layers_in_checkpoints_and_compiled_models(how: str) -> None:
    scores = []
    for again in (False, True):
        torch.manual_seed(0)
        torch._dynamo.reset()
        model = Both()
        if how == "compiled":  # dropout draws other numbers there
            model.encoder, model.gru = nn.Identity(), nn.GRU(WIDTH, 3)
        called: Any = model.double()
        if again and how == "compiled":
            called = torch.compile(model, backend="aot_eager")
        elif again and how.startswith("none"):
            model.kept = how
        scores.append(scores_of(model, called, again and how == "two attributions"))
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-9)
