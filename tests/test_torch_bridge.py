"""`from_torch`: its step equals torch's, and an uncertain mapping is refused."""

import copy
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adamshap.reference import Adam, Batch, from_torch, scores, update
from adamshap.reference.contract import ActivationName, Loss
from adamshap.verify.implementation import Query
from adamshap.verify.oracle import bounds
from adamshap.verify.tolerance import assert_within

torch = pytest.importorskip("torch", reason="extra `peers`: torch")
nn = torch.nn

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
LAYERS: dict[ActivationName, Callable[[], Any]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


def model_of(activation: ActivationName = "relu", bias: bool = True) -> Any:
    torch.manual_seed(3)
    layer = LAYERS[activation]
    head = nn.Sequential(nn.Linear(6, 4, bias=bias), layer(), nn.Linear(4, 3, bias=bias))
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 6, bias=bias), layer(), head).double()


def batches(loss: Loss, n: int = 7) -> tuple[Batch, Batch]:
    generator = np.random.default_rng(n)

    def batch(count: int) -> Batch:
        x = generator.standard_normal((count, 5))
        return Batch(
            x, generator.integers(0, 3, count) if loss == "cross_entropy" else generator.normal(size=(count, 3))
        )

    return batch(n), batch(4)


def torch_step(model: Any, optimizer: Any, batch: Batch, loss: Loss, reduction: str = "mean") -> None:
    optimizer.zero_grad()
    outputs, y = model(torch.tensor(batch.x)), torch.tensor(batch.y)
    if loss == "cross_entropy":
        value = nn.functional.cross_entropy(outputs, y, reduction=reduction)
    else:
        each = ((outputs - y) ** 2).mean(dim=1)
        value = each.mean() if reduction == "mean" else each.sum()
    value.backward()
    optimizer.step()


def trained(model: Any, optimizer: Any, steps: int = 3) -> None:
    for n in range(2, 2 + steps):
        torch_step(model, optimizer, batches("cross_entropy", n)[0], "cross_entropy")


@pytest.mark.parametrize(
    ("activation", "bias", "loss", "reduction", "kind", "settings", "steps"),
    [
        ("relu", True, "cross_entropy", "mean", "Adam", {}, 0),
        ("tanh", False, "mse", "mean", "AdamW", {"weight_decay": 0.3, "lr": 0.02}, 3),
        ("gelu", True, "cross_entropy", "sum", "AdamW", {"betas": (0.5, 0.9), "eps": 1e-3}, 3),
        ("silu", True, "mse", "sum", "Adam", {"lr": torch.tensor(0.01, dtype=torch.float64), "foreach": False}, 3),
        ("sigmoid", False, "cross_entropy", "mean", "Adam", {"eps": 1e-6}, 0),
        ("identity", True, "cross_entropy", "mean", "AdamW", {"betas": (0.0, 0.99)}, 3),
        ("tanh", True, "mse", "mean", "Adam", {"weight_decay": 0.3, "lr": 0.02}, 3),
        ("gelu", False, "cross_entropy", "mean", "Adam", {"weight_decay": 0.1}, 0),
    ],
)
def test_the_step_is_torchs_own(
    activation: ActivationName, bias: bool, loss: Loss, reduction: Any, kind: str, settings: dict[str, Any], steps: int
) -> None:
    model = model_of(activation, bias)
    optimizer = getattr(torch.optim, kind)(model.parameters(), **settings)
    trained(model, optimizer, steps)
    train, valid = batches(loss)
    step = from_torch(model, optimizer, loss=loss).step(train, valid, reduction)
    assert (step.state.step, step.net.activation, step.net.bias) == (steps, activation, bias)
    torch_step(model, optimizer, train, loss, reduction)
    after = from_torch(model, optimizer, loss=loss)
    params, state = update(step)
    close = bounds(step, Query("update"), np.float64)
    assert after.state.step == state.step == steps + 1
    for name in params:
        assert_within(after.params[name], params[name], close[f"params.{name}"], name)
        assert_within(after.state.m[name], state.m[name], close[f"m.{name}"], f"m {name}")
        assert_within(after.state.v[name], state.v[name], close[f"v.{name}"], f"v {name}")


