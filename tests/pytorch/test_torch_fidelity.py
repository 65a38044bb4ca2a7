"""The oracle for a PyTorch model: its step, and the correlation of scores with exact marginals."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch_loops import CLOSE, MODELS, Loop, cross_entropy, labels

from adamshap import reference
from adamshap.reference import Batch, from_torch
from adamshap.reference.contract import GRADIENTS, MARGINALS, SCORE_SLOPES, Array, Estimator, Marginals
from adamshap.verify.tolerance import estimator_magnitude

torch = pytest.importorskip("torch", reason="extra `torch`")
nn, F = torch.nn, torch.nn.functional
from adamshap.torch import fidelity, torch_step  # noqa: E402
from adamshap.torch.oracle.comparison import correlation  # noqa: E402

U = float(np.finfo(np.float64).eps) / 2


def losses(model: Any, batch: Any) -> Any:
    return cross_entropy()(model(batch[0]), batch[1])


def decay_of_matrices(model: Any) -> Any:
    """Return an optimiser with groups: vectors have no decay, and another learning rate."""
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == high] for high in (True, False))
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0, "lr": 0.03}]
    return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)


def trained(loop: Loop, steps: int = 2) -> Loop:
    for index in loop.batches(steps):
        loop.step(index)
    return loop


def step_of(loop: Loop, n: int = 6, **options: Any) -> Any:
    return torch_step(loop.model, loop.adam, losses, (loop.x[:n], loop.y[:n]), (loop.valid_x, loop.valid_y), **options)


def described(decoupled: bool) -> tuple[Any, Any, Any, Any]:
    """Return a perceptron that the oracle can describe, in float32, after some steps, its optimiser and data."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    groups = [{"params": [model[0].weight, model[2].weight]}, {"params": [model[0].bias, model[2].bias], "lr": 0.03}]
    adam = kind(groups, lr=0.01, weight_decay=0.1)
    data, valid = ((torch.randn(n, 4), torch.randint(0, 3, (n,))) for n in (6, 5))
    for _ in range(3):
        adam.zero_grad()
        F.cross_entropy(model(data[0]), data[1]).backward()
        adam.step()
    return model, adam, data, valid


@pytest.mark.parametrize("decoupled", [True, False])
def test_every_function_of_the_oracle_gives_what_it_gives_for_the_described_network(decoupled: bool) -> None:
    model, adam, data, valid = described(decoupled)
    mine = torch_step(model, adam, losses, data, valid)
    batches = (Batch(x.numpy(), y.numpy()) for x, y in (data, valid))
    theirs = from_torch(model, adam, loss="cross_entropy").step(*batches).as_float64()
    names = {"0.weight": "0.weight", "1.weight": "2.weight", "0.bias": "0.bias", "1.bias": "2.bias"}
    for name, torch_name in names.items():
        for one, other in (
            (theirs.params, mine.params),
            (theirs.state.m, mine.state.m),
            (theirs.state.v, mine.state.v),
        ):
            np.testing.assert_array_equal(one[name], other[torch_name])
        assert theirs.settings(name) == mine.settings(torch_name)
        assert theirs.state.step == mine.state.step == 3
    for slope in SCORE_SLOPES:
        for gradient in GRADIENTS:
            one, other = (reference.scores(step, slope, gradient) for step in (mine, theirs))
            size = estimator_magnitude(theirs, Estimator(slope, gradient))
            assert np.all(np.abs(one - other) <= CLOSE * size), (slope, gradient)
    for kind in MARGINALS:
        one, other = (reference.marginals(step, kind) for step in (mine, theirs))
        loss = reference.utility(theirs, np.zeros(6, bool))
        np.testing.assert_allclose(one.values, other.values, rtol=0, atol=CLOSE * max(abs(other.total), abs(loss)))
        assert np.abs(other.values).max() > 1e-3
    one, other = (reference.influence(step) for step in (mine, theirs))
    np.testing.assert_allclose(one, other, rtol=CLOSE)
    one, other = (reference.scores(step, per_validation=True) for step in (mine, theirs))
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=CLOSE * np.abs(other).max())


@pytest.mark.parametrize("name", MODELS)
def test_the_step_of_each_model_is_that_of_a_loop_in_double(name: str) -> None:
    """Layers, ties, groups without decay, clipping; the loop's own oracle is written apart, in `torch_loops`."""
    loop = trained(Loop(name, decay_of_matrices, clip=0.05))
    loop.weights = torch.ones(loop.count).double()
    mine = step_of(loop, reduction="sum", clip=0.05)
    theirs = loop.oracle_step(np.arange(6))
    assert list(mine.params) == list(theirs.params)
    size = estimator_magnitude(theirs, Estimator("secant", "path"))
    assert np.all(
        np.abs(reference.scores(mine, "secant", "path") - reference.scores(theirs, "secant", "path")) <= CLOSE * size
    )
    one, other = (reference.marginals(step, "last") for step in (mine, theirs))
    np.testing.assert_allclose(one.values, other.values, rtol=0, atol=CLOSE * abs(other.total))


