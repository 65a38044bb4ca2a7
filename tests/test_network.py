"""The network's gradients against central differences of its own losses, and against torch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamshap.reference import models
from adamshap.reference.contract import ACTIVATIONS, LOSSES, Array, Batch, Network, Params, Step
from adamshap.verify.strategies import batches, networks, seeds, steps
from adamshap.verify.tolerance import assert_within, conditioning, rounding, unit_roundoff


def flat(params: Params, n: int) -> Array:
    return np.concatenate([p.reshape(n, -1) for p in params.values()], axis=1)


smooth_steps = steps(max_depth=3, max_width=6, max_n=4, max_n_val=1).filter(lambda step: step.net.activation != "relu")


@given(smooth_steps, seeds)
def test_sample_gradients_are_the_slope_of_each_loss(step: Step, seed: int) -> None:
    """Central differences along a random direction; halving the stride measures their own error.

    ReLU has kinks that a stride may cross; it is only checked against torch.
    """
    net, params, batch = step.net, step.params, step.train
    generator = np.random.default_rng(seed)
    direction = {name: generator.standard_normal(p.shape) for name, p in params.items()}

    def losses(stride: float) -> Array:
        return models.sample_losses(net, {name: p + stride * direction[name] for name, p in params.items()}, batch)

    def difference(stride: float) -> Array:
        return (losses(stride) - losses(-stride)) / (2 * stride)

    # The cube root of u balances a second-order truncation error with rounding.
    stride = unit_roundoff(np.float64) ** (1 / 3)
    coarse, fine = difference(2 * stride), difference(stride)
    truncation = np.abs(coarse - fine)
    noise = rounding(np.abs(losses(0.0)) + flat(params, 1).size, 1) / stride
    gradients = models.each_gradient(net, params, batch)
    got = flat(gradients, batch.n) @ flat(direction, 1)[0]
    assert_within(got, fine, truncation + noise, "directional derivative")


def torch_sample_gradients(net: Network, params: Params, batch: Batch) -> list[Params]:
    """Return gradients from one backward pass per sample, through torch's layers and losses."""
    torch = pytest.importorskip("torch", reason="extra `peers`: torch")
    activation = {
        "relu": torch.nn.ReLU,
        "tanh": torch.nn.Tanh,
        "gelu": torch.nn.GELU,
        "silu": torch.nn.SiLU,
        "sigmoid": torch.nn.Sigmoid,
        "identity": torch.nn.Identity,
    }[net.activation]
    linears = [
        torch.nn.Linear(i, o, net.bias, dtype=torch.float64) for i, o in zip(net.sizes, net.sizes[1:], strict=False)
    ]
    for layer, linear in enumerate(linears):
        linear.load_state_dict(
            {name.split(".")[1]: torch.tensor(p) for name, p in params.items() if name.startswith(f"{layer}.")}
        )
    modules = [module for linear in linears for module in (linear, activation())][:-1]
    model = torch.nn.Sequential(*modules)
    loss = torch.nn.CrossEntropyLoss() if net.loss == "cross_entropy" else torch.nn.MSELoss()
    result = []
    for x, y in zip(torch.tensor(batch.x.copy()), torch.tensor(batch.y.copy()), strict=True):
        model.zero_grad()
        loss(model(x[None]), y[None]).backward()
        result.append(
            {
                f"{layer}.{kind}": p.grad.numpy().copy()
                for layer, linear in enumerate(linears)
                for kind, p in linear.named_parameters()
            }
        )
    return result


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@settings(max_examples=15)
@given(st.data())
def test_sample_gradients_are_torchs(activation: str, loss: str, data: st.DataObject) -> None:
    step = data.draw(steps(max_depth=4, max_width=9, max_n=5, max_n_val=1))
    net = Network(step.net.sizes, activation, loss, step.net.bias)  # type: ignore[arg-type]
    batch = data.draw(batches(net, 5, "train"))
    step = Step(net, step.params, step.adam, step.state, batch, batch)
    ours = models.each_gradient(net, step.params, batch)
    assert list(ours) == list(net.shapes)
    moved = conditioning(lambda s: flat(models.each_gradient(net, s.params, s.train), batch.n), step)
    theirs = torch_sample_gradients(net, step.params, batch)
    expected = np.stack([flat({name: g[None] for name, g in sample.items()}, 1)[0] for sample in theirs])
    assert_within(flat(ours, batch.n), expected, moved + rounding(gradient_size(step), max(net.sizes)), "x_i")


def gradient_size(step: Step) -> float:
    """Return the largest product in the sum of a gradient's element: |output gradient| · ∏ ‖W‖ · |input|."""
    weights = [np.abs(p).sum(axis=1).max() for name, p in step.params.items() if name.endswith("weight")]
    slack = 1 + np.abs(step.train.x).max()
    outputs = 1 + np.abs(models.outputs(step.net, step.params, step.train.x)).max() + np.abs(step.train.y).max()
    return float(np.prod([max(1.0, w) for w in weights]) * slack * outputs)


