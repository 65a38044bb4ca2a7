"""Random small models from all layers that have captures, built from names that Hypothesis draws."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st
from torch_loops import CLASSES, VOCAB

torch = pytest.importorskip("torch", reason="extra `torch`")
nn = torch.nn

WIDTH, POSITIONS, HEADS = 4, 3, 2


class Residual(nn.Sequential):  # type: ignore[name-defined,misc]
    def forward(self, x: Any) -> Any:
        return x + super().forward(x)


class Across(nn.Sequential):  # type: ignore[name-defined,misc]
    """Layers of signals with channels first, from (n, T, d)."""

    def forward(self, x: Any) -> Any:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Pixels(nn.Sequential):  # type: ignore[name-defined,misc]
    """Layers of images of two channels, from (n, T, d)."""

    def forward(self, x: Any) -> Any:
        return super().forward(x.unflatten(2, (2, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)


class StepsFirst(nn.Sequential):  # type: ignore[name-defined,misc]
    """Layers whose samples are along the second axis, (T, n, d)."""


class Turned(nn.Module):  # type: ignore[name-defined,misc]
    """Layers of (T, n, d), from (n, T, d)."""

    def __init__(self, *layers: Any) -> None:
        super().__init__()
        self.steps = StepsFirst(*layers)

    def forward(self, x: Any) -> Any:
        return self.steps(x.transpose(0, 1)).transpose(0, 1)


class Outputs(nn.Module):  # type: ignore[name-defined,misc]
    """The first of a layer's outputs, those of all steps."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> Any:
        return self.layer(x)[0]


class Itself(nn.Module):  # type: ignore[name-defined,misc]
    """Attention of a sequence to itself."""

    def __init__(self, weights: bool, **options: Any) -> None:
        super().__init__()
        self.weights, self.layer = weights, nn.MultiheadAttention(WIDTH, HEADS, **options)

    def forward(self, x: Any) -> Any:
        x = x if self.layer.batch_first else x.transpose(0, 1)
        x = self.layer(x, x, x, need_weights=self.weights)[0]
        return x if self.layer.batch_first else x.transpose(0, 1)


class Decoded(nn.Module):  # type: ignore[name-defined,misc]
    """A decoder layer that attends to what went into it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 3, 0.0, "gelu", batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.layer(x, x.sin())


class Cell(nn.Module):  # type: ignore[name-defined,misc]
    """A cell called at each step."""

    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Any) -> Any:
        state, states = x[:, 0], []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            states.append(state)
        return torch.stack(states, 1)


class Products(nn.Module):  # type: ignore[name-defined,misc]
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(WIDTH, 2, WIDTH)

    def forward(self, x: Any) -> Any:
        return self.layer(x, x[..., :2].sin())


class Positions(nn.Module):  # type: ignore[name-defined,misc]
    """Learned positions that are a bare parameter, or an embedding of ids (T,) or (1, T)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(1, POSITIONS, WIDTH)) if kind == "bare" else None
        self.table = None if kind == "bare" else nn.Embedding(POSITIONS, WIDTH)
        self.batched = kind == "(1, T)"

    def forward(self, x: Any) -> Any:
        if self.table is None:
            return x + self.rows
        ids = torch.arange(POSITIONS)
        return x + self.table(ids[None] if self.batched else ids)


def evaluated(norm: Any) -> Any:
    """Return a norm in eval mode, with statistics that are not 0 and 1."""
    with torch.no_grad():
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.5, 2)
    return norm.eval()


