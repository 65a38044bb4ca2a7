"""A score for each validation sample's own loss: against the oracle, in both contractions."""

import re
from typing import Any

import numpy as np
import pytest
from torch_loops import MODELS, Loop, assert_oracle_agrees, labels

torch = pytest.importorskip("torch", reason="extra `torch`")
nn, F = torch.nn, torch.nn.functional
from adamshap.torch import Attribution  # noqa: E402

EACH = {"per_validation": True}


@pytest.mark.parametrize("name", MODELS)
def test_the_scores_of_each_model_are_the_oracle_s(name: str) -> None:
    assert_oracle_agrees(Loop(name, options=EACH | {"gradient": "path", "nodes": (2, 2)}, clip=0.05, parts=2), steps=2)


OPTIONS: dict[str, dict[str, Any]] = {
    "start": {"gradient": "start", "slope": "secant"},
    "SGD at the middle": {"slope": "sgd"},
    "two_term": {"slope": "two_term", "kind": "first"},
    "efficient": {"efficient": True},
    "forward": {"contraction": "forward", "slope": "secant", "gradient": "path", "nodes": (2, 2)},
    "forward, SGD": {"contraction": "forward", "slope": "sgd", "gradient": "start"},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_the_scores_of_each_estimator_are_the_oracle_s(case: str) -> None:
    assert_oracle_agrees(Loop(options=EACH | OPTIONS[case], parts=2), steps=3 if "forward" in case else 2)


def with_conv1d(model: Any) -> None:
    """Replace the first layer by a convolution along one axis."""
    model[0] = nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 3, 2, padding=1, bias=False), nn.Flatten(1))
    model[2], model[3] = nn.LayerNorm(9), nn.Linear(9, 5, bias=False)
    model.double()


def test_a_convolution_along_one_axis() -> None:
    assert_oracle_agrees(Loop(options=EACH, change=with_conv1d), steps=2)


class NoBatch(torch.autograd.Function):  # type: ignore[name-defined,misc]
    """A function whose backward pass cannot be batched."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        (x,) = ctx.saved_tensors
        return gradient * float(gradient.abs().sum() > -1) * 2 * x


@pytest.mark.parametrize("without_batch", [False, True])
def test_the_mean_over_validation_samples_is_the_score(without_batch: bool) -> None:
    """Also where the gradients take a backward pass each."""
    runs = []
    for each in (True, False):
        loop = Loop(options={"per_validation": each})
        if without_batch:
            loop.model.register_forward_hook(lambda module, args, output: NoBatch.apply(output))
        for index in loop.batches(3):
            loop.step(index)
        runs.append(loop.attribution.result())
    assert runs[0].scores.shape == runs[0].sgd_scores.shape == (12, 3)
    for name in ("scores", "sgd_scores"):
        each, mean = (getattr(run, name) for run in runs)
        np.testing.assert_allclose(each.mean(1), mean, rtol=1e-9, atol=1e-12 * abs(each).max())
    np.testing.assert_allclose(runs[0].history["valid_loss"], runs[1].history["valid_loss"], rtol=1e-12)


def test_a_resumed_loop_and_one_without_sgd() -> None:
    options = EACH | {"with_sgd": False, "rank": 2}
    whole, first, second = (Loop("gpt", options=options) for _ in range(3))
    indices = list(whole.batches(4))
    for loop, some in ((whole, indices), (first, indices[:3])):
        for index in some:
            loop.step(index)
    for part in ("model", "adam", "attribution"):
        getattr(second, part).load_state_dict(getattr(first, part).state_dict())
    second.step(indices[3])
    runs = [loop.attribution.result() for loop in (whole, second)]
    np.testing.assert_array_equal(runs[1].scores, runs[0].scores)
    assert np.isnan(runs[0].sgd_scores).all()
    assert runs[0].sgd_scores.shape == (12, 3)


def test_other_validation_losses_are_refused() -> None:
    for other, message in (
        (lambda losses: losses.mean(), "validation(): got a tensor of shape (); needs the validation samples' own"),
        (lambda losses: losses[None], "validation(): got a tensor of shape (1, 3); needs the validation samples' own"),
        (lambda losses: 3.0, "validation(): got 3.0; needs the validation samples' own losses, a tensor of shape"),
    ):
        loop = Loop(options=EACH)
        object.__setattr__(loop.attribution._stack, "loss", lambda loop=loop, other=other: other(loop.validation()))
        with pytest.raises(TypeError, match=re.escape(message)):
            loop.step(torch.arange(5))


def test_another_number_of_validation_losses_is_refused() -> None:
    loop, resumed = Loop(options=EACH), Loop(options=EACH)
    loop.step(torch.arange(5))
    state = loop.attribution.state_dict()
    loop.valid_x, loop.valid_y = loop.x[:4], loop.y[:4]
    with pytest.raises(TypeError, match=r"got a tensor of shape \(4,\); needs .* of shape \(3,\), as before"):
        loop.step(torch.arange(5))
    resumed.attribution.load_state_dict(state)
    resumed.valid_x, resumed.valid_y = resumed.x[:4], resumed.y[:4]
    with pytest.raises(ValueError, match="got 4 losses; needs those of 3 validation samples, as before"):
        resumed.step(torch.arange(5))


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_in_the_validation_is_right_or_refused() -> None:
    """The compiled model may be called in the loop; its backward pass runs once for each forward pass."""
    x, y, scores = torch.randn(12, 6).double(), labels(12), {}
    for where in ("nowhere", "in the loop", "in the validation"):
        torch.manual_seed(0)
        torch._dynamo.reset()
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        compiled = torch.compile(model, backend="aot_eager")
        inside = model if where == "nowhere" else compiled
        valid = compiled if where == "in the validation" else model
        adam = torch.optim.AdamW(model.parameters(), lr=0.01)
        attribution = Attribution(
            model,
            adam,
            validation=lambda valid=valid: F.cross_entropy(valid(x[8:]), y[8:], reduction="none"),
            n_samples=12,
            per_validation=True,
        )
        with attribution.samples(range(8)):
            F.cross_entropy(inside(x[:8]), y[:8]).backward()
        if where == "in the validation":
            with pytest.raises(
                ValueError, match=r"validation\(\): got losses of a compiled model, whose graph PyTorch"
            ):
                adam.step()
        else:
            adam.step()
            scores[where] = attribution.result().scores
    np.testing.assert_allclose(scores["in the loop"], scores["nowhere"], rtol=1e-9)
