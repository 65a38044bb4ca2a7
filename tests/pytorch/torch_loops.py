"""Small PyTorch models, a training loop with an attribution, and the oracle beside it, in float64."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from adamshap import reference
from adamshap.reference import Adam, AdamGroups, AdamState, Batch, Clipped, Function, Step
from adamshap.reference.contract import Array, Estimator, Params
from adamshap.verify.tolerance import estimator_magnitude

torch = pytest.importorskip("torch", reason="extra `torch`")
nn, F = torch.nn, torch.nn.functional
from adamshap.torch import Attribution  # noqa: E402

CLOSE = 1e-9
"""Largest error of a score in float64, of Σ_j |P_j x_ij|."""

VOCAB, T, WIDTH, CLASSES = 7, 4, 8, 3


class Attention(nn.Module):  # type: ignore[name-defined,misc]
    """Causal attention from linear layers, as most language models write it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Any) -> Any:
        n, positions, width = x.shape
        q, k, v = (
            one.reshape(n, positions, self.heads, -1).transpose(1, 2) for one in self.qkv(x).split(width, dim=-1)
        )
        weights = q @ k.transpose(2, 3) * (width // self.heads) ** -0.5
        hidden = torch.ones(positions, positions, dtype=torch.bool).triu(1)
        mixed = weights.masked_fill(hidden, float("-inf")).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(n, positions, width))


class GPT(nn.Module):  # type: ignore[name-defined,misc]
    """A language model with a tied output layer and positions of shape (T,), as in nanoGPT."""

    def __init__(
        self, vocab: int = VOCAB, context: int = T, width: int = WIDTH, depth: int = 1, heads: int = 2
    ) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.norm1 = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.attention = nn.ModuleList(Attention(width, heads) for _ in range(depth))
        self.norm2 = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.linear1 = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(depth))
        self.linear2 = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Any) -> Any:
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for norm1, attention, norm2, linear1, linear2 in zip(
            self.norm1, self.attention, self.norm2, self.linear1, self.linear2, strict=True
        ):
            x = x + attention(norm1(x))
            x = x + linear2(F.gelu(linear1(norm2(x))))
        return self.head(self.norm(x))


class Twice(nn.Module):  # type: ignore[name-defined,misc]
    """A linear layer called twice, a gain called twice, and a class token beside an embedding with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH, padding_idx=1)
        self.start = nn.Embedding(1, WIDTH)
        self.mix, self.norm, self.head = nn.Linear(WIDTH, WIDTH), nn.RMSNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Any) -> Any:
        start = self.start(torch.zeros(1, 1, dtype=torch.long))
        x = self.embedding(tokens) + start
        x = self.norm(self.mix(x)).tanh()
        return self.head(self.norm(self.mix(x)).mean(1))


class Image(nn.Module):  # type: ignore[name-defined,misc]
    """Convolutions with stride, padding and groups, GroupNorm, and BatchNorm in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 0))
        self.norm = nn.GroupNorm(2, 4)
        self.second = nn.Conv2d(4, 6, 3, padding="same", groups=2, bias=False)
        self.batch_norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, CLASSES)
        with torch.no_grad():
            self.batch_norm.running_mean.uniform_(-0.3, 0.3)
            self.batch_norm.running_var.uniform_(0.5, 2)
        self.batch_norm.eval()

    def forward(self, x: Any) -> Any:
        x = torch.relu_(self.norm(self.first(x)))
        return self.head(torch.tanh(self.batch_norm(self.second(x))).mean((2, 3)))


class ResNet(nn.Module):  # type: ignore[name-defined,misc]
    """A residual block with BatchNorm in eval mode, sums in place, and inputs by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1, bias=False)
        self.second, self.shortcut = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.Conv2d(4, 6, 1, 2)
        self.norms, self.head = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(2)), nn.Linear(6, CLASSES)
        self.eval()

    def forward(self, x: Any) -> Any:
        x = F.gelu(self.stem(input=x))
        inside = F.relu(self.norms[0](self.first(x)), inplace=True)
        inside = self.norms[1](self.second(inside))
        inside += self.shortcut(input=x)
        return self.head(input=F.relu(inside, inplace=True).mean((2, 3)))


class Patches(nn.Module):  # type: ignore[name-defined,misc]
    """A class token and learned positions that are bare parameters, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.zeros(1, 1, WIDTH)), nn.Parameter(torch.zeros(1, 9, WIDTH))
        self.patch, self.head = nn.Conv2d(2, WIDTH, 2, 2), nn.Linear(WIDTH, CLASSES)
        self.attention, self.norm = Attention(WIDTH, 2), nn.LayerNorm(WIDTH)

    def forward(self, x: Any) -> Any:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), patches], 1)
        x = x + self.positions[:, : x.shape[1]]
        return self.head(self.norm(x + self.attention(x))[:, 0])


def perceptron() -> Any:
    return nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 5, bias=False), nn.Linear(5, CLASSES)
    )


