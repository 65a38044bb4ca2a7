"""ROC AUC against its definition, counted pair by pair, and against scikit-learn."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from adamshap.reference.command.roc import roc_auc

# Few distinct values, for ties, and some that are almost equal.
SCORES = st.sampled_from([-1e300, -1.0, -0.0, 0.0, 5e-324, 1.0, 1.0 + 2**-52, 1e300]) | st.floats(-1, 1)
PAIRS = st.lists(st.tuples(SCORES, st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({positive for _, positive in pairs}) == 2
)


@given(PAIRS)
def test_roc_auc(pairs: list[tuple[float, bool]]) -> None:
    score, positive = (np.array(part) for part in zip(*pairs, strict=True))
    above = [Fraction(int(p > q) * 2 + int(p == q), 2) for p in score[positive] for q in score[~positive]]
    # The ranks are multiples of 1/2, exact in float64: only the division rounds.
    assert roc_auc(score, positive) == float(sum(above) / len(above))


def test_roc_auc_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    positive = generator.random(5000) < 0.1
    score = np.round(generator.normal(size=5000) + positive, 1)
    rounding = len(score) * np.finfo(np.float64).eps
    assert abs(roc_auc(score, positive) - roc_auc_score(positive, score)) <= rounding
