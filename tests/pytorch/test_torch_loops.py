"""What a loop may do: registered layers, checkpointing, parameters without a gradient, other memory."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_loops import GPT, MODELS, Loop, assert_oracle_agrees, labels, tokens

from adamshap.gpu.captures import Dense, outer_products

torch = pytest.importorskip("torch", reason="extra `torch`")
nn, F = torch.nn, torch.nn.functional
from adamshap.torch import Attribution, register  # noqa: E402
from adamshap.torch.layers import LAYERS, array_of  # noqa: E402


class Transposed(nn.Module):  # type: ignore[name-defined,misc]
    """A linear layer with its weight the other way round, as Hugging Face's Conv1D."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(d_in, d_out)), nn.Parameter(torch.zeros(d_out))

    def forward(self, x: Any) -> Any:
        return x @ self.weight + self.bias


def sequence_of(layer: Any) -> Any:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), layer, nn.Tanh(), nn.Linear(5, 3))


@pytest.fixture
def transposed() -> Any:
    @register(Transposed)
    def captures(use: Any) -> Any:
        yield outer_products(use.names["weight"], None, array_of(use.b), array_of(use.a))
        yield Dense(use.names["bias"], array_of(use.b.reshape(use.n, -1, use.b.shape[-1]).sum(1)))

    yield
    del LAYERS[Transposed]


@pytest.mark.usefixtures("transposed")
def test_a_registered_layer_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    _, inputs, targets = MODELS["perceptron"]
    monkeypatch.setitem(MODELS, "transposed", (lambda: sequence_of(Transposed(6, 5)), inputs, targets))
    assert_oracle_agrees(Loop("transposed"))


@pytest.mark.parametrize("twice", [False, True])
def test_convolutions_along_one_axis(twice: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Signal(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv1d(2, 4, 3, stride=2, padding=1), nn.Linear(4, 3)
            self.second = nn.Conv1d(4, 4, 3, padding="same", groups=2)

        def forward(self, x: Any) -> Any:
            x = self.second(self.first(x).tanh()).tanh()
            return self.head((self.second(x) if twice else x).mean(2))

    monkeypatch.setitem(MODELS, "signal", (Signal, lambda count: torch.randn(count, 2, 7).double(), labels))
    assert_oracle_agrees(Loop("signal"))


class Checkpointed(GPT):
    """The blocks in the way that `reentrant` says: their activations are computed again in the backward pass."""

    reentrant = False

    def forward(self, x: Any) -> Any:
        def block(x: Any) -> Any:
            return x + self.linear2[0](F.gelu(self.linear1[0](self.norm2[0](x))))

        x = self.embedding(x) + self.positions(torch.arange(x.shape[1]))
        x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=self.reentrant) if self.training else block(x)
        return self.head(self.norm(x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    scores = []
    for again in (False, True):
        torch.manual_seed(0)
        model = Checkpointed().double().train(again)
        model.reentrant = reentrant
        for part in (model.norm1, model.attention):
            part.requires_grad_(False)
        adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        x, valid = tokens(6), tokens(2)

        def loss(x: Any, model: Any = model) -> Any:
            return F.cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())

        def validation(model: Any = model, valid: Any = valid, loss: Any = loss) -> Any:
            model.eval()
            return loss(valid)

        attribution = Attribution(model, adam, validation=validation, n_samples=6)
        for _ in range(2):
            with attribution.samples(range(6)):
                loss(x).backward()
            adam.step()
            adam.zero_grad()
        scores.append(attribution.result().scores)
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-9)


class Branches(nn.Module):  # type: ignore[name-defined,misc]
    """A model whose second branch may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.both = nn.Linear(4, 3), nn.Linear(4, 3), True

    def forward(self, x: Any) -> Any:
        return self.first(x) + self.second(x).tanh() if self.both else self.first(x)


@pytest.fixture
def branches(monkeypatch: pytest.MonkeyPatch) -> None:
    _, inputs, targets = MODELS["perceptron"]
    monkeypatch.setitem(MODELS, "branches", (Branches, inputs, targets))


@pytest.mark.usefixtures("branches")
def test_a_parameter_without_a_gradient_stays_and_counts_no_step() -> None:
    """PyTorch skips it, in its count of steps too: the second branch is one step behind from then on."""
    loop = Loop("branches", options={"check_every": 1})
    for loop.model.both in (True, False, True):
        loop.step(torch.arange(5))
    assert int(loop.adam.state[loop.model.second.weight]["step"]) == 2
    assert np.isfinite(loop.attribution.result().scores).all()


def test_a_parameter_with_a_gradient_of_0_is_moved_by_its_momentum() -> None:
    """The validation gradient is taken where PyTorch's step goes: the second branch moves too, without samples."""
    scores = []
    for left_out in (False, True):
        torch.manual_seed(0)
        model = Branches().double()
        adam = torch.optim.AdamW(model.parameters(), lr=0.1)
        x, y = torch.randn(9, 4).double(), labels(9)

        def validation(model: Any = model, x: Any = x, y: Any = y) -> Any:
            return F.cross_entropy(model.first(x[7:]) + model.second(x[7:]).tanh(), y[7:])

        attribution = Attribution(model, adam, validation=validation, n_samples=9, check_every=1)
        for both in (True, False, True):
            adam.zero_grad(set_to_none=False)
            with attribution.samples(range(7)):
                model.both = both or not left_out
                outputs = model(x[:7]) if both or left_out else model.first(x[:7]) + 0 * model.second(x[:7])
                F.cross_entropy(outputs, y[:7]).backward()
            adam.step()
        scores.append(attribution.result().scores)
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-12)


