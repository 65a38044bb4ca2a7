"""The engine's own runs of its models, and the same models in a PyTorch loop: every score of the run is the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch_loops import GPT, cross_entropy

from adamshap import gpu as engine
from adamshap.reference import Adam, Batch, Network, convnet, transformer
from adamshap.reference.contract import Model, Run, batch_order

torch = pytest.importorskip("torch", reason="extra `torch`")
nn = torch.nn
from adamshap.torch import Attribution  # noqa: E402

ADAM = Adam(0.01, betas=(0.8, 0.99), eps=1e-3, weight_decay=0.1)
N, BATCH, STEPS = 12, 5, 5


def images() -> Any:
    return nn.Sequential(
        *(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(4, 3)),
    )


def features() -> Any:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def torch_name(name: str) -> str:
    """Return the name in `GPT` of a parameter of `transformer`."""
    for ours, theirs in (
        ("self_attn.in_proj_", "attention.qkv."),
        ("self_attn.out_proj", "attention.out"),
        ("encoder.norm", "norm"),
    ):
        name = name.replace(ours, theirs)
    if name.startswith("encoder.layers."):
        _, _, block, layer, rest = name.split(".", 4)
        name = f"{layer}.{block}.{rest}"
    return name


def perceptron_name(name: str) -> str:
    layer, kind = name.split(".")
    return f"{2 * int(layer)}.{kind}"


generator = np.random.default_rng(0)


MODELS: dict[str, tuple[Model, Callable[[], Any], Callable[[str], str], Callable[[int], Batch]]] = {
    "transformer": (
        transformer(vocab=7, context=4, width=8, depth=2, heads=2),
        lambda: GPT(depth=2),
        torch_name,
        lambda n: Batch(generator.integers(0, 7, (n, 4)), generator.integers(0, 7, (n, 4))),
    ),
    "convnet": (
        convnet(image=(2, 5, 6), channels=(3, 4), outputs=3),
        images,
        str,
        lambda n: Batch(generator.standard_normal((n, 2, 5, 6)), generator.integers(0, 3, n)),
    ),
    "perceptron": (
        Network((6, 5, 3), "tanh"),
        features,
        perceptron_name,
        lambda n: Batch(generator.standard_normal((n, 6)), generator.integers(0, 3, n)),
    ),
}


def run_in_pytorch(model: Model, module: Any, name_of: Any, train: Batch, valid: Batch, options: Any) -> Run:
    module = module.double()
    with torch.no_grad():
        for name, value in model.init(0).items():
            module.get_parameter(name_of(name)).copy_(torch.as_tensor(value))
    optimizer = torch.optim.AdamW(module.parameters(), ADAM.lr, ADAM.betas, ADAM.eps, ADAM.weight_decay)
    each, x, y = cross_entropy(), *(torch.as_tensor(np.array(part)) for part in (train.x, train.y))
    valid_x, valid_y = (torch.as_tensor(np.array(part)) for part in (valid.x, valid.y))
    attribution = Attribution(
        module, optimizer, validation=lambda: each(module(valid_x), valid_y).mean(), n_samples=N, **options
    )
    order = batch_order(N, batch_size=BATCH, epochs=3, seed=0)
    for _, (_, index) in zip(range(STEPS), order, strict=False):
        optimizer.zero_grad()
        with attribution.samples(index):
            each(module(x[index]), y[index]).mean().backward()
        optimizer.step()
    return attribution.result()


LOW_RANK = {"slope": "secant", "gradient": "start", "rank": 2}
"""Only of models with one order of parameters in both: the order chooses the first random basis."""


KEPT = {"validation_every": 2}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("transformer", {}),
        ("perceptron", {}),
        ("convnet", {}),
        ("convnet", LOW_RANK),
        ("transformer", KEPT),
        ("perceptron", KEPT | {"gradient": "start"}),
        ("convnet", KEPT | LOW_RANK),
    ],
)
def test_a_run_in_pytorch_is_the_engine_s(name: str, options: dict[str, Any]) -> None:
    model, build, name_of, data = MODELS[name]
    train, valid = data(N), data(3)
    options = options | {"keep_step_scores": True}
    own = engine.attribute(
        model, ADAM, train, valid, epochs=3, steps=STEPS, batch_size=BATCH, dtype="float64", device="cpu", **options
    )
    other = run_in_pytorch(model, build(), name_of, train, valid, options)
    for field in ("scores", "sgd_scores", "step_scores", "step_sgd_scores"):
        wanted = getattr(own, field)
        np.testing.assert_allclose(getattr(other, field), wanted, rtol=0, atol=1e-9 * np.nanmax(np.abs(wanted)))
    np.testing.assert_array_equal(other.step_index, own.step_index)
    np.testing.assert_array_equal(other.seen, own.seen)
    np.testing.assert_allclose(other.history["valid_loss"], own.history["valid_loss"], rtol=1e-12)
    for name_here, wanted in own.params.items():
        np.testing.assert_allclose(other.params[name_of(name_here)], wanted, rtol=1e-9, atol=1e-9 * ADAM.lr)
