"""Mixed precision: autocast in bfloat16 and float16, scalers, and the rounding that the self-check allows for it."""

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch_loops import GPT, MODELS, cross_entropy

from adamshap.gpu.backend import Backend
from adamshap.gpu.captures import Captures, Dense, outer_products
from adamshap.reference.contract import Run

torch = pytest.importorskip("torch", reason="extra `torch`")
nn, F = torch.nn, torch.nn.functional
from adamshap.torch import Attribution, memory  # noqa: E402
from adamshap.torch.captures.roundoff import Roundoff, roundoff_of  # noqa: E402
from adamshap.torch.checks.gradients import Passes, factor_of  # noqa: E402
from adamshap.torch.layers import LAYERS, Layer  # noqa: E402

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
N, N_VAL, BATCH, SCALE = 32, 8, 16, 2.0**12
ROWS = np.arange(N)


class Mixed:
    """A loop in float32, under autocast if it has a dtype, with a gradient scaler for float16."""

    def __init__(self, name: str, dtype: Any = None, clip: float | None = 0.5, **options: Any) -> None:
        torch.manual_seed(0)
        build, inputs, targets = MODELS[name]
        self.model = GPT(depth=2, width=32) if name == "gpt" else build().float()
        x = inputs(N + N_VAL)
        self.x, self.y = x.float() if x.is_floating_point() else x, targets(N + N_VAL)
        self.adam = torch.optim.AdamW(self.model.parameters(), lr=1e-3, **options)
        self.dtype, self.clip, self.each = dtype, clip, cross_entropy()
        self.factors: list[float] = []
        self.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=dtype == torch.float16)
        self.attribution = Attribution(
            self.model, self.adam, validation=lambda: self.loss(slice(N, None)), n_samples=N, check_every=1
        )

    def loss(self, rows: Any) -> Any:
        with torch.autocast("cpu", self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            return self.each(self.model(self.x[rows]), self.y[rows]).mean()

    def backward(self, rows: Any) -> None:
        with self.attribution.samples(rows):
            self.scaler.scale(self.loss(rows)).backward()

    def step(self) -> None:
        factor = 1 / self.scaler.get_scale()
        if self.clip is not None:
            self.scaler.unscale_(self.adam)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            factor *= min(1.0, self.clip / (norm.item() + 1e-6))
        self.factors.append(factor)
        self.scaler.step(self.adam)
        self.scaler.update()
        self.adam.zero_grad()

    def run(self, steps: int = 6) -> Run:
        generator = torch.Generator().manual_seed(1)
        for _ in range(steps):
            self.backward(torch.randperm(N, generator=generator)[:BATCH])
            self.step()
        return self.attribution.result()


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # PyTorch's own, of RMSNorm
@pytest.mark.parametrize("name", ["twice", "image", "patches", "resnet", "perceptron"])
@pytest.mark.parametrize("dtype", HALVES)
def test_scores_under_autocast_are_near_those_of_float32(name: str, dtype: str) -> None:
    """Every step is checked in full; f has the clipping, and the scale that was taken out."""
    loop = Mixed(name, HALVES[dtype])
    run, wanted = loop.run(), Mixed(name).run()
    assert correlation(run, wanted) > least_correlation(dtype)
    np.testing.assert_allclose(run.history["factor"], loop.factors, rtol=roundoff(dtype))


class Encoder(nn.Module):  # type: ignore[name-defined,misc]
    """PyTorch's own transformer layer, whose attention runs rewritten."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 16), nn.Linear(16, 3)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.head(self.layer(self.embedding(x)).mean(1))


class Recurrent(Encoder):
    """A recurrent layer in its place, in float32 or under autocast."""

    def __init__(self, lowered: bool) -> None:
        super().__init__()
        self.layer, self.lowered = nn.LSTM(16, 16, batch_first=True), lowered

    def forward(self, x: Any) -> Any:
        with torch.autocast("cpu", enabled=self.lowered):
            return self.head(self.layer(self.embedding(x))[0].mean(1))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("build", [Encoder, lambda: Recurrent(lowered=False)], ids=["attention", "lstm in float32"])
def test_layers_with_passes_of_our_own(build: Any, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "own", (build, *MODELS["twice"][1:]))
    loop = Mixed("own", HALVES[dtype])
    assert correlation(loop.run(), Mixed("own").run()) > least_correlation(dtype)


def test_a_recurrent_layer_under_autocast_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "own", (lambda: Recurrent(lowered=True), *MODELS["twice"][1:]))
    message = "model module 'layer': got LSTM with a call under autocast; needs float32 there"
    with pytest.raises(ValueError, match=re.escape(message)):
        Mixed("own", torch.bfloat16).backward(ROWS[:BATCH])


def roundoff(dtype: str) -> float:
    return float(torch.finfo(HALVES[dtype]).eps) / 2


def least_correlation(dtype: str) -> float:
    """Return that of scores with errors of 16 roundings, of their own size: a pass has about as many in a row."""
    return 1 - (16 * roundoff(dtype)) ** 2 / 2


def correlation(run: Run, wanted: Run) -> float:
    return float(np.corrcoef(run.scores, wanted.scores)[0, 1])


def test_a_small_gpt_under_autocast() -> None:
    """The figures of docs/torch.md; pytest -s prints them."""
    wanted = Mixed("gpt").run(20)
    for dtype in HALVES:
        loop = Mixed("gpt", HALVES[dtype])
        run = loop.run(20)
        r = correlation(run, wanted)
        np.testing.assert_allclose(run.history["factor"], loop.factors, rtol=roundoff(dtype))
        print(f"{dtype}: R = {r:.7f}")
        assert r > least_correlation(dtype)


def test_an_input_is_captured_as_autocast_rounds_it() -> None:
    """257 is 256 in bfloat16: the sum of the captures is PyTorch's gradient, to the last bit."""
    model = nn.Linear(1, 1, bias=False)
    adam = torch.optim.AdamW(model.parameters())
    attribution = Attribution(model, adam, validation=lambda: model(torch.ones(1, 1)).mean(), n_samples=1)
    with attribution.samples([0]), torch.autocast("cpu", torch.bfloat16):
        model(torch.tensor([[257.0]])).sum().backward()
    captured = attribution._pending.blocks[0].captures.by_name["weight"][0].sum_of(np, "weight", slice(0, 1))
    assert captured.dtype == np.float32
    assert captured.item() == model.weight.grad.item() == 256


def test_a_factor_of_1_is_1_and_a_clipping_is_not() -> None:
    """Rounding to bfloat16 is up to 0.4 %, but that of all parameters together is far less."""
    assert Mixed("perceptron", torch.bfloat16, clip=None).run().history["factor"].tolist() == [1.0] * 6
    factors = Mixed("gpt", torch.bfloat16, clip=None).run(1).history["factor"]
    assert factors.tolist() == [1.0]
    loop = Mixed("resnet", torch.bfloat16, clip=None)
    loop.backward(ROWS[:BATCH])
    for p in loop.model.parameters():
        p.grad *= 0.9935
    loop.step()
    np.testing.assert_allclose(loop.attribution.result().history["factor"], 0.9935, rtol=2e-3)


class RoundedNorm(nn.Module):  # type: ignore[name-defined,misc]
    """A norm that rounds x̂ to the dtype of its input, and multiplies it by a gain in float32, as Llama's does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Any) -> Any:
        return self.weight * F.rms_norm(x.float(), x.shape[-1:]).to(x.dtype)


def captures_of_norm(use: Any) -> Any:
    yield Dense(use.names["weight"], memory.array_of(use.b * F.rms_norm(use.a, use.a.shape[-1:])))


def test_a_norm_that_rounds_before_its_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples' parts nearly cancel: the roundings of each do not."""
    monkeypatch.setitem(LAYERS, RoundedNorm, Layer(captures_of_norm, ("weight",)))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), RoundedNorm(32), nn.Linear(32, 3))
    adam = torch.optim.AdamW(model.parameters())
    x, signs = torch.randn(16, 8), torch.ones(32)
    x, signs[16:] = torch.cat([x, x + 0.01 * torch.randn(16, 8)]), -1
    attribution = Attribution(model, adam, validation=lambda: model(x).mean(), n_samples=32)
    with attribution.samples(range(32)), torch.autocast("cpu", torch.bfloat16):
        (signs[:, None] * model(x).square()).sum().backward()
    adam.step()
    assert attribution.result().history["factor"] == pytest.approx(1, rel=1e-2)


