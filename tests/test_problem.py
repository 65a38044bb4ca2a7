"""The contract keeps arrays unchanged, and defines names, shapes and the order of samples."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from refusals import NET, PARAMS, X, Y, batch, step

from adamshap import gpu, reference
from adamshap.reference import Adam, AdamState, Batch, LazyRows, Network, scores
from adamshap.reference.contract import batch_order


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
    x[0, 0] = 2.0  # the caller's own array stays writable


def test_dlpack_tensors_share_their_memory_and_gradients_are_refused() -> None:
    torch = pytest.importorskip("torch", reason="extra `peers`: torch")
    tensor = torch.ones(5, 3)
    batch = Batch(tensor, torch.tensor([0, 1, 0, 1, 1]))
    assert batch.x.dtype == np.float32
    assert batch.x.ctypes.data == tensor.data_ptr()
    with pytest.raises(TypeError, match=r"Batch\.x: got Tensor that is not an array"):
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


# --- arrays of other libraries: used unchanged, or refused -----------------------------------------------------------

MASKED = np.ma.masked_equal(np.arange(15.0).reshape(5, 3), 3)


def snapshot() -> dict[str, Any]:
    kept: list[Any] = []
    reference.attribute(NET, Adam(), batch(), batch(), epochs=1, on_checkpoint=lambda _, take: kept.append(take()))
    return kept[0]


MASKED_CALLS: dict[str, Callable[[], Any]] = {
    "Batch.x": lambda: Batch(MASKED, Y),
    "Batch.y": lambda: Batch(X, np.ma.masked_equal(Y, 1)),
    "Batch.y: got a masked array with 0 masked values": lambda: Batch(X, np.ma.array(Y)),
    "Batch.x: got a masked array with 1 masked values": lambda: Batch(list(MASKED), Y),
    "LazyRows.source": lambda: LazyRows(MASKED),
    "LazyRows.index": lambda: LazyRows(X, np.ma.masked_equal(Y, 1)),
    "LazyRows.mean": lambda: LazyRows(X, mean=MASKED[1]),
    "LazyRows.scale": lambda: LazyRows(X, scale=MASKED[1]),
    "index": lambda: batch().take(np.ma.masked_equal(Y, 1)),
    "Step.params['0.bias']": lambda: step(params=PARAMS | {"0.bias": np.ma.zeros(4)}),
    "AdamState.m['0.bias']": lambda: AdamState(1, PARAMS | {"0.bias": np.ma.zeros(4)}, PARAMS),
    "AdamState.v['0.bias']": lambda: AdamState(1, PARAMS, PARAMS | {"0.bias": np.ma.zeros(4)}),
    "coalition": lambda: reference.utility(step(), np.ma.masked_equal(Y == 1, True)),
    "resume['seen']": lambda: reference.attribute(
        NET, Adam(), batch(), batch(), epochs=1, resume=(kept := snapshot()) | {"seen": np.ma.array(kept["seen"])}
    ),
    "samples[1]": lambda: reference.retrained(
        reference.attribute(NET, Adam(), batch(), batch(), epochs=1), np.ma.masked_equal(Y, 1)
    ),
}


@pytest.mark.parametrize("field", MASKED_CALLS)
def test_a_mask_is_never_dropped(field: str) -> None:
    with pytest.raises(TypeError) as caught:
        MASKED_CALLS[field]()
    assert str(caught.value).startswith(field)
    assert "masked" in str(caught.value)


def foreign(name: str) -> Any:
    """Return an array of another library."""
    library, kind = name.split()
    table = np.arange(15.0).reshape(5, 3)
    if library == "scipy":
        sparse = pytest.importorskip("scipy.sparse", reason="extra `demo`: scikit-learn")
        return getattr(sparse, kind)(table)
    if library == "pandas":
        pandas = pytest.importorskip("pandas", reason="extra `tables`: pandas")
        frame = pandas.DataFrame(table)
        return {
            "numbers": frame,
            "missing": frame.mask(frame == 3),
            "nullable": frame.astype("Int64").mask(frame == 3),
            "mixed": frame.assign(more=["x"] * 5),
            "labels": pandas.Series(Y, index=[3, 1, 0, 2, 4]),
            "absent": pandas.Series(Y, dtype="Int64").mask(Y == 1),
            "categories": pandas.Series(list("ababa"), dtype="category"),
        }[kind]
    if library == "torch":
        torch = pytest.importorskip("torch", reason="extra `peers`: torch")
        return {
            "half": lambda: torch.ones(5, 3, dtype=torch.float16),
            "bfloat16": lambda: torch.ones(5, 3, dtype=torch.bfloat16),
            "meta": lambda: torch.ones(5, 3, device="meta"),
            "sparse": lambda: torch.eye(5, 3).to_sparse(),
            "grads": lambda: [torch.ones(3, requires_grad=True)] * 5,
        }[kind]()
    kinds = {"matrix": table.view(np.matrix), "big-endian": table.astype(">f8"), "backwards": table[::-1]}
    kinds |= {"records": np.rec.fromarrays([table[:, 0], table[:, 1]])}
    return kinds[kind]


@pytest.mark.parametrize(
    "name", ["pandas numbers", "torch half", "numpy matrix", "numpy big-endian", "numpy backwards"]
)
def test_numbers_of_other_libraries_are_used_unchanged(name: str) -> None:
    given = foreign(name)
    plain = np.ascontiguousarray(given, np.float64)
    batch_, same = Batch(given, Y), Batch(plain, Y)
    assert type(batch_.x) is np.ndarray
    for module in (reference, gpu):
        np.testing.assert_array_equal(module.scores(step(train=batch_)), module.scores(step(train=same)))


def test_labels_are_used_in_order_regardless_of_their_index() -> None:
    np.testing.assert_array_equal(Batch(X, foreign("pandas labels")).y, Y)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("scipy csr_matrix", "a sparse matrix; needs .* such as its `toarray"),
        ("scipy csr_array", "a sparse matrix; needs .* such as its `toarray"),
        ("pandas missing", "1 values that are NaN"),
        ("pandas nullable", "DataFrame of dtype object; needs .*`to_numpy"),
        ("pandas mixed", "DataFrame of dtype object; needs .*`to_numpy"),
        ("torch bfloat16", "Tensor that is not an array .*; needs real numbers"),
        ("torch meta", "Tensor that is not an array .*; needs real numbers"),
        ("torch sparse", "Tensor that is not an array .*; needs real numbers"),
        ("torch grads", "list that is not an array .*detach.*; needs real numbers"),
        ("numpy records", "dtype .*f0.*; needs real numbers"),
    ],
)
def test_inputs_that_are_not_a_table_of_numbers_are_refused(name: str, says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^Batch\.x: got .*{says}"):
        Batch(foreign(name), Y)


@pytest.mark.parametrize("name", ["pandas absent", "pandas categories"])
def test_invalid_labels_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"^Batch\.y: got .*; needs integer labels"):
        Batch(X, foreign(name))


# --- numbers beyond the dtype ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda who, given: who.update(given),
        lambda who, given: who.scores(given),
        lambda who, given: who.influence(given),
        lambda who, given: who.marginals(given),
        lambda who, given: who.utility(given, [True] * 5),
    ],
)
def test_a_step_with_results_beyond_the_dtype_is_refused(call: Any) -> None:
    net = Network((3, 2), loss="mse")
    params = net.init(0)
    for who, most, wider in ((reference, 1e300, ""), (gpu, 1e38, ", or dtype='float64'")):
        data = Batch(np.full((5, 3), most), np.zeros((5, 2)))
        given = step(net=net, params=params, state=AdamState.zeros(params), train=data, valid=data)
        with pytest.raises(ValueError, match=rf"^step: got a step with .* beyond float.*lr{wider} may help$"):
            call(who, given)


@pytest.mark.parametrize("field", ["train.x", "valid.x", "train.y", "valid.y"])
@pytest.mark.parametrize("credit", ["step", "carry"])
def test_data_beyond_the_engines_dtype_are_refused(field: str, credit: Any) -> None:
    net = Network((3, 2), loss="mse")
    params = net.init(0)
    data = {name: {"x": X.copy(), "y": np.zeros((5, 2))} for name in ("train", "valid")}
    batch_name, part = field.split(".")
    data[batch_name][part][2, 1] = 1e39
    train, valid = (Batch(**data[name]) for name in ("train", "valid"))
    with pytest.raises(ValueError, match=rf"^Step\.{field}: got 1 values beyond float32; needs smaller values"):
        gpu.scores(step(net=net, params=params, state=AdamState.zeros(params), train=train, valid=valid))
    with pytest.raises(ValueError, match=rf"^{field}: got 1 values beyond float32; needs smaller values"):
        gpu.attribute(net, Adam(), train, valid, epochs=1, credit=credit)


@pytest.mark.parametrize("field", ["params", "m", "v"])
def test_a_state_beyond_the_engines_dtype_is_refused(field: str) -> None:
    named = {name: {key: p**2 for key, p in PARAMS.items()} for name in ("params", "m", "v")}
    named[field]["0.bias"] = np.full(4, 1e39)
    where = "params" if field == "params" else f"state.{field}"
    with pytest.raises(ValueError, match=rf"^Step\.{where}\['0\.bias'\]: got 4 values beyond float32"):
        gpu.scores(step(params=named["params"], state=AdamState(1, named["m"], named["v"])))


@pytest.mark.parametrize("value", [np.ones((3, 3)), {"a": np.eye(4)}, np.ma.masked_equal([1, 2], 2), "two\nlines"])
def test_a_refusal_is_one_line_for_any_value(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^AdamState.step: got .+; needs an integer of at least 0\Z") as refused:
        AdamState(value, PARAMS, PARAMS)
    assert "\n" not in str(refused.value)
