"""The references that no implementation can compute: the change of the step itself, and its best slope."""

from typing import Any

import numpy as np
import pytest

from adamshap.reference import scores
from adamshap.reference.contract import Adam, AdamState, Batch, Network, Step
from adamshap.reference.models import sample_gradients
from adamshap.verify.claims.estimators import BEST, ITSELF, TWO_TERM, candidates, with_every_contribution
from adamshap.verify.claims.statistics import pearson


def a_step() -> Step:
    generator = np.random.default_rng(0)
    net = Network((6, 8, 3))
    train, valid = (Batch(generator.normal(size=(n, 6)), generator.integers(0, 3, n)) for n in (8, 20))
    params = net.init(0)
    m = {name: 0.01 * generator.normal(size=p.shape) for name, p in params.items()}
    v = {name: 1e-4 * generator.uniform(size=p.shape) for name, p in params.items()}
    return Step(net, params, Adam(), AdamState(2, m, v), train, valid)


@pytest.mark.parametrize("kind", ["first", "last"])
def test_scores_of_a_whole_step(kind: Any) -> None:
    step = a_step()
    x = sample_gradients(step)
    g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
    known = with_every_contribution(step, x, g, kind)
    mine = candidates(step, x, g, kind)[TWO_TERM]
    other = pearson(scores(step, "linearized", "midpoint"), known[ITSELF])
    assert pearson(known[BEST], known[ITSELF]) > other
    assert pearson(mine, known[ITSELF]) > other
