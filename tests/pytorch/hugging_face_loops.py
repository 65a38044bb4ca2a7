"""Tiny models from transformers' configurations, in the loop of `torch_loops`, with the gradients of each sample."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torchvision_operators  # noqa: F401 - before transformers
from torch_loops import CLASSES, Loop, labels

from adamshap.reference import Batch, Function, Step
from adamshap.reference.contract import Array, Params

torch = pytest.importorskip("torch", reason="extra `torch`")
pytest.importorskip("accelerate", reason="extra `hf`")
peft = pytest.importorskip("peft", reason="a peer")
transformers = pytest.importorskip("transformers", reason="extra `hf`")
nn, F = torch.nn, torch.nn.functional

VOCAB, POSITIONS, PAD = 11, 6, 0

SMALL = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
    "max_position_embeddings": 8, "pad_token_id": PAD,
}  # fmt: skip


def gpt2(attention: str = "eager", dropout: float = 0.0) -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=8, n_embd=16, n_layer=2, n_head=2, attn_implementation=attention,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def of(kind: str, attention: str = "sdpa", task: str = "CausalLM", **settings: Any) -> Any:
    """Return a model of a kind, such as "Llama"; grouped-query attention where the kind has it."""
    config = getattr(transformers, f"{kind}Config")
    model = getattr(transformers, f"{kind}For{task}")
    return model(config(**{**SMALL, "attn_implementation": attention, **settings}))


def lora(model: Any, *targets: str, **settings: Any) -> Any:
    settings = {"lora_dropout": 0.2, **settings}
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=list(targets), **settings)
    with warnings.catch_warnings():  # peft reads an attribute that transformers deprecated
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return peft.get_peft_model(model, config)


class Padded(nn.Module):  # type: ignore[name-defined,misc]
    """A language model of padded ids: their mask, and positions that begin after padding on the left."""

    def __init__(self, model: Any, positions: bool = True) -> None:
        super().__init__()
        self.model, self.positions = model, positions

    def forward(self, ids: Any) -> Any:
        mask = (ids != PAD).long()
        given = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if self.positions else {}
        return self.model(input_ids=ids, attention_mask=mask, **given).logits


class Logits(nn.Module):  # type: ignore[name-defined,misc]
    """A model of one input, by its keyword."""

    def __init__(self, model: Any, keyword: str) -> None:
        super().__init__()
        self.model, self.keyword = model, keyword

    def forward(self, x: Any) -> Any:
        return self.model(**{self.keyword: x}).logits


def padded_ids(count: int, left: int = 2) -> Any:
    """Return sequences of several lengths, padded on the left or on the right."""
    x = torch.randint(1, VOCAB, (count, POSITIONS))
    x[::3, :left], x[1::3, -3:] = PAD, PAD
    return x


def padded_on_the_right(count: int) -> Any:
    """Return ids for "eager" in float64: its mask is −∞ in the float32 of its softmax, NaN where nothing is left."""
    return padded_ids(count, left=0)


def next_tokens(outputs: Any, y: Any) -> Any:
    """Return the mean loss of each sequence's next tokens, without padding: label −100."""
    y = y.masked_fill(y == PAD, -100)[:, 1:]
    losses = F.cross_entropy(outputs[:, :-1].transpose(1, 2), y, reduction="none", ignore_index=-100)
    return losses.sum(1) / (y != -100).sum(1)


def images(size: int) -> Callable[[int], Any]:
    return lambda count: torch.randn(count, 2, size, size).double()


VIT = {"num_attention_heads": 2, "image_size": 4, "patch_size": 2, "num_channels": 2, "num_labels": CLASSES}
RESNET = {
    "num_channels": 2, "embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 1], "layer_type": "basic",
    "num_labels": CLASSES,
}  # fmt: skip