def test_gradients_near_the_smallest_float16_are_allowed_for() -> None:
    """Without a scaler they are rounded to multiples of 6e-8, by a third of their size."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    adam = torch.optim.AdamW(model.parameters())
    x = 1e-2 * torch.randn(16, 8)
    attribution = Attribution(model, adam, validation=lambda: model(x).mean(), n_samples=16)
    with attribution.samples(range(16)), torch.autocast("cpu", torch.float16):
        (1e-5 * model(x)).sum().backward()
    assert 0 < model.weight.grad.abs().max() < 4e-6
    adam.step()
    assert attribution.result().history["factor"] == pytest.approx(1, rel=1e-3)


def half_forgotten(loop: Mixed) -> None:
    loop.loss(ROWS[BATCH:]).backward()


def one_edited(loop: Mixed) -> None:
    loop.model.linear1[0].weight.grad *= 1.05


def not_all_clipped(loop: Mixed) -> None:
    nn.utils.clip_grad_value_(loop.model.parameters(), 1e-3)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (half_forgotten, "optimizer.step: got a backward pass outside `samples`"),
        (one_edited, "gradient of 'linear1.0.weight': got a gradient of norm"),
        (not_all_clipped, "clipping by value, clipping between accumulated parts or not"),
    ],
)
def test_a_mistake_under_autocast_is_refused(mistake: Any, message: str, dtype: str) -> None:
    loop = Mixed("gpt", HALVES[dtype], clip=None)
    loop.backward(ROWS[:BATCH])
    mistake(loop)
    with pytest.raises(ValueError, match=re.escape(message)):
        loop.step()


def test_a_weight_used_where_no_hook_sees_it_under_autocast() -> None:
    loop = Mixed("perceptron", torch.bfloat16, clip=None)
    with loop.attribution.samples(ROWS[:4]), torch.autocast("cpu", torch.bfloat16):
        hidden = loop.model[:3](loop.x[:4])
        loss = loop.model[3:](hidden).mean() + 0.1 * F.linear(hidden, loop.model[3].weight).square().mean()
        loss.backward()
    with pytest.raises(ValueError, match="a use of the parameter that no hook sees"):
        loop.step()


def test_a_model_in_bfloat16_is_refused() -> None:
    model = nn.Linear(4, 3).bfloat16()
    message = (
        "model parameter 'weight': got bfloat16; needs float32 or float64: model.float(), and torch.autocast for passes"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Attribution(model, torch.optim.AdamW(model.parameters()), validation=lambda: model(0), n_samples=2)


# --- scalers ---------------------------------------------------------------------------------------------------------


def test_a_fused_optimizer_unscales_by_itself() -> None:
    wanted = Mixed("gpt", torch.float16, clip=None).run()
    got = Mixed("gpt", torch.float16, clip=None, fused=True).run()
    np.testing.assert_allclose(got.scores, wanted.scores, rtol=0, atol=1e-4 * np.abs(wanted.scores).max())
    np.testing.assert_allclose(got.history["factor"] * SCALE, 1, rtol=1e-3)
    clipped = Mixed("gpt", torch.float16, fused=True).run(), Mixed("gpt", torch.float16).run()
    np.testing.assert_allclose(clipped[0].scores, clipped[1].scores, rtol=0, atol=1e-4 * np.abs(wanted.scores).max())


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_overflows_has_no_samples(fused: bool) -> None:
    loop = Mixed("perceptron", torch.float16, clip=None, fused=fused)
    loop.backward(ROWS[:BATCH])
    loop.step()
    before = loop.attribution.result()
    loop.backward(ROWS[BATCH:])
    loop.model[0].weight.grad[0, 0] = torch.inf
    loop.step()
    assert loop.scaler.get_scale() == SCALE / 2
    loop.backward(ROWS[:BATCH])
    loop.step()
    run = loop.attribution.result()
    assert before.state.step == 1
    assert run.state.step == 2
    assert run.seen.tolist() == [2] * BATCH + [0] * (N - BATCH)
    assert np.all(run.scores[BATCH:] == 0)
    assert len(run.history["factor"]) == 2


# --- the rounding that is allowed ------------------------------------------------------------------------------------


@pytest.fixture(params=["tf32", "bf16"])
def setting(request: pytest.FixtureRequest) -> Iterator[str]:
    """PyTorch's setting for products of float32 numbers on the CPU."""
    matmul = torch.backends.mkldnn.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, request.param
    yield request.param
    matmul.fp32_precision = before