def test_a_snapshot_does_not_change() -> None:
    model = model_of()
    optimizer = torch.optim.Adam(model.parameters())
    trained(model, optimizer)
    snapshot = from_torch(model, optimizer, loss="cross_entropy")
    groups = (snapshot.params, snapshot.state.m, snapshot.state.v)
    before = [{name: a.copy() for name, a in group.items()} for group in groups]
    trained(model, optimizer)
    for group, old in zip(groups, before, strict=True):
        for name, array in group.items():
            assert np.array_equal(array, old[name])


def test_names_and_a_checkpoint_there_and_back() -> None:
    model = model_of()
    optimizer = torch.optim.AdamW(model.named_parameters(), weight_decay=0.1)
    trained(model, optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    step = from_torch(model, optimizer, loss="cross_entropy").step(*batches("cross_entropy"))
    other = model_of("relu")
    with torch.no_grad():
        other[1].weight.zero_()
    again = torch.optim.AdamW(other.named_parameters())
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    snapshot = from_torch(other, again, loss="cross_entropy")
    assert snapshot.torch_names["1.weight"] == "3.0.weight"
    assert np.array_equal(scores(snapshot.step(step.train, step.valid)), scores(step))


# --- refusals --------------------------------------------------------------------------------------------------------


class Other(nn.Linear):  # type: ignore[misc]
    """A layer of an unknown subclass, which might compute anything."""


def normed() -> Any:
    return nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))


def hooked() -> Any:
    layer = nn.Linear(5, 3)
    layer.register_forward_hook(lambda module, given, output: 2 * output)
    return layer


def shared() -> Any:
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.Tanh(), layer)


def half_frozen() -> Any:
    model = model_of()
    model[1].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: nn.Linear(5, 3), "model: got Linear; needs an nn.Sequential"),
        (lambda: nn.Sequential(nn.Tanh()), "model module 0: got Tanh"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Flatten()), "model: got no nn.Linear layer"),
        (lambda: nn.Sequential(nn.Linear(5, 3), nn.Tanh()), "an activation after the last layer"),
        (
            lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)),
            "model: got the activations tanh, relu;",
        ),
        (
            lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.Linear(3, 2)),
            "model: got the activations tanh, none;",
        ),
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.ReLU(), nn.Linear(4, 3)), "tanh then relu"),
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.LeakyReLU(), nn.Linear(4, 3)), "model module 1: got LeakyReLU"),
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(), nn.Linear(4, 3)), "model module 1: got Dropout"),
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.GELU("tanh"), nn.Linear(4, 3)), "approximate='tanh'"),
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(3, 2)), "layers that fit"),
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2, bias=False)), "biases in all layers or in none"),
        (lambda: nn.Sequential(Other(5, 3)), "model module 0: got Other"),
        (lambda: nn.Sequential(normed()), "model module 0: got ParametrizedLinear"),
        (lambda: nn.Sequential(hooked()), "model module 0: got a module with hooks"),
        (shared, "2 parameters for 4 needed"),
        (half_frozen, "model parameter 1.weight: got requires_grad=False"),
        (lambda: nn.Sequential(nn.Linear(5, 3).half()), "dtype torch.float16"),
    ],
)
def test_models_that_are_refused(model: Callable[[], Any], words: str) -> None:
    made = model()
    with pytest.raises((ValueError, TypeError)) as refusal:
        from_torch(made, torch.optim.Adam([*made.parameters()] or [torch.zeros(1)]), loss="mse")
    assert words in str(refusal.value)


def permuted_names(model: Any) -> Any:
    """Return an optimiser with the names of two parameters of the same shape swapped."""
    names = dict(model.named_parameters())
    swapped = {"1.weight": "3.weight", "3.weight": "1.weight"}
    return torch.optim.Adam([(swapped.get(name, name), p) for name, p in names.items()])


def groups_of(model: Any, **second: Any) -> Any:
    first, *rest = model.parameters()
    return torch.optim.Adam([{"params": [first]}, {"params": rest, **second}])


