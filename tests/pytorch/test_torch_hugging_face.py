"""Models of transformers and LoRA adapters of peft: scores are the oracle's, from each sample's gradient."""

import re
from typing import Any

import pytest
from hugging_face_loops import LANGUAGE, OTHERS, Materialised, lora, of
from torch_loops import assert_oracle_agrees

torch = pytest.importorskip("torch", reason="extra `torch`")
nn = torch.nn
from adamshap.gpu.captures import Captures  # noqa: E402
from adamshap.torch import Attribution  # noqa: E402
from adamshap.torch.memory import array_of  # noqa: E402


@pytest.mark.parametrize("name", [*LANGUAGE, *OTHERS])
def test_models_of_transformers(name: str) -> None:
    assert_oracle_agrees(Materialised(name), steps=2, n=4)


def test_accumulation_and_clipping_of_a_llama() -> None:
    loop = Materialised("llama, sdpa", parts=2, clip=0.1, options={"slope": "secant"})
    assert_oracle_agrees(loop, steps=2, n=4)


# --- gains: w ⊙ x̂ and (1 + w) ⊙ x̂ in whatever precision the module has ----------------------------------------------

NORMS = (
    "llama.LlamaRMSNorm",
    "mistral.MistralRMSNorm",
    "qwen2.Qwen2RMSNorm",
    "olmo2.Olmo2RMSNorm",
    "t5.T5LayerNorm",
    "gemma.GemmaRMSNorm",
    "gemma3.Gemma3RMSNorm",
)


def norm(path: str) -> Any:
    file, name = path.split(".")
    module = __import__(f"transformers.models.{file}.modeling_{file}", fromlist=[name])
    return getattr(module, name)(5)


def small(layer: Any, dtype: Any) -> tuple[Any, Attribution]:
    """Return a model with a layer in the middle, and its attribution."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), layer, nn.Linear(5, 3)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    options = {"validation": lambda: model(torch.ones(2, 3, 4, dtype=dtype)).square().mean(), "n_samples": 6}
    return model, Attribution(model, torch.optim.AdamW(model.parameters()), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", NORMS)
def test_gains_of_transformers_norms(path: str, dtype: Any) -> None:
    if "gemma" in path and dtype is torch.float64:
        message = r"RMSNorm with float64 parameters, and their gradient in less; needs a float32 model \(model.float"
        with pytest.raises(ValueError, match=message):
            small(norm(path), dtype)
        return
    model, attribution = small(norm(path), dtype)
    x, weights = torch.randn(6, 3, 4, dtype=dtype), torch.randn(6, 3, 3, dtype=dtype)
    losses = (model(x).tanh() * weights).sum((1, 2))
    with attribution.samples(torch.arange(6)):
        (model(x).tanh() * weights).sum().backward()
    captures: Captures = attribution._pending.blocks[0].captures
    (use,) = captures.by_name["1.weight"]
    got = array_of(torch.as_tensor(use.x)).reshape(6, 5)
    unit = torch.finfo(dtype).eps
    for i in range(6):
        (expected,) = torch.autograd.grad(losses[i], [model[1].weight], retain_graph=True)
        assert abs(got[i] - expected.numpy()).max() <= 16 * unit * abs(expected).max() + 16 * unit


class NoGainRMSNorm(nn.Module):  # type: ignore[name-defined,misc]
    """What a class of this name in transformers might do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, x: Any) -> Any:
        return x * self.weight.square()


class TwoInputsRMSNorm(NoGainRMSNorm):
    def forward(self, x: Any, gate: Any) -> Any:
        return x * self.weight * gate


class ShiftedScaledWordEmbedding(nn.Embedding):  # type: ignore[name-defined,misc]
    embed_scale = 2.0

    def forward(self, x: Any) -> Any:
        return super().forward(x) + 1


REFUSED = {
    "no gain": (NoGainRMSNorm, "model module '1': got NoGainRMSNorm with an output that is not affine in its weight"),
    "two inputs": (TwoInputsRMSNorm, "model module '1': got TwoInputsRMSNorm with a forward pass that failed"),
    "shifted": (
        lambda: ShiftedScaledWordEmbedding(5, 5),
        "model module '1': got ShiftedScaledWordEmbedding with an output that is not embed_scale times its rows",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_class_that_only_has_the_name_is_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, message = REFUSED[case]
    layer: Any = build()
    monkeypatch.setattr(type(layer), "__module__", "transformers.models.future")
    with pytest.raises(ValueError, match=re.escape(message)):
        small(layer, torch.float32)


def test_scaled_embeddings() -> None:
    """Gemma's, in float32: the self-check compares all gradients of steps of one sample each."""
    torch.manual_seed(0)
    model = of("Gemma", num_key_value_heads=1, head_dim=8, num_attention_heads=2)
    x = torch.randint(1, 11, (4, 6))
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    attribution = Attribution(
        model, adam, validation=lambda: model(input_ids=x[:2], labels=x[:2]).loss, n_samples=4, check_every=1
    )
    for index in torch.arange(4).split(1):
        with attribution.samples(index):
            model(input_ids=x[index], labels=x[index]).loss.backward()
        adam.step()
        adam.zero_grad()
    assert attribution.result().seen.tolist() == [1, 1, 1, 1]


# --- LoRA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "settings", "kind"),
    [(("q_proj",), {"use_dora": True}, "DoraLinearLayer"), (("embed_tokens",), {}, "ParameterDict")],
)
def test_adapters_without_captures_are_refused(targets: tuple[str, ...], settings: dict[str, Any], kind: str) -> None:
    model = lora(of("Llama"), *targets, **settings)
    with pytest.raises(ValueError, match=f"a module of class {kind}, which has no captures"):
        Attribution(model, torch.optim.AdamW(model.parameters()), validation=lambda: None, n_samples=4)
