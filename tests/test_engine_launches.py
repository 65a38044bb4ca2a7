"""The load of a training step on the device: few kernels, no waiting, and the matrix products that the method needs."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from adamshap import gpu
from adamshap.reference.contract import Adam, Batch, Network

SIZES = (12, 16, 8, 3)
N, N_VAL = 10, 4

LAUNCHES = {"rank_one": 130, "exact": 145}
"""Kernels of one attributed step of three layers, with CuPy's own for sums and copies."""

each_variance = pytest.mark.parametrize("variance", LAUNCHES)


def counted(cpu_device: Any, steps: int, **options: Any) -> Any:
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((N * steps + N_VAL, SIZES[0])), generator.integers(0, 3, N * steps + N_VAL)
    train, valid = Batch(x[N_VAL:], y[N_VAL:]), Batch(x[:N_VAL], y[:N_VAL])
    with cpu_device.count() as counts:
        gpu.attribute(Network(SIZES, "relu"), Adam(), train, valid, epochs=1, batch_size=N, device="cuda", **options)
    return counts


def per_step(cpu_device: Any, **options: Any) -> tuple[Counter[str], int, int, Counter[Any]]:
    """Return the load of one more step: launches by kernel, synchronisations, copies to the host, and products."""
    counted(cpu_device, 1, **options)  # compiles
    few, many = (counted(cpu_device, steps, **options) for steps in (2, 3))
    gemms = [Counter((gemm.shape, gemm.compute_type) for gemm in counts.gemms) for counts in (few, many)]
    return (
        many.launches - few.launches,
        many.synchronisations - few.synchronisations,
        many.device_to_host.count - few.device_to_host.count,
        gemms[1] - gemms[0],
    )


@each_variance
def test_a_step_launches_few_kernels_and_waits_for_none(cupy_on_cpu: Any, variance: str) -> None:
    launches, synchronisations, copies, _ = per_step(cupy_on_cpu, variance=variance)
    assert 0 < launches.total() <= LAUNCHES[variance], launches
    assert synchronisations == 0
    assert copies == 0


@each_variance
def test_a_step_calls_the_products_of_its_layers_and_no_others(cupy_on_cpu: Any, variance: str) -> None:
    """Shapes are (m, k, n) of an (m, k) times a (k, n) matrix; all are summed in float32."""
    _, _, _, gemms = per_step(cupy_on_cpu, variance=variance)
    layers = list(pairwise(SIZES))
    together = N + N_VAL  # at θ the validation rows go through the network with the batch
    expected: Counter[Any] = Counter()
    for rows in (together, N_VAL):  # at θ, and at the midpoint
        expected.update((rows, d_in, d_out) for d_in, d_out in layers)  # forward
        expected.update((rows, d_out, d_in) for d_in, d_out in layers[1:])  # backward: not into the inputs
    for rows in (N, N_VAL) if variance == "rank_one" else (N, N, N_VAL):  # g, Σ x² and Γ at the midpoint
        expected.update((d_out, rows, d_in) for d_in, d_out in layers)
    expected.update((N, d_in, d_out) for d_in, d_out in layers)  # the contraction a Pᵀ
    expected.update((N, d, N_VAL) for layer in layers for d in layer)  # SGD's scores, by Gram matrices of a and b
    assert gemms == Counter({(shape, "CUBLAS_COMPUTE_32F"): times for shape, times in expected.items()})