class OfOthers(nn.Module):  # type: ignore[name-defined,misc]
    """Modules for which vmap has no rule, a parameter that nothing uses, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.attention = (
            nn.LSTM(3, 4, batch_first=True),
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        )
        self.head, self.idle, self.fixed = nn.Linear(4, 3), nn.Linear(2, 2), nn.Linear(3, 3)
        self.fixed.requires_grad_(False)

    def forward(self, x: Any) -> Any:
        return self.head(self.attention(self.rows(self.fixed(x))[0]).mean(1))


def test_where_vmap_fails_the_passes_of_single_samples_give_the_gradients() -> None:
    torch.manual_seed(0)
    model = OfOthers().eval()
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    data = {"x": torch.randn(5, 4, 3), "y": labels(5)}
    step = torch_step(model, adam, lambda m, one: cross_entropy()(m(one["x"]), one["y"]), data, data)
    assert not any(name.startswith(("idle", "fixed")) for name in step.params)
    x = reference.models.sample_gradients(step)
    double = OfOthers().eval().double()
    double.load_state_dict(model.state_dict())
    for i in range(5):
        double.zero_grad()
        (F.cross_entropy(double(data["x"].double()[i : i + 1]), data["y"][i : i + 1]) / 5).backward()
        for name in step.params:
            wanted = double.get_parameter(name).grad.numpy()
            assert np.abs(x[name][i] - wanted).max() <= 1e4 * U * np.abs(wanted).max(), name


def test_a_model_stays_as_it_is_beside_an_attribution() -> None:
    loop = trained(Loop("patches"))
    before = {name: p.clone() for name, p in loop.model.state_dict().items()}
    state, modes = torch.get_rng_state(), [module.training for module in loop.model.modules()]
    step_of(loop)
    with loop.attribution.samples(torch.arange(3)):  # hooks are at work
        fidelity(loop.model, loop.adam, losses, (loop.x[:4], loop.y[:4]), (loop.valid_x, loop.valid_y), kind="first")
        loop.loss(torch.arange(3)).backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in loop.model.modules()] == modes
    assert all(torch.equal(before[name], p) for name, p in loop.model.state_dict().items())
    loop.adam.step()
    assert loop.attribution.result().seen[:3].min() > 0


# --- how good the scores are -----------------------------------------------------------------------------------------


CHOICES: list[tuple[str, Any, Any, Any]] = [
    ("gpt", "shapley", "secant", "path"),
    ("image", "first", "secant", "path"),
    ("perceptron", "last", "two_term", "midpoint"),  # its Γ is taken on a part of the way
]


@pytest.mark.parametrize(("name", "kind", "slope", "gradient"), CHOICES)
def test_the_table_has_the_oracle_s_scores_and_marginals(name: str, kind: Any, slope: Any, gradient: Any) -> None:
    loop = trained(Loop(name, decay_of_matrices))
    data = (loop.x[:5], loop.y[:5]), (loop.valid_x, loop.valid_y)
    found = fidelity(loop.model, loop.adam, losses, *data, slope=slope, gradient=gradient, kind=kind, nodes=(4, 2))
    step = step_of(loop, 5)
    exact = reference.marginals(step, kind)
    np.testing.assert_array_equal(found.marginals.values, exact.values)
    assert set(found.scores) == {(s, g) for s in SCORE_SLOPES for g in ("start", "midpoint")} | {(slope, gradient)}
    for (one, where), values in found.scores.items():
        own = {"kind": kind} if one == "two_term" else {}
        nodes = (4, 2) if one == slope else None
        np.testing.assert_allclose(values, reference.scores(step, one, where, nodes=nodes, **own), rtol=1e-9)
        assert found.correlation[one, where] == pytest.approx(np.corrcoef(values, exact.values)[0, 1], abs=1e-12)
        assert found.error[one, where] == 0
    text = str(found)
    assert f"R with {'Shapley values' if kind == 'shapley' else ''}" in text
    assert [line.split()[0] for line in text.splitlines()[2:]] == list(SCORE_SLOPES)
    assert next(line for line in text.splitlines() if "←" in line).startswith(slope)


def test_drawn_orders_bring_error_bars_that_hold() -> None:
    loop = trained(Loop("perceptron", count=14), 1)
    data = (loop.x[:7], loop.y[:7]), (loop.valid_x, loop.valid_y)
    exact = fidelity(loop.model, loop.adam, losses, *data, permutations=16)
    assert (exact.permutations, exact.ceiling) == (0, 1.0)  # 2⁷ coalitions are no more than 16 · 8
    key, draws = ("sgd", "midpoint"), []
    for seed in range(20):
        drawn = fidelity(loop.model, loop.adam, losses, *data, permutations=14, seed=seed)
        assert drawn.permutations == 14
        r = np.corrcoef(drawn.marginals.values, exact.marginals.values)[0, 1]
        draws.append((drawn.correlation[key], drawn.error[key], 1 - r, 1 - drawn.ceiling))
    found, errors, lost, expected = np.array(draws).T
    assert 0.5 < np.sqrt(np.mean(errors**2)) / found.std() < 2  # 20 draws: a standard deviation is known to 16 %
    assert 0.5 < expected.mean() / lost.mean() < 2
    assert abs(found.mean() - exact.correlation[key]) < 4 * found.std() / math.sqrt(20) + expected.mean()
    assert "(14 orders drawn; exact values would have R ≈ 0." in str(drawn)
    assert " ± " in str(drawn)
    assert " ± " not in str(exact)


def test_the_error_of_r_is_its_derivative_s() -> None:
    generator = np.random.default_rng(0)
    scores, values, error = (generator.normal(size=9) for _ in range(3))

    def r(shift: Array) -> float:
        return float(np.corrcoef(scores, values + shift)[0, 1])

    h = 1e-6
    slopes = [(r(h * one) - r(-h * one)) / (2 * h) for one in np.eye(9)]
    got = correlation(scores, Marginals(values, 0.0, 0.0, np.abs(error)))
    assert got == pytest.approx((r(np.zeros(9)), np.linalg.norm(slopes * error)), rel=1e-8)
    assert np.isnan(correlation(np.ones(9), Marginals(values, 0.0, 0.0, error))).all()


# --- what is refused -------------------------------------------------------------------------------------------------


def batch_norm() -> Any:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def of_the_batch(model: Any, batch: Any) -> Any:
    outputs = model(batch[0])
    return cross_entropy()(outputs - outputs.mean(0), batch[1])


def detached_mean(model: Any, batch: Any) -> Any:
    """Losses that add up to another gradient than the samples' own: no loss shows it."""
    outputs = model(batch[0])
    mean = outputs.mean(0)
    return cross_entropy()(outputs, batch[1]) + (mean - mean.detach()).sum()


