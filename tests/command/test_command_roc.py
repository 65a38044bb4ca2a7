"""ROC AUC against its definition, counted pair by pair, and against scikit-learn."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from adamshap.reference.command.roc import log_odds, mean_roc_auc, roc_auc
from adamshap.verify.tolerance import assert_within, rounding

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


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_mean_over_classes_is_scikit_learns(classes: int) -> None:
    generator = np.random.default_rng(classes)
    labels = generator.integers(0, classes, 300)
    logits = generator.normal(size=(300, classes)) + np.eye(classes)[labels]
    probability = softmax(logits, axis=1)
    expected = roc_auc_score(labels, probability[:, 1] if classes == 2 else probability, multi_class="ovr")
    found = mean_roc_auc(log_odds(logits), labels)
    assert found is not None
    assert_within(found, expected, rounding(1.0, len(labels) * classes), "ROC AUC")


def test_classes_without_examples_are_left_out() -> None:
    scores = np.array([[3.0, 1.0, 9.0], [2.0, 2.0, 9.0], [1.0, 3.0, 9.0], [4.0, 4.0, 9.0]])
    assert mean_roc_auc(scores, np.array([0, 0, 1, 1])) == (0.5 + 1.0) / 2
    assert mean_roc_auc(scores, np.array([1, 1, 1, 1])) is None


def test_odds_order_examples_whose_probabilities_round_to_one() -> None:
    odds = log_odds(np.array([[800.0, 0.0, 0.0], [900.0, 0.0, 0.0], [0.0, -800.0, -800.0]]))
    assert odds[1, 0] > odds[0, 0] == odds[2, 0]
    assert np.isfinite(odds).all()