def changed_state(change: Callable[[dict[str, Any]], Any]) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        optimizer = torch.optim.Adam(model.parameters())
        trained(model, optimizer)
        change(optimizer.state[model[3].weight])
        return optimizer

    return make


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (lambda model: torch.optim.SGD(model.parameters(), lr=0.1), "optimizer: got SGD"),
        (lambda model: torch.optim.NAdam(model.parameters()), "optimizer: got NAdam"),
        (lambda model: torch.optim.Adam(model.parameters(), amsgrad=True), "param_groups[0] amsgrad: got True"),
        (lambda model: torch.optim.AdamW(model.parameters(), maximize=True), "param_groups[0] maximize: got True"),
        (lambda model: groups_of(model, amsgrad=True), "optimizer.param_groups[1] amsgrad: got True"),
        (permuted_names, "optimizer: got the name '3.weight' for the model's '1.weight'"),
        (lambda model: torch.optim.Adam(model[1].parameters()), "optimizer: got no parameter 3.weight, 3.bias"),
        (lambda model: torch.optim.Adam(copy.deepcopy(model).parameters()), "that is not the model's"),
        (changed_state(dict.clear), "optimizer.state of 3.weight: got no step, exp_avg, exp_avg_sq"),
        (changed_state(lambda state: state.pop("exp_avg_sq")), "optimizer.state of 3.weight: got no exp_avg_sq"),
        (changed_state(lambda state: state.update(step=torch.tensor(9.0))), "one number of steps"),
        (changed_state(lambda state: state.update(step=torch.tensor(2.5))), "step: got 2.5"),
        (changed_state(lambda state: state.update(exp_avg=torch.zeros(5))), "exp_avg: got shape (5,)"),
        (changed_state(lambda state: state["exp_avg_sq"].neg_()), "AdamState.v['1.weight']"),
    ],
)
def test_optimizers_that_are_refused(optimizer: Callable[[Any], Any], words: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)).double()
    with pytest.raises((ValueError, TypeError)) as refusal:
        from_torch(model, optimizer(model), loss="cross_entropy")
    assert words in str(refusal.value)


def test_a_checkpoint_in_another_order_is_refused() -> None:
    """Torch loads moments by position, regardless of names: here into a wrong layer of the same shape."""
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5)).double()
    optimizer = torch.optim.Adam(model.named_parameters())
    trained(model, optimizer)
    names = ["2.weight", "2.bias", "0.weight", "0.bias"]
    again = torch.optim.Adam([(name, model.get_parameter(name)) for name in names])
    again.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="of another order"):
        from_torch(model, again, loss="cross_entropy")


def test_a_loss_must_be_named() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="loss: got 'nll'"):
        from_torch(model, torch.optim.Adam(model.parameters()), loss="nll")  # type: ignore[arg-type]


def test_equal_groups_are_one() -> None:
    model = model_of()
    trained(model, optimizer := groups_of(model))
    snapshot = from_torch(model, optimizer, loss="mse")
    assert (snapshot.state.step, snapshot.adam) == (3, Adam())


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_groups_keep_their_own_settings(kind: str) -> None:
    """A step, and after it another with a learning rate that a scheduler has changed, of every group in another way."""
    model = model_of("tanh")
    first, *rest = model.parameters()
    groups = [
        {"params": rest[1:], "lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.2},
        {"params": [first], "eps": 1e-3},
        {"params": [rest[0]], "lr": 0.05, "weight_decay": 0.4},
    ]
    optimizer = getattr(torch.optim, kind)(groups, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda t: 1 / (t + 1), lambda t: 1.0, lambda t: 2.0 + t])
    for n in (5, 7):
        step = from_torch(model, optimizer, loss="cross_entropy").step(*batches("cross_entropy", n))
        decay = "l2" if kind == "Adam" else "weight_decay"
        assert [getattr(step.settings(name), decay) for name in ("0.weight", "0.bias", "1.weight")] == [0, 0.4, 0.2]
        torch_step(model, optimizer, step.train, "cross_entropy")
        scheduler.step()
        params, _ = update(step)
        after, close = from_torch(model, optimizer, loss="cross_entropy"), bounds(step, Query("update"), np.float64)
        for name in params:
            assert_within(after.params[name], params[name], close[f"params.{name}"], name)


def test_the_example_finds_wrong_labels(capsys: pytest.CaptureFixture[str]) -> None:
    found = runpy.run_path(str(EXAMPLES / "torch_loop.py"))
    hits = int(np.isin(found["lowest"], found["wrong"]).sum())
    assert capsys.readouterr().out == f"{hits} of the 40 lowest scores are wrong labels\n"
    # By chance 40·40/400, with the standard deviation of the hypergeometric distribution.
    count, wrong = len(found["totals"]), len(found["wrong"])
    spread = np.sqrt(wrong * (wrong / count) * (1 - wrong / count) * (count - wrong) / (count - 1))
    assert hits > wrong**2 / count + 5 * spread
