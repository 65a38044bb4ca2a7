"""Random small models of PyTorch's layers in random loops: each step's scores are the oracle's."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_loops import MODELS, Loop, assert_oracle_agrees, cross_entropy, labels

torch = pytest.importorskip("torch", reason="extra `torch`")
nn = torch.nn

WIDTH, POSITIONS = 4, 3


class Residual(nn.Sequential):  # type: ignore[name-defined,misc]
    def forward(self, x: Any) -> Any:
        return x + super().forward(x)


class Across(nn.Sequential):  # type: ignore[name-defined,misc]
    """Layers of images, or of signals, from (n, T, d)."""

    def forward(self, x: Any) -> Any:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Outputs(nn.Module):  # type: ignore[name-defined,misc]
    """The first of a layer's outputs, those of all steps."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> Any:
        return self.layer(x)[0]


class Pooled(nn.Module):  # type: ignore[name-defined,misc]
    """Layers one after the other, one of them again, the mean over positions, an output layer.

    A module that has two names would confuse torch.func.functional_call, the oracle's.
    """

    def __init__(self, layers: list[Any], again: int | None) -> None:
        super().__init__()
        self.layers, self.again = nn.ModuleList(layers), [] if again is None else [layers[again]]
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Any) -> Any:
        for layer in (*self.layers, *self.again):
            x = layer(x)
        return self.head(x.mean(1))


LEAVES = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "no bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "over positions": lambda: nn.LayerNorm((POSITIONS, WIDTH)),
    "rms norm": lambda: nn.RMSNorm(WIDTH, eps=0.01),
    "group norm": lambda: Across(nn.GroupNorm(2, WIDTH)),
    "batch norm": lambda: Across(nn.BatchNorm1d(WIDTH).eval()),
    "convolution": lambda: Across(nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=2)),
    "transposed": lambda: Across(nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=2, dilation=2)),
    "instance norm": lambda: Across(nn.InstanceNorm1d(WIDTH, eps=0.1, affine=True)),
    "encoder": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 3, 0.0, "gelu", batch_first=True),
    "gru": lambda: Outputs(nn.GRU(WIDTH, WIDTH, batch_first=True)),
    "lstm": lambda: Outputs(nn.LSTM(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)),
    "tanh": nn.Tanh,
}
layers = st.recursive(
    st.sampled_from(sorted(LEAVES)).map(lambda name: [name]),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda many: [many]),
    max_leaves=5,
)


def built(names: Any) -> Any:
    return LEAVES[names]() if isinstance(names, str) else Residual(*map(built, names))


OPTIMIZERS = {
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1),
    "adam with l2": lambda model: torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.7, 0.9), weight_decay=0.1),
    "groups": lambda model: torch.optim.AdamW(
        [{"params": [p], "lr": 0.01 * (1 + i), "eps": 10.0 ** -(i + 3)} for i, p in enumerate(model.parameters())]
    ),
}


@given(
    names=st.lists(layers, min_size=1, max_size=3),
    again=st.none() | st.integers(0, 9),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    slope=st.sampled_from(["frozen", "linearized", "tangent", "secant", "random_order"]),
    gradient=st.sampled_from(["start", "midpoint"]),
    clip=st.none() | st.just(0.1),
    parts=st.integers(1, 3),
    smoothing=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=20)
def test_scores_of_random_models_in_random_loops(
    names: Any,
    again: int | None,
    optimizer: str,
    slope: str,
    gradient: str,
    clip: float | None,
    parts: int,
    smoothing: float,
    seed: int,
) -> None:
    name = "random"
    MODELS[name] = (
        lambda: Pooled(
            [nn.Linear(2, WIDTH), *map(built, names)],
            None if again is None else 1 + again % len(names),
        ),
        lambda count: torch.randn(count, POSITIONS, 2).double(),
        labels,
    )
    assert_oracle_agrees(
        Loop(
            name,
            OPTIMIZERS[optimizer],
            cross_entropy(label_smoothing=smoothing),
            clip,
            parts,
            options={"slope": slope, "gradient": gradient},
            seed=seed,
            one_by_one=True,
        ),
        steps=2,
    )
