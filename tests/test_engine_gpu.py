"""Tests that need a real device: products without TF32 by default, and the benchmark for the receipt."""

from typing import Any

import numpy as np
import pytest

from adamshap.gpu import bench
from adamshap.verify.tolerance import assert_within, rounding

pytestmark = pytest.mark.gpu


def test_float32_products_are_without_tf32() -> None:
    """TF32 keeps eleven binary digits of a product's inputs: far more than the rounding of a float32 sum."""
    import cupy

    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((512, 512)) for _ in range(2))
    single = [cupy.asarray(x.astype(np.float32)) for x in (a, b)]
    exact = single[0].get().astype(np.float64) @ single[1].get().astype(np.float64)
    assert_within((single[0] @ single[1]).get(), exact, rounding(np.abs(a) @ np.abs(b), 1, np.float32), "a b")


@pytest.mark.parametrize("case", bench.CASES, ids=lambda case: "-".join(map(str, (*case.sizes, case.n))))
def test_benchmark(case: Any, record_throughput: Any) -> None:
    for row in bench.measure(case, "random_order", "midpoint", 16, "cuda"):
        kind = "exact" if row["rank"] is None else f"rank {row['rank']}"
        record_throughput(f"{'-'.join(map(str, case.sizes))}, n = {case.n}, {kind}", row["throughput_ratio"])
        assert row["plain_ms"] > 0
