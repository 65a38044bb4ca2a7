"""The contract keeps what it is given as it came, and fixes names, shapes and the order of samples."""

import dataclasses

import numpy as np
import pytest
from refusals import X, Y, step

from adamshap.reference import Batch, Network, scores
from adamshap.reference.problem import batch_order


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