def test_relu_has_derivative_zero_at_zero() -> None:
    """The convention is PyTorch's; autograd's own `maximum` splits a tie."""
    net = Network((1, 1, 1), "relu", "mse", bias=False)
    params = {"0.weight": np.array([[0.0]]), "1.weight": np.array([[1.0]])}
    gradients = models.each_gradient(net, params, Batch(np.array([[3.0]]), np.array([[1.0]])))
    assert gradients["0.weight"].item() == 0.0


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_far_out_do_not_overflow(activation: str) -> None:
    net = Network((1, 1, 1), activation, "mse", bias=False)  # type: ignore[arg-type]
    params = {"0.weight": np.eye(1), "1.weight": np.eye(1)}
    with np.errstate(all="raise", under="ignore"):
        gradients = models.each_gradient(net, params, Batch(np.array([[-800.0], [800.0]]), np.ones((2, 1))))
    assert all(np.isfinite(g).all() for g in gradients.values())


@pytest.mark.parametrize("activation", ["sigmoid", "silu", "gelu", "tanh"])
def test_activations_keep_their_relative_digits_far_out(activation: str) -> None:
    """At −30, naive forms of `1 + erf` and `1/(1 + e^30)` keep few correct digits or none."""
    mpmath = pytest.importorskip("mpmath")
    z = np.array([-30.0, -8.0, -1.0, 0.5, 9.0, 30.0])
    formulas = {
        "sigmoid": lambda t: 1 / (1 + mpmath.exp(-t)),
        "silu": lambda t: t / (1 + mpmath.exp(-t)),
        "gelu": lambda t: t * mpmath.erfc(-t / mpmath.sqrt(2)) / 2,
        "tanh": mpmath.tanh,
    }
    with mpmath.workdps(60):
        expected = np.array([float(formulas[activation](mpmath.mpf(float(t)))) for t in z])
    net = Network((1, 1, 1), activation, "mse", bias=False)  # type: ignore[arg-type]
    got = models.outputs(net, {"0.weight": np.eye(1), "1.weight": np.eye(1)}, z[:, None])[:, 0]
    # e^(−z) amplifies z's rounding by |z| (sigmoid) or z² (the normal tail).
    assert_within(got, expected, rounding(np.abs(expected) * (1 + z**2), 1), activation)


@given(networks(), seeds)
def test_init_is_torchs_distribution(net: Network, seed: int) -> None:
    params = net.init(seed)
    assert {name: p.shape for name, p in params.items()} == net.shapes
    for layer, d_in in enumerate(net.sizes[:-1]):
        for kind in ("weight", "bias") if net.bias else ("weight",):
            assert np.abs(params[f"{layer}.{kind}"]).max() <= 1 / np.sqrt(d_in)
    for name, p in net.init(seed).items():
        np.testing.assert_array_equal(p, params[name])


@pytest.mark.parametrize("gap", [1.0, 20.0, 200.0])
def test_cross_entropy_keeps_its_digits_where_the_label_is_nearly_certain(gap: float) -> None:
    """A naive softmax − onehot is a difference of two numbers near 1."""
    net = Network((1, 2), loss="cross_entropy", bias=False)
    params = {"0.weight": np.array([[gap], [0.0]])}
    batch = Batch(np.ones((1, 1)), np.array([0]))
    certain = np.exp(-gap) / (1 + np.exp(-gap))
    for got, expected in (
        (models.sample_losses(net, params, batch), np.log1p(np.exp(-gap))),
        (models.each_gradient(net, params, batch)["0.weight"].ravel(), np.array([-certain, certain])),
    ):
        assert_within(got, np.broadcast_to(expected, got.shape), rounding((1 + gap) * np.abs(expected), 1))


@pytest.mark.parametrize("depth", [1.0, 1e3, 1e7, 1e15])
def test_cross_entropy_keeps_the_others_digits_where_the_label_is_far_below_them(depth: float) -> None:
    """Computing z_j − z_y first would lose the differences between the others in the rounding of large logits."""
    net = Network((1, 3), loss="cross_entropy", bias=False)
    params = {"0.weight": np.array([[0.3], [0.1], [-depth]])}
    batch = Batch(np.ones((1, 1)), np.array([2]))
    weights = np.exp(np.array([0.0, -0.2, -depth - 0.3]))
    p = weights / weights.sum()
    expected = np.array([p[0], p[1], -(p[0] + p[1])])
    got = models.each_gradient(net, params, batch)["0.weight"].ravel()
    assert_within(got, expected, rounding(np.abs(expected), len(p)))