def test_products_of_lower_precision_are_allowed_for(setting: str) -> None:
    """As TF32 on a card does, which PyTorch's convolutions use by default: the factors of products are rounded."""
    a, b = torch.randn(64, 4), torch.randn(64, 5)
    found = roundoff_of(nn.Linear(4, 5), a, b)
    assert found.factors == {"tf32": 2.0**-10, "bf16": 2.0**-8}[setting]
    assert roundoff_of(nn.Linear(4, 5), a.double(), b.double()) == Roundoff()
    bits = {"tf32": 11, "bf16": 8}[setting]

    def rounded(x: Any) -> Any:
        mantissa, exponent = np.frexp(x.numpy())
        return np.ldexp(np.round(mantissa * 2.0**bits), exponent - bits)

    captures = Captures((outer_products("w", None, a.numpy(), b.numpy()),))
    gradients = {"w": rounded(b).T @ rounded(a)}
    backend = Backend(np, np.dtype("float32"))
    assert factor_of(Passes(backend, gradients, [captures], {"w": found}, {}, 1), ["w"]) == pytest.approx(1, rel=1e-2)
    with pytest.raises(ValueError, match="gradient of 'w': got a gradient of norm"):
        factor_of(Passes(backend, gradients, [captures], {}, {}, 1), ["w"])


