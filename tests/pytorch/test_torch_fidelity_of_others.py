"""The oracle's step for models of transformers and torchvision: its x_i are those of each sample's backward pass."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hugging_face_loops import VOCAB, gpt2
from torchvision_models import models

from adamshap import reference

torch = pytest.importorskip("torch", reason="extra `torch`")
F = torch.nn.functional
from adamshap.torch import fidelity, torch_step  # noqa: E402


def of_tokens(model: Any, batch: Any) -> Any:
    return F.cross_entropy(model(batch[0]).logits.transpose(1, 2), batch[1], reduction="none").mean(1)


def of_images(model: Any, batch: Any) -> Any:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def sequences(count: int) -> Any:
    ids = torch.randint(0, VOCAB, (count, 5))
    return ids[:, :-1], ids[:, 1:]


def images(count: int) -> Any:
    return torch.randn(count, 3, 8, 8), torch.randint(0, 3, (count,))


def narrow_resnet() -> Any:
    """Return a ResNet of fewer channels: every x_i is materialised."""
    model = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)
    model.layer3, model.layer4, model.fc = torch.nn.Identity(), torch.nn.Identity(), torch.nn.Linear(128, 3)
    return model


CASES: dict[str, tuple[Callable[[], Any], Any, Callable[[int], Any]]] = {
    "gpt2": (gpt2, of_tokens, sequences),
    "resnet": (narrow_resnet, of_images, images),
}


@pytest.mark.parametrize("name", CASES)
def test_the_step_and_the_table_of_a_model_that_is_not_ours(name: str) -> None:
    torch.manual_seed(0)
    build, losses, data = CASES[name]
    model, batch, valid = build().eval(), data(3), data(2)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses(model, batch).mean().backward()
    adam.step()

    step = torch_step(model, adam, losses, batch, valid)
    x = reference.models.sample_gradients(step)
    double = build().eval().double()
    double.load_state_dict(model.state_dict())
    named = dict(double.named_parameters())
    for i in range(3):
        rows = [one[i : i + 1].double() if one.is_floating_point() else one[i : i + 1] for one in batch]
        found = torch.autograd.grad(losses(double, rows).sum() / 3, list(named.values()))
        for parameter, wanted in zip(named, found, strict=True):
            off = np.abs(x[parameter][i] - wanted.numpy()).max()
            assert off <= 1e-10 * max(float(wanted.norm()), 1e-3), parameter

    table = fidelity(model, adam, losses, batch, valid, slope="secant", kind="last")
    exact, scores = reference.marginals(step, "last").values, reference.scores(step, "secant", "midpoint")
    assert table.correlation["secant", "midpoint"] == pytest.approx(np.corrcoef(scores, exact)[0, 1], abs=1e-9)
