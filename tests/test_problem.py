"""The contract refuses what it cannot mean, and names the field, what it got and what it needs."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from adamshap.reference import Adam, AdamState, Batch, Network, Step, marginals, scores, utility
from adamshap.reference.game import sampled_shapley_values
from adamshap.reference.problem import batch_order

NET = Network((3, 4, 2))
PARAMS = NET.init(0)
X, Y = np.ones((5, 3)), np.array([0, 1, 0, 1, 1])


def step(**changes: Any) -> Step:
    fields: dict[str, Any] = {
        "net": NET,
        "params": PARAMS,
        "adam": Adam(),
        "state": AdamState.zeros(PARAMS),
        "train": Batch(X, Y),
        "valid": Batch(X, Y),
    }
    return Step(**(fields | changes))


def with_param(name: str, value: Any) -> dict[str, Any]:
    return {**PARAMS, name: value}


def with_element(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.astype(np.float64)
    changed.flat[1] = value
    return changed


REFUSALS: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    # field, the call, the error, and what the message must say besides the field
    ("Network.sizes", lambda: Network((3,)), ValueError, "at least two"),
    ("Network.sizes", lambda: Network(()), ValueError, "at least two"),
    ("Network.sizes", lambda: Network("34"), TypeError, "at least two"),
    ("Network.sizes", lambda: Network(3), TypeError, "at least two"),
    ("Network.sizes[1]", lambda: Network((3, 0)), ValueError, "at least 1"),
    ("Network.sizes[0]", lambda: Network((3.0, 2)), TypeError, "3.0"),
    ("Network.sizes[0]", lambda: Network((True, 2)), TypeError, "True"),
    ("Network.activation", lambda: Network((3, 2), "swish"), ValueError, "relu, tanh, gelu"),
    ("Network.activation", lambda: Network((3, 2), None), ValueError, "None"),
    ("Network.loss", lambda: Network((3, 2), loss="l1"), ValueError, "cross_entropy, mse"),
    ("Network.bias", lambda: Network((3, 2), bias=1), TypeError, "True or False"),
    ("seed", lambda: NET.init(-1), ValueError, "at least 0"),
    ("seed", lambda: NET.init(0.5), TypeError, "0.5"),
    ("Adam.lr", lambda: Adam(lr=-1e-3), ValueError, "-0.001"),
    ("Adam.lr", lambda: Adam(lr=math.nan), ValueError, "nan"),
    ("Adam.lr", lambda: Adam(lr="0.1"), TypeError, "'0.1'"),
    ("Adam.lr", lambda: Adam(lr=True), TypeError, "True"),
    ("Adam.lr", lambda: Adam(lr=1j), TypeError, "1j"),
    ("Adam.betas", lambda: Adam(betas=0.9), TypeError, "two numbers"),
    ("Adam.betas", lambda: Adam(betas=(0.9,)), TypeError, "two numbers"),
    ("Adam.betas[0]", lambda: Adam(betas=(1.0, 0.9)), ValueError, "[0, 1)"),
    ("Adam.betas[1]", lambda: Adam(betas=(0.9, -0.1)), ValueError, "[0, 1)"),
    ("Adam.betas[1]", lambda: Adam(betas=(0.9, math.inf)), ValueError, "inf"),
    ("Adam.betas[0]", lambda: Adam(betas=(None, 0.9)), TypeError, "None"),
    ("Adam.eps", lambda: Adam(eps=-1e-8), ValueError, "at least 0"),
    ("Adam.eps_root", lambda: Adam(eps_root=-1), ValueError, "at least 0"),
    ("Adam.weight_decay", lambda: Adam(weight_decay=math.inf), ValueError, "finite"),
    ("AdamState.step", lambda: AdamState(-1, PARAMS, PARAMS), ValueError, "at least 0"),
    ("AdamState.step", lambda: AdamState(1.5, PARAMS, PARAMS), TypeError, "1.5"),
    ("AdamState.m", lambda: AdamState(1, [1.0], PARAMS), TypeError, "list"),
    ("AdamState.v", lambda: AdamState(1, {"a": X}, {"b": X}), ValueError, "['b']"),
    ("AdamState.v['a']", lambda: AdamState(1, {"a": X}, {"a": -X}), ValueError, "negative"),
    ("AdamState.v['a']", lambda: AdamState(1, {"a": X}, {"a": X[:2]}), ValueError, "(5, 3)"),
    ("AdamState.m['a']", lambda: AdamState(1, {"a": with_element(X, math.nan)}, {"a": X}), ValueError, "NaN"),
    ("Batch.x", lambda: Batch(X[0], Y), ValueError, "(any, any)"),
    ("Batch.x", lambda: Batch(X[:0], Y[:0]), ValueError, "not empty"),
    ("Batch.x", lambda: Batch(with_element(X, math.inf), Y), ValueError, "1 values that are NaN or infinite"),
    ("Batch.x", lambda: Batch(X.astype(str), Y), TypeError, "dtype <U"),
    ("Batch.x", lambda: Batch(X.astype(complex), Y), TypeError, "complex128"),
    ("Batch.x", lambda: Batch(X.astype(bool), Y), TypeError, "bool"),
    ("Batch.x", lambda: Batch(X.astype(object), Y), TypeError, "object"),
    ("Batch.x", lambda: Batch([[1.0, 2.0], [1.0]], Y), TypeError, "list"),
    ("Batch.y", lambda: Batch(X, Y.astype(float)), TypeError, "integer labels"),
    ("Batch.y", lambda: Batch(X, Y.astype(bool)), TypeError, "bool"),
    ("Batch.y", lambda: Batch(X, Y[:4]), ValueError, "4 rows"),
    ("Batch.y", lambda: Batch(X, with_element(X, math.nan)), ValueError, "NaN"),
    ("Step.net", lambda: step(net=(3, 4, 2)), TypeError, "tuple"),
    ("Step.adam", lambda: step(adam=None), TypeError, "NoneType"),
    ("Step.train", lambda: step(train=(X, Y)), TypeError, "a Batch"),
    ("Step.reduction", lambda: step(reduction="none"), ValueError, "mean, sum"),
    ("Step.params", lambda: step(params={}), ValueError, "0.weight"),
    ("Step.params", lambda: step(params=with_param("2.weight", X)), ValueError, "2.weight"),
    ("Step.params['0.bias']", lambda: step(params=with_param("0.bias", np.ones(3))), ValueError, "(3,)"),
    ("Step.params['0.bias']", lambda: step(params=with_param("0.bias", [math.nan] * 4)), ValueError, "4 values"),
    ("Step.state", lambda: step(state=AdamState.zeros(Network((3, 2)).init(0))), ValueError, "0.weight"),
    ("Step.train.x", lambda: step(train=Batch(X[:, :2], Y)), ValueError, "(5, 3)"),
    ("Step.train.y", lambda: step(train=Batch(X, Y + 1)), ValueError, "labels from 1 to 2"),
    ("Step.valid.y", lambda: step(valid=Batch(X, Y - 1)), ValueError, "labels from -1 to 0"),
    ("Step.valid.y", lambda: step(valid=Batch(X, X)), ValueError, "cross_entropy"),
    ("Step.train.y", lambda: step(net=Network((3, 4, 2), loss="mse")), ValueError, "(5, 2)"),
    ("coalition", lambda: utility(step(), np.ones(5)), TypeError, "boolean mask"),
    ("coalition", lambda: utility(step(), np.ones(4, bool)), ValueError, "(5,)"),
    ("coalition", lambda: utility(step(), [0, 1, 2]), TypeError, "int64"),
    ("kind", lambda: marginals(step(), "middle"), ValueError, "first, last, shapley"),
    ("loss", lambda: marginals(step(), "first", "second_order"), ValueError, "exact, first_order"),
    ("permutations", lambda: sampled_shapley_values(len, 3, permutations=2, seed=0), ValueError, "at least 4"),
    ("permutations", lambda: sampled_shapley_values(len, 3, permutations=5, seed=0), ValueError, "even"),
    ("slope", lambda: scores(step(), "adam"), ValueError, "random_order"),
    ("gradient", lambda: scores(step(), gradient="end"), ValueError, "midpoint"),
    ("denominator", lambda: scores(step(), "linearized", denominator="next"), ValueError, "previous"),
    ("efficient", lambda: scores(step(), efficient="yes"), TypeError, "True or False"),
    ("nodes", lambda: scores(step(), nodes=4), TypeError, "(path, normal)"),
    ("nodes[0]", lambda: scores(step(), nodes=(0, 4)), ValueError, "at least 1"),
    ("nodes[1]", lambda: scores(step(), nodes=(4, 1)), ValueError, "at least 2"),
    ("batch_size", lambda: list(batch_order(5, batch_size=0, epochs=1, seed=0)), ValueError, "at least 1"),
    ("epochs", lambda: list(batch_order(5, batch_size=2, epochs=0, seed=0)), ValueError, "at least 1"),
    ("Adam.eps", lambda: utility(step(adam=Adam(eps=0.0)), np.zeros(5, bool)), ValueError, "denominator of 0"),
]


@pytest.mark.parametrize(("field", "call", "error", "says"), REFUSALS)
def test_bad_input_is_refused_by_name(field: str, call: Callable[[], object], error: type, says: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    message = str(caught.value)
    assert message.startswith(f"{field}: got "), message
    assert "; needs " in message
    assert says in message


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int64, np.uint8])
def test_real_dtypes_are_taken_as_they_are_and_computed_in_float64(dtype: type) -> None:
    x = np.arange(15).reshape(5, 3).astype(dtype)
    given = step(train=Batch(x, Y))
    assert given.train.x.dtype == dtype
    np.testing.assert_array_equal(scores(given), scores(step(train=Batch(x.astype(np.float64), Y))))


def test_arrays_are_read_only_views() -> None:
    x = X.copy()
    batch = Batch(x, Y)
    assert np.shares_memory(batch.x, x)
    with pytest.raises(ValueError, match="read-only"):
        batch.x[0, 0] = 2.0
    x[0, 0] = 2.0  # the caller's own array is the caller's


def test_dlpack_tensors_share_their_memory_and_gradients_are_refused() -> None:
    torch = pytest.importorskip("torch", reason="extra `peers`: torch")
    tensor = torch.ones(5, 3)
    batch = Batch(tensor, torch.tensor([0, 1, 0, 1, 1]))
    assert batch.x.dtype == np.float32
    assert batch.x.ctypes.data == tensor.data_ptr()
    with pytest.raises(TypeError, match=r"Batch\.x: got Tensor that is no array here"):
        Batch(torch.ones(5, 3, requires_grad=True), Y)


def test_instances_are_frozen() -> None:
    given = step()
    for field in dataclasses.fields(given):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(given, field.name, None)


def test_names_follow_torch() -> None:
    assert list(Network((3, 4, 2)).shapes.items()) == [
        ("0.weight", (4, 3)),
        ("0.bias", (4,)),
        ("1.weight", (2, 4)),
        ("1.bias", (2,)),
    ]
    assert list(Network((3, 4, 2), bias=False).shapes) == ["0.weight", "1.weight"]


def test_batches_cover_every_epoch_once_and_the_last_holds_the_rest() -> None:
    order = list(batch_order(10, batch_size=4, epochs=3, seed=1))
    assert [(epoch, len(index)) for epoch, index in order] == [(e, k) for e in range(3) for k in (4, 4, 2)]
    for epoch in range(3):
        assert sorted(np.concatenate([index for e, index in order if e == epoch])) == list(range(10))
    again = list(batch_order(10, batch_size=4, epochs=3, seed=1))
    assert all((a[1] == b[1]).all() for a, b in zip(order, again, strict=True))
    assert any((a[1] != b[1]).any() for a, b in zip(order[:3], order[3:6], strict=True))