def tokens(count: int) -> Any:
    x = torch.randint(0, VOCAB, (count, T))
    x[:, -1] = x[:, 0]
    return x


def labels(count: int) -> Any:
    return torch.randint(0, CLASSES, (count,))


MODELS: dict[str, tuple[Callable[[], Any], Callable[[int], Any], Callable[[int], Any]]] = {
    "perceptron": (perceptron, lambda count: torch.randn(count, 4).double(), labels),
    "gpt": (GPT, tokens, lambda count: torch.randint(0, VOCAB, (count, T))),
    "twice": (Twice, tokens, labels),
    "resnet": (ResNet, lambda count: torch.randn(count, 2, 5, 4).double(), labels),
    "patches": (Patches, lambda count: torch.randn(count, 2, 4, 4).double(), labels),
    "image": (Image, lambda count: torch.randn(count, 2, 5, 4).double(), labels),
}


def mean_of_each(loss: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """Return the function of outputs and labels that gives each sample's own mean loss, (n,)."""

    def each(outputs: Any, y: Any) -> Any:
        losses = loss(outputs.reshape(-1, outputs.shape[-1]), y.reshape(-1))
        return losses.reshape(len(y), -1).mean(1)

    return each


def cross_entropy(**options: Any) -> Callable[[Any, Any], Any]:
    return mean_of_each(lambda outputs, y: F.cross_entropy(outputs, y, reduction="none", **options))


@dataclass
class Loop:
    """A training loop of somebody, in float64, with an attribution beside it.

    Each ``step`` takes the loss Σ_i weights[i] ℓ_i of some samples, by one backward pass for each part of them.
    With ``one_by_one`` the oracle has a backward pass for each sample, where ``torch.func`` does not have the layers.
    """

    name: str = "perceptron"
    optimizer: Callable[[Any], Any] = lambda model: torch.optim.AdamW(model.parameters(), lr=0.01)
    each: Callable[[Any, Any], Any] = field(default_factory=cross_entropy)
    clip: float | None = None
    parts: int = 1
    change: Callable[[Any], None] = lambda model: None
    options: dict[str, Any] = field(default_factory=dict)
    count: int = 12
    seed: int = 0
    one_by_one: bool = False
    dtype: Any = torch.float64

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        build, inputs, targets = self.kind()
        self.model = build().double()
        with torch.no_grad():
            for p in self.model.parameters():
                p.add_(0.3 * torch.randn_like(p))
        self.change(self.model)
        self.x, self.y = inputs(self.count), targets(self.count)
        self.valid_x, self.valid_y = inputs(3), targets(3)
        self.weights = torch.rand(self.count).double()
        if self.dtype != torch.float64:
            self.model, self.weights = self.model.to(self.dtype), self.weights.to(self.dtype)
            if self.x.is_floating_point():
                self.x, self.valid_x = self.x.to(self.dtype), self.valid_x.to(self.dtype)
        self.adam = self.optimizer(self.model)
        self.attribution = Attribution(
            self.model, self.adam, validation=self.validation, n_samples=self.count, **self.options
        )

    def kind(self) -> tuple[Callable[[], Any], Callable[[int], Any], Callable[[int], Any]]:
        """Return functions for the model, and for inputs and labels of some samples."""
        return MODELS[self.name]

    def validation(self) -> Any:
        losses = self.each(self.model(self.valid_x), self.valid_y)
        return losses if self.options.get("per_validation") else losses.mean()

    def losses(self, index: Any) -> Any:
        return self.weights[index] * self.each(self.model(self.x[index]), self.y[index])

    def loss(self, index: Any) -> Any:
        return self.losses(index).sum()

    def passes(self, index: Any, captured: bool = True) -> None:
        """Run the backward passes of a step."""
        for part in index.tensor_split(self.parts):
            with self.attribution.samples(part, lambda part=part: self.losses(part)) if captured else nullcontext():
                self.loss(part).backward()

    def step(self, index: Any, scheduler: Any = None) -> None:
        self.passes(index)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.adam.step()
        self.adam.zero_grad()
        if scheduler is not None:
            scheduler.step()

    def batches(self, steps: int, n: int = 5) -> Iterator[Any]:
        for _ in range(steps):
            yield torch.randperm(self.count)[:n]

    # --- the oracle --------------------------------------------------------------------------------------------------

    @property
    def trained(self) -> dict[str, Any]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def sample_loss(self, params: Any, x: Any, y: Any, weight: Any) -> Any:
        outputs = torch.func.functional_call(self.model, params, (x[None],))
        return weight * self.each(outputs, y[None])[0]

    def sample_gradient(self, params: Any, x: Any, y: Any, weight: Any) -> Any:
        if not self.one_by_one:
            return torch.func.grad(self.sample_loss)(params, x, y, weight)
        leaves = {name: p.requires_grad_() for name, p in params.items()}
        found = torch.autograd.grad(self.sample_loss(leaves, x, y, weight), list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    def rows(self, batch: Batch) -> tuple[Any, Any, Any]:
        """Return inputs, labels and weights of a batch that holds numbers of samples, negative for validation."""
        index = torch.as_tensor(np.array(batch.y))
        if index[0] < 0:
            return self.valid_x[-1 - index], self.valid_y[-1 - index], torch.ones(len(index)).double()
        return self.x[index], self.y[index], self.weights[index]

    def as_function(self) -> Function:
        def both(params: Params, batch: Batch, call: Callable[..., Any]) -> Any:
            given = {name: torch.as_tensor(np.array(p)) for name, p in params.items()}
            if self.one_by_one:
                found = [call(given, *row) for row in zip(*self.rows(batch), strict=True)]
                return torch.utils._pytree.tree_map(lambda *of_rows: torch.stack(of_rows), *found)
            return torch.func.vmap(call, in_dims=(None, 0, 0, 0))(given, *self.rows(batch))

        def losses(params: Params, batch: Batch) -> Array:
            found: Array = both(params, batch, self.sample_loss).detach().numpy()
            return found

        def gradients(params: Params, batch: Batch) -> Params:
            found = both(params, batch, self.sample_gradient)
            return {name: x.detach().numpy() for name, x in found.items()}

        return Function({name: tuple(p.shape) for name, p in self.trained.items()}, losses, None, gradients)

    def oracle_step(self, index: Any) -> Step:
        """Return the step that the optimiser is about to take with the samples of `index`."""
        params = {name: p.detach().numpy().copy() for name, p in self.trained.items()}
        names = {id(p): name for name, p in self.trained.items()}
        decay = "weight_decay" if isinstance(self.adam, torch.optim.AdamW) else "l2"
        groups = tuple(
            (
                tuple(names[id(p)] for p in group["params"] if id(p) in names),
                Adam(float(group["lr"]), group["betas"], group["eps"], **{decay: group["weight_decay"]}),
            )
            for group in self.adam.param_groups
        )
        adam: Any = AdamGroups(groups)
        state = self.adam.state
        m, v = (
            {
                name: state[p][key].numpy().copy() if p in state else np.zeros_like(params[name])
                for name, p in self.trained.items()
            }
            for key in ("exp_avg", "exp_avg_sq")
        )
        first = next(iter(self.trained.values()))
        done = int(state[first]["step"]) if first in state else 0
        batches = (np.asarray(index), -1 - np.arange(len(self.valid_x)))
        train, valid = (Batch(numbers[:, None].astype(float), numbers) for numbers in batches)
        if self.clip is not None:
            adam = Clipped(adam, self.clip)
        return Step(self.as_function(), params, adam, AdamState(done, m, v), train, valid, "sum")


NOT_OF_THE_ORACLE = ("with_sgd", "check_every", "contraction", "verify_ghost", "samples_axis")
"""Options that change how scores are computed, and not what they are."""


def assert_oracle_agrees(loop: Loop, steps: int = 3, n: int = 5, scheduler: Any = None) -> None:
    """Run the loop, and compare what each step adds to the scores with the oracle's for that step."""
    options = {"slope": "random_order", "gradient": "midpoint"} | loop.options
    exact = {name: value for name, value in options.items() if name not in NOT_OF_THE_ORACLE}
    each = bool(loop.options.get("per_validation"))
    nothing = np.zeros((loop.count, len(loop.valid_x)) if each else loop.count)
    before = nothing, nothing
    for index in loop.batches(steps, n):
        step = loop.oracle_step(index)
        wanted = reference.scores(step, **exact)
        of_sgd = reference.scores(step, "sgd", "start", per_validation=each)
        loop.step(index, scheduler)
        run = loop.attribution.result()
        seen = np.zeros(loop.count, bool)
        seen[index] = True
        for got, old, expected, estimator in (
            (run.scores, before[0], wanted, Estimator(**{**exact, "efficient": False})),
            (run.sgd_scores, before[1], of_sgd, Estimator("sgd", "start", per_validation=each)),
        ):
            size = estimator_magnitude(step, estimator) + np.abs(expected).max() + np.abs(old[index])
            assert np.all(np.abs((got - old)[index] - expected) <= CLOSE * size)
            assert np.all((got - old)[~seen] == 0)
        before = run.scores, run.sgd_scores


def assert_same_run(got: Any, expected: Any) -> None:
    """Assert that scores, counts, factors and parameters of two runs are the same, bit for bit."""
    assert np.array_equal(got.scores, expected.scores)
    assert np.array_equal(got.sgd_scores, expected.sgd_scores)
    assert np.array_equal(got.seen, expected.seen)
    assert np.array_equal(got.history["factor"], expected.history["factor"])
    assert all(np.array_equal(p, expected.params[name]) for name, p in got.params.items())


def freeze_some(model: Any) -> None:
    """Freeze a whole layer of `perceptron`, a weight without its bias, and a bias without its weight."""
    for p in (*model[2].parameters(), model[4].weight, model[0].bias):
        p.requires_grad_(False)