@pytest.mark.parametrize("gradient", ["midpoint", "path"])
def test_the_loop_is_the_same_with_and_without_an_attribution(gradient: str) -> None:
    """Parameters come back bit for bit from the points of the validation gradient, and random numbers are the same."""
    params = []
    for attributed in (False, True):
        loop = Loop(options={"gradient": gradient})
        loop.model[1] = nn.Sequential(nn.Tanh(), nn.Dropout(0.3))
        if not attributed:
            loop.attribution.detach()
        for index in loop.batches(3):
            loop.passes(index, captured=attributed)
            loop.adam.step()
            loop.adam.zero_grad()
        params.append([p.detach().clone() for p in loop.model.parameters()] + [torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*params, strict=True))


def test_a_run_in_float32_is_near_the_one_in_float64() -> None:
    scores = []
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(0)
        model = GPT(depth=2).double().to(dtype)
        adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
        x = tokens(12)
        attribution = Attribution(
            model,
            adam,
            validation=lambda model=model, x=x: F.cross_entropy(model(x[8:]).flatten(0, 1), x[8:].flatten()),
            n_samples=12,
            check_every=1,
        )
        for _ in range(4):
            with attribution.samples(torch.arange(8)):
                F.cross_entropy(model(x[:8]).flatten(0, 1), x[:8].flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            adam.step()
            adam.zero_grad()
        scores.append(attribution.result().scores[:8])
    assert np.abs(scores[1] - scores[0]).max() < 1e-3 * np.abs(scores[0]).max()


def test_channels_last_memory() -> None:
    torch.manual_seed(1)
    assert_oracle_agrees(Loop("image", change=lambda model: model.to(memory_format=torch.channels_last)))


def test_a_result_has_the_parameters_and_the_state_of_the_loop() -> None:
    loop = Loop(options={"with_sgd": False})
    begun = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    for index in loop.batches(2):
        loop.step(index)
    run = loop.attribution.result()
    assert run.state.step == 2
    for name, p in loop.model.named_parameters():
        np.testing.assert_array_equal(run.initial_params[name], begun[name])
        np.testing.assert_array_equal(run.params[name], p.detach())
        np.testing.assert_array_equal(run.state.m[name], loop.adam.state[p]["exp_avg"])
    assert run.seen.sum() == 10
    assert np.isnan(run.sgd_scores).all()
    assert run.history.keys() == {"factor"}
    assert run.history["factor"].tolist() == [1, 1]


def test_a_gradient_scaler_is_a_factor() -> None:
    scores = []
    for scaled in (False, True):
        loop = Loop(clip=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for index in loop.batches(3):
            with loop.attribution.samples(index):
                scaler.scale(loop.loss(index)).backward()
            scaler.unscale_(loop.adam)
            nn.utils.clip_grad_norm_(loop.model.parameters(), 0.05)
            scaler.step(loop.adam)
            scaler.update()
            loop.adam.zero_grad()
        scores.append(loop.attribution.result())
    np.testing.assert_allclose(scores[1].scores, scores[0].scores, rtol=1e-9)
    np.testing.assert_allclose(1024 * scores[1].history["factor"], scores[0].history["factor"], rtol=1e-9)


def test_two_attributions_of_one_loop() -> None:
    loop = Loop()
    alone = Loop(options={"slope": "secant"})
    second = Attribution(loop.model, loop.adam, validation=loop.validation, n_samples=loop.count, slope="secant")
    index = torch.arange(5)
    for _ in range(2):
        with second.samples(index):
            loop.passes(index)
        loop.adam.step()
        loop.adam.zero_grad()
        alone.step(index)
    np.testing.assert_array_equal(second.result().scores, alone.attribution.result().scores)
    assert np.abs(second.result().scores - loop.attribution.result().scores).max() > 0


@pytest.mark.parametrize("rank", [None, 2])
def test_a_resumed_loop_ends_with_the_same_scores(rank: int | None, tmp_path: Path) -> None:
    def begun() -> Loop:
        return Loop("gpt", options={"rank": rank})

    whole, first, second = begun(), begun(), begun()
    indices = list(whole.batches(5, n=8))
    for index in indices:
        whole.step(index)
    for index in indices[:3]:
        first.step(index)
    parts = (first.model, first.adam, first.attribution)
    torch.save([part.state_dict() for part in parts], tmp_path / "state.pt")
    for part, state in zip(
        (second.model, second.adam, second.attribution), torch.load(tmp_path / "state.pt"), strict=True
    ):
        part.load_state_dict(state)
    for index in indices[3:]:
        second.step(index)
    runs = [loop.attribution.result() for loop in (whole, second)]
    for name in ("scores", "sgd_scores", "seen"):
        np.testing.assert_array_equal(getattr(runs[1], name), getattr(runs[0], name))
    for name, values in runs[0].history.items():
        np.testing.assert_array_equal(runs[1].history[name], values)
    for name, p in runs[0].initial_params.items():
        np.testing.assert_array_equal(runs[1].initial_params[name], p)


def test_a_state_of_another_attribution_is_refused() -> None:
    loop = Loop()
    loop.step(torch.arange(5))
    state = loop.attribution.state_dict()
    for options, message in (
        ({"options": {"slope": "secant"}}, "state: got one of Estimator(slope='random_order'"),
        ({"count": 9}, "state: got scores of 12 samples; needs those of 9, n_samples"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            Loop(**options).attribution.load_state_dict(state)
    with pytest.raises(TypeError, match=r"state: got \{\}; needs the state_dict\(\) of an Attribution"):
        Loop().attribution.load_state_dict({})
    loop.passes(torch.arange(5))
    with pytest.raises(ValueError, match=r"attribution.state_dict: got a step that has begun; needs a call after"):
        loop.attribution.state_dict()


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_is_captured_or_refused() -> None:
    """By the compiler's front end, which decides whether hooks run; code of its own is not made."""
    x, y, scores = torch.randn(12, 6).double(), labels(12), {}
    for order in ("plain", "compiled later", "compiled first", "called first"):
        torch.manual_seed(0)
        torch._dynamo.reset()
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        adam = torch.optim.AdamW(model.parameters(), lr=0.01)
        called = model if order == "plain" else torch.compile(model, backend="aot_eager")
        if order == "called first":
            F.cross_entropy(called(x[:8]), y[:8]).backward()  # of other shapes it would be compiled again
            adam.zero_grad()
        attribution = Attribution(
            called if order == "compiled first" else model,
            adam,
            validation=lambda called=called: F.cross_entropy(called(x[8:]), y[8:]),
            n_samples=12,
        )

        def step(attribution: Any = attribution, called: Any = called, adam: Any = adam) -> None:
            with attribution.samples(range(8)):
                F.cross_entropy(called(x[:8]), y[:8]).backward()
            adam.step()
            adam.zero_grad()

        if order == "called first":
            with pytest.raises(ValueError, match="a compiled model must not be called before the Attribution"):
                step()
        else:
            step()
            scores[order] = attribution.result().scores
    for order in ("compiled later", "compiled first"):
        np.testing.assert_allclose(scores[order], scores["plain"], rtol=1e-9)
