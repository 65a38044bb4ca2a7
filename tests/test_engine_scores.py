"""The engine against the oracle: the kit's properties, in both dtypes on every device; Shapley values by sampling."""

from typing import Any

import numpy as np
import pytest
from engine_devices import in_each_dtype, on_each_device
from hypothesis import Phase, settings

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.reference.contract import Step
from adamshap.verify import cpu_device
from adamshap.verify.candidates.engine import Engine
from adamshap.verify.checking import check
from adamshap.verify.implementation import Query, implementation
from adamshap.verify.layers.properties import LAYER_PROPERTIES
from adamshap.verify.optimisers.properties import OPTIMISER_PROPERTIES
from adamshap.verify.oracle import bounds
from adamshap.verify.properties import PROPERTIES, Property
from adamshap.verify.tolerance import assert_within

CALL_SECONDS = 600.0
"""Limit of one call: hundreds of validation samples, each on its own, take CuPy on the CPU seconds, or a minute."""

SHRINK_SECONDS = 10.0

PERMUTATIONS = 128
"""Number of permutations, half of them reverses: enough to know a standard error to a tenth."""

SIGMAS = 5
"""Standard errors between two sampled means: of a dozen normal deviates, one in some hundred thousand draws has one."""


@on_each_device  # varies fastest, so that one process computes a case's bounds once for all devices
@in_each_dtype
@pytest.mark.parametrize("prop", [*PROPERTIES, *LAYER_PROPERTIES, *OPTIMISER_PROPERTIES], ids=lambda prop: prop.name)
def test_property(device: Any, dtype: Any, prop: Property, record_error: Any) -> None:
    candidate = implementation(Engine(device), f"the engine on {device}")
    seconds = SHRINK_SECONDS if Phase.shrink in settings.default.phases else 0.0
    # CuPy on the CPU takes ten seconds and more for a large case, and has tests of its own for each optimiser.
    dear = prop.cost > 1 or prop.features
    profile = "once" if dear and device == "cuda" and cpu_device.is_installed() else "quick"
    (outcome,) = check(candidate, [prop], profile=profile, dtype=dtype, timeout=CALL_SECONDS, shrink_seconds=seconds)
    assert outcome.status == "passed", outcome.finding
    # Nor does it leave out a case, but for signed roots of sums of outer products.
    assert not outcome.unsupported or prop.name == "sequential-scores-two_term"
    record_error(f"{prop.name} {dtype}, share of the bound", outcome.share)


@on_each_device
def test_sampled_shapley_values_agree_within_their_standard_errors(device: Any) -> None:
    """The permutations are each implementation's own; the sum is U(B) − U(∅) for every one of them."""
    generator = np.random.default_rng(0)
    net = oracle.Network((3, 4, 2))
    params = net.init(0)
    train, valid = (oracle.Batch(generator.standard_normal((n, 3)), generator.integers(0, 2, n)) for n in (13, 4))
    step = Step(net, params, oracle.Adam(), oracle.AdamState.zeros(params), train, valid)
    got = engine.marginals(step, "shapley", permutations=PERMUTATIONS, device=device, dtype="float64")
    expected = oracle.marginals(step, "shapley", permutations=PERMUTATIONS)
    error = np.hypot(got.standard_error, expected.standard_error)
    assert (got.standard_error > 0).all()
    assert_within(got.values, expected.values, SIGMAS * error, "Shapley value")
    # The relative standard error of a standard error, of normal pairs, and of two of them.
    of_error = np.sqrt(2 / (2 * (PERMUTATIONS // 2 - 1))) * expected.standard_error
    assert_within(got.standard_error, expected.standard_error, SIGMAS * of_error, "standard error")
    coalitions = (Query("utility", {"coalition": np.full(step.n, member)}) for member in (True, False))
    total = sum(bounds(step, query, "float64")["values"] for query in coalitions)
    assert_within(got.values.sum(), got.total - got.empty, total, "Σ Shapley value")
