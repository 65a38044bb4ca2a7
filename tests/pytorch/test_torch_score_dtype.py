"""Scores by products in bfloat16, on the host."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch_loops import Loop

from adamshap.reference.contract import Run

torch = pytest.importorskip("torch", reason="extra `torch`")
from adamshap.torch import products, scoring  # noqa: E402

STEPS = 5
FLOAT32 = 2.0**-20
"""Largest error of a sum in float32, over that of its terms: a few roundings."""


def run(name: str, **options: Any) -> Run:
    loop = Loop(name, dtype=torch.float32, options={"slope": "secant", **options})
    for index in loop.batches(STEPS):
        loop.step(index)
    return loop.attribution.result()


def noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any, Any]]:
    """Return the list of what each product in bfloat16 gets and writes."""
    found = []

    def product(a: Any, b: Any, out: Any) -> None:
        products.bfloat16_product(a, b, out)
        found.append((a.astype(float), b.astype(float), out.astype(float)))

    monkeypatch.setattr(scoring, "bfloat16_product", product)
    return found


@pytest.mark.parametrize("name", ["perceptron", "gpt", "image"])
@pytest.mark.parametrize("with_sgd", [True, False])
def test_scores_are_near_those_in_float32(name: str, with_sgd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every term of every product errs by less than `ROUNDING`, and some by a fifth of it: it is not float32's."""
    wanted, found = run(name, with_sgd=with_sgd), noted(monkeypatch)
    got = run(name, with_sgd=with_sgd, score_dtype="bfloat16")
    worst = 0.0
    for a, b, out in found:
        error, size = abs(out - a @ b), abs(a) @ abs(b)
        assert (error <= (products.ROUNDING + FLOAT32) * size).all()
        worst = max(worst, float((error / np.maximum(size, 1e-300)).max()))
    assert worst > products.ROUNDING / 5
    assert np.corrcoef(wanted.scores, got.scores)[0, 1] > 0.999
    assert (wanted.scores != got.scores).any()


def test_sums_of_sgd_scores_allow_for_the_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []
    adds_up: Callable[..., bool] = scoring.adds_up
    monkeypatch.setattr(scoring, "adds_up", lambda *given: found.append(adds_up(*given)) or found[-1])
    run("gpt", score_dtype="bfloat16")
    assert found == [True] * (STEPS - 2)


def test_with_rank_what_is_scored_exactly_is_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    found = noted(monkeypatch)
    wanted = run("gpt", rank=1)
    assert not found
    got = run("gpt", rank=1, score_dtype="bfloat16")
    assert found
    assert np.corrcoef(wanted.scores, got.scores)[0, 1] > 0.999


def test_the_comparison_with_forward_mode_is_of_exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    found = noted(monkeypatch)
    plain = run("perceptron", score_dtype="bfloat16")
    count = len(found)
    verified = run("perceptron", score_dtype="bfloat16", verify_ghost=True)
    assert len(found) == 2 * count
    np.testing.assert_array_equal(verified.scores, plain.scores)


@pytest.mark.parametrize(
    ("dtype", "options", "message"),
    [
        (torch.float64, {"score_dtype": "bfloat16"}, "got 'bfloat16' for float64 on the host"),
        (torch.float32, {"score_dtype": "tf32"}, "got 'tf32' for float32 on the host.*'bfloat16'"),
        (torch.float32, {"score_dtype": "int8"}, "got 'int8'; needs one of tf32, float16, bfloat16"),
        (torch.float32, {"score_dtype": "bfloat16", "contraction": "forward"}, "'forward' with score_dtype='bfloat16'"),
    ],
)
def test_other_devices_and_dtypes_are_refused(dtype: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loop("perceptron", dtype=dtype, options={"slope": "secant", **options})