def test_convolutions_on_a_card_round_to_tf32_by_default() -> None:
    on_card: Any = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    assert roundoff_of(nn.Conv2d(2, 3, 3), on_card, on_card) == Roundoff(factors=2.0**-10)
    assert roundoff_of(nn.Linear(2, 3), on_card, on_card) == Roundoff()


# --- other options ---------------------------------------------------------------------------------------------------


class WithFunctions(Mixed):
    """A loop with a function of the losses, and of the passes, for each batch."""

    def __init__(self, name: str, dtype: Any = None, **options: Any) -> None:
        super().__init__(name, dtype)
        self.attribution.detach()
        self.attribution = Attribution(
            self.model, self.adam, validation=lambda: self.loss(slice(N, None)), n_samples=N, check_every=1, **options
        )
        self.recompute = "recompute" in options

    def losses(self, rows: Any) -> Any:
        with torch.autocast("cpu", self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            return self.each(self.model(self.x[rows]), self.y[rows])

    def backward(self, rows: Any) -> None:
        def passes() -> None:
            self.scaler.scale(self.loss(rows)).backward()

        again = {"again": passes} if self.recompute else {"losses": lambda: self.losses(rows)}
        with self.attribution.samples(rows, **again):
            passes()


@pytest.mark.parametrize("name", ["perceptron", "image"])
@pytest.mark.parametrize("dtype", HALVES)
def test_passes_that_run_again_are_rounded_again(name: str, dtype: str) -> None:
    """f may come from other parameters, so that it differs by as much as a low dtype rounds."""
    loop, kept = WithFunctions(name, HALVES[dtype], recompute=True), Mixed(name, HALVES[dtype])
    run, wanted = loop.run(3), kept.run(3)
    np.testing.assert_allclose(run.scores, wanted.scores, rtol=0, atol=roundoff(dtype) * np.abs(wanted.scores).max())
    np.testing.assert_allclose(run.history["factor"], loop.factors, rtol=roundoff(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_a_second_opinion_of_rounded_captures_is_refused(dtype: str) -> None:
    message = r"verify_ghost: got a gradient of '.*' in bfloat16 or float16, of autocast; needs a loop without autocast"
    assert np.abs(WithFunctions("perceptron", verify_ghost=True).run(1).scores).max() > 0
    with pytest.raises(ValueError, match=message):
        WithFunctions("perceptron", HALVES[dtype], verify_ghost=True).run(1)
