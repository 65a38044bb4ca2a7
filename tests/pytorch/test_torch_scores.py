"""Scores of a PyTorch loop against the oracle with materialised x_i, for layers, estimators and what loops do."""

from typing import Any

import numpy as np
import pytest
from torch_loops import MODELS, Loop, assert_oracle_agrees, cross_entropy

torch = pytest.importorskip("torch", reason="extra `torch`")
nn = torch.nn


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("slope", "gradient"), [("random_order", "midpoint"), ("secant", "path")])
def test_the_scores_of_each_model_are_the_oracle_s(name: str, slope: str, gradient: str) -> None:
    assert_oracle_agrees(Loop(name, options={"slope": slope, "gradient": gradient}), steps=2)