MISTAKES: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "batch norm": (batch_norm, losses, "with '1', a batch norm in training mode; needs losses that do not depend"),
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), losses, "with other random numbers"),
    "a loss of the batch": (lambda: nn.Linear(4, 3), of_the_batch, "in its batch and .* in half of it; needs losses"),
    "one number": (lambda: nn.Linear(4, 3), lambda m, b: F.cross_entropy(m(b[0]), b[1]), "a tensor of shape ()"),
    "too few": (lambda: nn.Linear(4, 3), lambda m, b: losses(m, b)[1:], "got 5 losses for 3 samples; needs losses"),
    "float32": (lambda: nn.Linear(4, 3), lambda m, b: losses(m, b).float(), "losses of torch.float32; needs float64"),
    "another model": (lambda: nn.Linear(4, 3), lambda m, b: b[0].sum(1), "depend on none of the model's trained"),
    "not finite": (lambda: nn.Linear(4, 3), lambda m, b: losses(m, b) / 0, "a loss that is not finite"),
    "no function": (lambda: nn.Linear(4, 3), "losses", "losses: got 'losses'; needs a function of a model and a batch"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_by_what_it_is(mistake: str) -> None:
    build, function, message = MISTAKES[mistake]
    torch.manual_seed(0)
    model = build()
    data = torch.randn(6, 4), labels(6)
    with pytest.raises((ValueError, TypeError, FloatingPointError), match=message.replace("()", r"\(\)")):
        torch_step(model, torch.optim.Adam(model.parameters()), function, data, data)


def test_gradients_that_do_not_add_up_are_refused() -> None:
    model = nn.Linear(4, 3)
    data = torch.randn(6, 4), labels(6)
    step = torch_step(model, torch.optim.Adam(model.parameters()), detached_mean, data, data)
    one = step.net.gradients.__self__  # type: ignore[attr-defined]
    one._each_gradient = lambda tensors, samples, index: {
        name: np.stack([x.numpy() for x in parts])
        for name, parts in {
            key: [one._gradient(tensors, samples, index[i : i + 1])[key] * (i > 0) for i in index] for key in tensors
        }.items()
    }
    with pytest.raises(ValueError, match="gradients of 'weight' of single samples that miss the batch's"):
        reference.influence(step)


def test_parameters_with_other_numbers_of_steps_are_refused() -> None:
    loop = trained(Loop())
    loop.adam.state[loop.model[0].weight]["step"] += 1
    with pytest.raises(ValueError, match=r"optimizer.state: got 2 steps of '.*' and 3 of '0.weight'"):
        step_of(loop)


def test_a_model_too_large_for_every_x_i_is_refused_by_its_size() -> None:
    loop = Loop()
    count = sum(p.numel() for p in loop.model.parameters())
    size = 8 * count * 9
    data = (loop.x[:6], loop.y[:6]), (loop.valid_x, loop.valid_y)
    with pytest.raises(
        ValueError, match=rf"gradients of 6 \+ 3 samples of {count} parameters, .* at most limit={size - 1}"
    ):
        fidelity(loop.model, loop.adam, losses, *data, limit=size - 1)
    fidelity(loop.model, loop.adam, losses, *data, limit=size, kind="first")