LANGUAGE: dict[str, Callable[[], Any]] = {
    "gpt2, eager": lambda: Padded(gpt2()),
    "gpt2, sdpa, dropout": lambda: Padded(gpt2("sdpa", 0.2)),
    "gpt2, positions (1, T)": lambda: Padded(gpt2("sdpa"), positions=False),
    "llama, eager, padded on the right": lambda: Padded(of("Llama", "eager", num_key_value_heads=2)),
    "llama, sdpa": lambda: Padded(of("Llama", num_key_value_heads=2, num_hidden_layers=2, tie_word_embeddings=True)),
    "qwen3, norms of heads": lambda: Padded(of("Qwen3", num_key_value_heads=2, head_dim=4)),
    "bert, tied bias": lambda: Padded(of("Bert", task="MaskedLM")),
    "lora, gpt2": lambda: Padded(lora(gpt2(), "c_attn", "c_proj", fan_in_fan_out=True)),
    "lora, llama": lambda: Padded(lora(of("Llama"), "q_proj", "v_proj", modules_to_save=["lm_head"])),
}
OTHERS: dict[str, tuple[Callable[[], Any], Callable[[int], Any]]] = {
    "bert, classes": (
        lambda: Logits(of("Bert", task="SequenceClassification", num_labels=CLASSES), "input_ids"),
        padded_ids,
    ),
    "vit": (lambda: Logits(of("ViT", task="ImageClassification", **VIT), "pixel_values"), images(4)),
    "resnet": (
        lambda: Logits(
            transformers.ResNetForImageClassification(transformers.ResNetConfig(**RESNET)), "pixel_values"
        ).eval(),
        images(8),
    ),
}


class Materialised(Loop):
    """A loop whose oracle takes each sample's gradient by a backward pass of its own.

    All start from one forward pass of the batch, with the random numbers of the loop's: dropout is the same.
    """

    def __post_init__(self) -> None:
        if self.name in LANGUAGE:
            self.each = next_tokens
        self.options = {"check_every": 1, **self.options}
        super().__post_init__()
        if self.name != "resnet":  # whose batch norms are in eval mode
            self.model.train()
        # A mean over four commutes with the rounding to float32 inside transformers' RMSNorm; one over three does not.
        _, inputs, targets = self.kind()
        self.valid_x, self.valid_y = inputs(4), targets(4)
        if self.name in LANGUAGE:
            self.y, self.valid_y = self.x, self.valid_x
        self.random = torch.get_rng_state()
        self.index: Any = None

    def kind(self) -> tuple[Callable[[], Any], Callable[[int], Any], Callable[[int], Any]]:
        if self.name in LANGUAGE:
            inputs = padded_on_the_right if "on the right" in self.name else padded_ids
            return LANGUAGE[self.name], inputs, inputs
        return *OTHERS[self.name], labels

    def passes(self, index: Any, captured: bool = True) -> None:
        torch.set_rng_state(self.random)
        super().passes(index, captured)

    def validation(self) -> Any:
        return self.each(self.model.eval()(self.valid_x), self.valid_y).mean()

    # --- the oracle --------------------------------------------------------------------------------------------------

    def oracle_step(self, index: Any) -> Step:
        self.index = index
        return super().oracle_step(index)

    def weighted_losses(self, params: dict[str, Any], batch: Batch) -> Any:
        numbers, training = torch.as_tensor(np.array(batch.y)), self.model.training
        is_train = bool(numbers[0] >= 0)
        whole, places = batch, list(range(len(numbers)))
        if is_train and training:  # all of the step, whichever samples are asked for: dropout depends on the row
            whole = Batch(self.index.double().numpy()[:, None], self.index.numpy())
            places = [self.index.tolist().index(number) for number in numbers.tolist()]
        x, y, weights = self.rows(whole)
        self.model.train(training and is_train)
        with torch.random.fork_rng():
            torch.set_rng_state(self.random)
            outputs = torch.func.functional_call(self.model, params, (x,))
        self.model.train(training)
        return (weights * self.each(outputs, y))[places]

    def as_function(self) -> Function:
        def losses(params: Params, batch: Batch) -> Array:
            found: Array = self.weighted_losses(tensors(params), batch).detach().numpy()
            return found

        def gradients(params: Params, batch: Batch) -> Params:
            given = tensors(params)
            rows = [
                torch.autograd.grad(one, list(given.values()), retain_graph=True)
                for one in self.weighted_losses(given, batch)
            ]
            return {name: torch.stack(x).numpy() for name, x in zip(given, zip(*rows, strict=True), strict=True)}

        return Function({name: tuple(p.shape) for name, p in self.trained.items()}, losses, None, gradients)


def tensors(params: Params) -> dict[str, Any]:
    return {name: torch.tensor(np.array(p)).requires_grad_() for name, p in params.items()}