LEAVES: dict[str, Callable[[], Any]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "no bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "over positions": lambda: nn.LayerNorm((POSITIONS, WIDTH)),
    "rms norm": lambda: nn.RMSNorm(WIDTH, eps=0.01),
    "group norm": lambda: Across(nn.GroupNorm(2, WIDTH)),
    "batch norm": lambda: Across(evaluated(nn.BatchNorm1d(WIDTH))),
    "instance norm": lambda: Across(nn.InstanceNorm1d(WIDTH, eps=0.1, affine=True)),
    "instance norm, statistics": lambda: Across(
        evaluated(nn.InstanceNorm1d(WIDTH, affine=True, track_running_stats=True))
    ),
    "convolution": lambda: Across(nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=2)),
    "dilation": lambda: Across(nn.Conv1d(WIDTH, WIDTH, 2, padding="same", dilation=2, padding_mode="circular")),
    "images": lambda: Pixels(nn.Conv2d(2, 2, (3, 1), padding=(2, 0), dilation=(2, 1), bias=False)),
    "transposed": lambda: Across(nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=2, dilation=2)),
    "transposed images": lambda: Pixels(nn.ConvTranspose2d(2, 2, (3, 1), padding=(1, 0), groups=2)),
    "prelu": lambda: nn.PReLU(),
    "prelu of channels": lambda: Across(nn.PReLU(WIDTH)),
    "bilinear": Products,
    "bare positions": lambda: Positions("bare"),
    "positions": lambda: Positions("(T,)"),
    "positions of one row": lambda: Positions("(1, T)"),
    "attention": lambda: Itself(True, batch_first=True),
    "attention, steps first": lambda: Itself(False, add_bias_kv=True),
    "encoder": lambda: nn.TransformerEncoderLayer(WIDTH, HEADS, 3, 0.0, "gelu", batch_first=True),
    "encoder, steps first": lambda: Turned(nn.TransformerEncoderLayer(WIDTH, HEADS, 3, 0.0, "gelu", norm_first=True)),
    "decoder": Decoded,
    "gru": lambda: Outputs(nn.GRU(WIDTH, WIDTH, batch_first=True)),
    "lstm": lambda: Outputs(nn.LSTM(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)),
    "rnn, steps first": lambda: Turned(Outputs(nn.RNN(WIDTH, WIDTH))),
    "cell": lambda: Cell(nn.GRUCell(WIDTH, WIDTH)),
    "steps first": lambda: Turned(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.LayerNorm(WIDTH)),
    "tanh": nn.Tanh,
}

layers = st.recursive(
    st.sampled_from(sorted(LEAVES)).map(lambda name: [name]),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda many: [many]),
    max_leaves=4,
)


def built(names: Any) -> Any:
    return LEAVES[names]() if isinstance(names, str) else Residual(*map(built, names))


INPUTS = ("signals", "class token", "ids", "tied ids", "bags")
"""What the first layer sees, and whether the last one is tied to it."""


@dataclass(frozen=True)
class Draw:
    """What Hypothesis draws of a model.

    Parameters
    ----------
    names : nested lists of str
        Its layers.
    inputs : str
        One of `INPUTS`.
    again : int, optional
        Which layer is called again at the end.
    pooled : bool
        Whether a sample has one output, or one at each position.
    """

    names: Any
    inputs: str
    again: int | None
    pooled: bool

    @property
    def classes(self) -> int:
        return VOCAB if self.inputs == "tied ids" else CLASSES

    def x(self, count: int) -> Any:
        """Return inputs of some samples; a class token is one of the positions."""
        if "ids" in self.inputs or self.inputs == "bags":
            ids = torch.randint(0, VOCAB, (count, POSITIONS))
            ids[:, -1] = ids[:, 0]
            return ids
        return torch.randn(count, POSITIONS - (self.inputs == "class token"), 2).double()

    def y(self, count: int) -> Any:
        return torch.randint(0, self.classes, (count,) if self.pooled else (count, POSITIONS))

    def axes(self) -> dict[str, int]:
        """Return the names of modules whose samples are along the second axis."""
        return {name: 1 for name, module in Drawn(self).named_modules() if isinstance(module, StepsFirst)}


class Drawn(nn.Module):  # type: ignore[name-defined,misc]
    """Layers one after the other, one of them again, an output layer, which may be tied to the embedding.

    A module that has two names would confuse torch.func.functional_call, the oracle's.
    """

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.inputs, self.pooled = draw.inputs, draw.pooled
        is_ids = "ids" in draw.inputs or draw.inputs == "bags"
        self.embedding = nn.Embedding(VOCAB, WIDTH, padding_idx=None if draw.inputs == "tied ids" else 1)
        self.bag = nn.EmbeddingBag(VOCAB, WIDTH, mode="mean", padding_idx=2) if draw.inputs == "bags" else None
        if not is_ids:
            self.embedding = nn.Linear(2, WIDTH)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH)) if draw.inputs == "class token" else None
        self.layers = nn.ModuleList(map(built, draw.names))
        self.again = [] if draw.again is None else [self.layers[draw.again % len(self.layers)]]
        self.head = nn.Linear(WIDTH, draw.classes, bias=False)
        if draw.inputs == "tied ids":
            self.head.weight = self.embedding.weight

    def forward(self, ids: Any) -> Any:
        x = self.embedding(ids)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        if self.bag is not None:
            x = x + self.bag(ids)[:, None]
        for layer in (*self.layers, *self.again):
            x = layer(x)
        return self.head(x.mean(1) if self.pooled else x)


draws = st.builds(
    Draw,
    names=st.lists(layers, min_size=1, max_size=3),
    inputs=st.sampled_from(INPUTS),
    again=st.none() | st.integers(0, 2),
    pooled=st.booleans(),
)
