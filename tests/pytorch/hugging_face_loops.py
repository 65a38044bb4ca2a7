"""Tiny models from transformers' configurations, in the loop of `torch_loops`, with gradients of each sample."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from torch_loops import MODELS, Loop

from adamshap.reference import Batch, Function
from adamshap.reference.contract import Array, Params

torch = pytest.importorskip("torch", reason="extra `torch`")
transformers = pytest.importorskip("transformers", reason="extra `hf`")
nn, F = torch.nn, torch.nn.functional

VOCAB, POSITIONS, PAD = 11, 6, 0


def gpt2(attention: str = "eager", dropout: float = 0.0) -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=8, n_embd=16, n_layer=2, n_head=2, attn_implementation=attention,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama(attention: str = "sdpa", **settings: Any) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8, attn_implementation=attention, bos_token_id=1,
        eos_token_id=2, **settings,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


class Padded(nn.Module):  # type: ignore[name-defined,misc]
    """A language model of padded ids: their mask, and positions that begin after padding on the left."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Any) -> Any:
        mask = (ids != PAD).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return self.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits


class Logits(nn.Module):  # type: ignore[name-defined,misc]
    """A model of one input, by its keyword."""

    def __init__(self, model: Any, keyword: str) -> None:
        super().__init__()
        self.model, self.keyword = model, keyword

    def forward(self, x: Any) -> Any:
        return self.model(**{self.keyword: x}).logits


def ids(count: int) -> Any:
    """Return sequences of other lengths, padded on the left or the right."""
    x = torch.randint(1, VOCAB, (count, POSITIONS))
    x[0, :2], x[1, -3:] = PAD, PAD
    return x


def next_tokens(outputs: Any, y: Any) -> Any:
    """Return the mean loss of each sequence's next tokens, without padding: label −100."""
    labels = y.masked_fill(y == PAD, -100)[:, 1:]
    losses = F.cross_entropy(outputs[:, :-1].transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return losses.sum(1) / (labels != -100).sum(1)


class Materialised(Loop):
    """A loop whose oracle takes each sample's gradient by a backward pass of its own.

    All start from one forward pass of the batch, with the random state of the loop's: dropout is the same.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        # A mean over four commutes with the rounding to float32 inside of transformers' RMSNorm; one over three does not.
        _, inputs, targets = MODELS[self.name]
        self.valid_x, self.valid_y = inputs(4), targets(4)
        if self.name not in ("vit", "resnet_hf", "bert"):
            self.y, self.valid_y = self.x, self.valid_x
        self.state = torch.get_rng_state()
        self.index: Any = None

    def oracle_step(self, index: Any) -> Any:
        self.index = index
        return super().oracle_step(index)

    def passes(self, index: Any, captured: bool = True) -> None:
        torch.set_rng_state(self.state)
        super().passes(index, captured)

    def validation(self) -> Any:
        training = self.model.training
        loss = self.each(self.model.eval()(self.valid_x), self.valid_y).mean()
        self.model.train(training)
        return loss

    def as_function(self) -> Function:
        def both(params: Params, batch: Batch) -> tuple[Any, dict[str, Any]]:
            given = {name: torch.tensor(np.array(p)).requires_grad_() for name, p in params.items()}
            training, numbers = self.model.training, torch.as_tensor(np.array(batch.y))
            is_train = bool(numbers[0] >= 0)
            if is_train and training:  # the whole step, whatever the samples: dropout depends on the row
                whole = Batch(np.array(self.index)[:, None].astype(float), np.array(self.index))
                places = [self.index.tolist().index(number) for number in numbers.tolist()]
            else:
                whole, places = batch, list(range(len(numbers)))
            x, y, weights = self.rows(whole)
            self.model.train(training and is_train)
            with torch.random.fork_rng():
                torch.set_rng_state(self.state)
                outputs = torch.func.functional_call(self.model, given, (x,))
            self.model.train(training)
            return (weights * self.each(outputs, y))[places], given

        def losses(params: Params, batch: Batch) -> Array:
            found: Array = both(params, batch)[0].detach().numpy()
            return found

        def gradients(params: Params, batch: Batch) -> Params:
            found, given = both(params, batch)
            rows = [torch.autograd.grad(one, list(given.values()), retain_graph=True) for one in found]
            return {name: torch.stack(x).numpy() for name, x in zip(given, zip(*rows, strict=True), strict=True)}

        return Function({name: tuple(p.shape) for name, p in self.trained.items()}, losses, None, gradients)
