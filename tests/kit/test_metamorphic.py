"""Properties without an oracle: each detects a mistake, and the large ones those that small sizes cannot show."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from adamshap.reference import Adam, AdamState, Batch, Network, Step, models
from adamshap.verify.checking import Outcome, check
from adamshap.verify.faults import BY_NAME
from adamshap.verify.implementation import Implementation, Query, implementation
from adamshap.verify.oracle import ORACLE
from adamshap.verify.properties import PROPERTIES, Case, Disagreement, asker
from adamshap.verify.strategies import large_steps, null_samples, steps, steps_with_null_samples
from adamshap.verify.tolerance import unit_roundoff
from adamshap.verify.usual_rounding import usual_rounding

PROPERTY = {one.name: one for one in PROPERTIES}


def outcome_of(candidate: Implementation, name: str) -> Outcome:
    (outcome,) = check(candidate, [PROPERTY[name]], shrink_seconds=0)
    return outcome


def scores_by(function: Callable[[Step, Query], Any], *extras: str) -> Implementation:
    return Implementation("mine", frozenset({"scores"}), function, frozenset(extras))


@given(steps_with_null_samples(steps()))
def test_null_samples_have_no_gradient(step: Step) -> None:
    null = null_samples(step)
    assert null.any()
    assert all((x[null] == 0).all() for x in models.sample_gradients(step).values())


@given(large_steps())
@settings(max_examples=20)
def test_large_steps_overrun_blocks_of_256_and_leave_room(step: Step) -> None:
    widest = max(step.net.sizes)
    assert step.n > 256
    assert widest > 256
    assert step.n * widest > 2**16
    assert step.n * sum(p.size for p in step.params.values()) * 8 < 10e6  # bytes of all samples' gradients


@pytest.mark.parametrize("fault", ["bias-where-there-is-none", "momentum-per-sample", "momentum-shared"])
def test_a_score_for_nothing_is_seen_without_an_oracle(fault: str) -> None:
    outcome = outcome_of(BY_NAME[fault].implementation(), "null-sample")
    assert outcome.status == "failed"
    assert outcome.finding is not None
    assert (outcome.finding.wanted, outcome.finding.bound) == (0.0, 0.0)


# --- micro-batches ----------------------------------------------------------------------------------------------------


def averaged(step: Step, query: Query) -> Any:
    """Return scores of micro-batches as if each were the batch: a common mistake with gradient accumulation."""
    options = dict(query.options)
    size = options.pop("micro_batch", None) or step.n
    parts = [np.arange(step.n)[start : start + size] for start in range(0, step.n, size)]
    return np.concatenate(
        [ORACLE.ask(replace_train(step, part), Query("scores", options)) / len(parts) for part in parts]
    )


def replace_train(step: Step, part: np.ndarray) -> Step:
    return Step(step.net, step.params, step.adam, step.state, step.train.take(part), step.valid, step.reduction)


@pytest.mark.parametrize("name", ["micro-batch", "large-micro-batch"])
def test_micro_batches_that_change_the_scores_are_seen(name: str) -> None:
    assert outcome_of(scores_by(averaged, "micro_batch"), name).status == "failed"
    assert outcome_of(scores_by(averaged), name).status == "not offered"


def test_a_candidate_says_by_its_signature_that_it_takes_micro_batches() -> None:
    class Named:
        @staticmethod
        def scores(step: Step, *, micro_batch: int | None = None, **options: Any) -> Any: ...

    class Anything:
        @staticmethod
        def scores(step: Step, **options: Any) -> Any: ...

    assert implementation(Named, "named").extras == {"micro_batch"}
    assert implementation(Anything, "anything").extras == frozenset()


# --- sizes ------------------------------------------------------------------------------------------------------------


def blocks_of_256(step: Step, query: Query) -> Any:
    """Return scores from blocks of 256 samples, where a shorter last block is read as a whole one that starts early."""
    scores = ORACLE.ask(step, query)
    for start in range(256, step.n, 256):
        if start + 256 > step.n:
            scores[start:] = scores[step.n - 256 : step.n - 256 + step.n - start]
    return scores


def index_of_8_bits(step: Step, query: Query) -> Any:
    """Return scores with sample indices in a uint8."""
    return ORACLE.ask(step, query)[np.arange(step.n).astype(np.uint8)]


def last_block_left_out(step: Step, query: Query) -> Any:
    """Return scores from only ⌊n/256⌋ blocks."""
    scores = ORACLE.ask(step, query)
    if step.n > 256:
        scores[step.n // 256 * 256 :] = 0.0
    return scores


@pytest.mark.parametrize("mistake", [blocks_of_256, index_of_8_bits, last_block_left_out])
def test_mistakes_that_only_size_shows_are_seen(mistake: Callable[[Step, Query], Any]) -> None:
    candidate = scores_by(mistake)
    assert outcome_of(candidate, "equivariance").status == "passed"
    assert outcome_of(candidate, "scores-secant-start").status == "passed"
    assert outcome_of(candidate, "large-equivariance").status == "failed"


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_a_change_of_the_input_after_the_call_is_seen() -> None:
    class Later:
        """An answer that is computed on conversion to an array, in the step's own memory."""

        def __init__(self, step: Step, values: Any) -> None:
            self.step, self.values = step, values

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            self.step.train.x.base[...] += 1  # around the read-only view
            return np.asarray(self.values)

    candidate = scores_by(lambda step, query: Later(step, ORACLE.ask(step, query)))
    outcome = outcome_of(candidate, "inputs-untouched")
    assert outcome.finding is not None
    assert "changed its input: step.train.x" in outcome.finding.sentence


def test_a_change_of_the_input_of_an_earlier_call_is_seen() -> None:
    kept: list[Step] = []

    def keeps_and_spoils(step: Step, query: Query) -> Any:
        if kept:
            kept[-1].valid.x.base[...] += 1
        kept.append(step)
        return ORACLE.ask(step, query)

    candidate = Implementation("mine", frozenset({"update", "influence"}), keeps_and_spoils)
    outcome = outcome_of(candidate, "inputs-untouched")
    assert outcome.finding is not None
    assert "changed the input of an earlier call: step.valid.x" in outcome.finding.sentence


# --- efficiency -------------------------------------------------------------------------------------------------------


def test_efficient_scores_may_come_from_larger_ones() -> None:
    """The difference to spread nearly cancels their sum: their rounding errors are those of the larger scores."""
    net = Network((2, 2), bias=False)
    step = Step(
        net,
        {"0.weight": np.array([[0.3, -0.4], [0.1, 0.2]])},
        Adam(lr=1e-5, betas=(0.0, 0.0), eps=1e-10),
        AdamState.zeros({"0.weight": np.zeros((2, 2))}),
        *(Batch(np.array([row]), np.array([0])) for row in ([1.0, 0.5], [0.3, 0.8])),
    )
    options = {"slope": "linearized", "gradient": "start", "efficient": True}
    case = Case(step, Query("scores", options))

    def added_last(given: Step, query: Query) -> Any:
        answer = ORACLE.ask(given, query)
        if query.options.get("efficient"):
            raw = ORACLE.ask(given, Query("scores", dict(query.options) | {"efficient": False}))
            answer = (1 + np.finfo(np.float64).eps) * raw - (raw - answer)
        return answer

    ask = asker(Implementation("mine", frozenset({"scores", "utility"}), added_last, frozenset()))
    assert PROPERTY["efficiency"].check(ask, case, np.float64) < 1
    wrong = asker(Implementation("mine", frozenset({"scores", "utility"}), halved, frozenset()))
    with pytest.raises(Disagreement):
        PROPERTY["efficiency"].check(wrong, case, np.float64)


def test_efficient_scores_may_come_from_another_rounding_of_a_gradient_that_decay_cancels() -> None:
    """Seed 1195: β2 = 0 and λ₂ θ + g = −g/1000, a step of 120 that one u of g changes by 1e-11."""
    net, one = Network((1, 2)), np.array([1])
    params = {"0.weight": np.array([[0.74], [-0.43]]), "0.bias": np.array([0.21, 0.56])}
    batches = Batch(np.array([[0.001]]), one), Batch(np.array([[0.1]]), one)
    adam = Adam(lr=0.1, betas=(0.9, 0.0))
    plain = Step(net, params, adam, AdamState.zeros(params), *batches)
    l2 = -1.001 * models.batch_gradient(plain)["0.bias"][1] / params["0.bias"][1]
    state = AdamState(1, {name: 0.1 * np.ones_like(p) for name, p in params.items()}, plain.state.v)
    step = replace(plain, state=state, adam=replace(adam, l2=l2))
    case = Case(step, Query("scores", {"slope": "sgd", "gradient": "start", "efficient": True}))

    def rounded(given: Step, query: Query) -> Any:
        if query.function == "utility":
            return ORACLE.ask(given, query)
        with usual_rounding(unit_roundoff(np.float64), np.random.default_rng(0)):
            return ORACLE.ask(given, query)

    ask = asker(Implementation("mine", frozenset({"scores", "utility"}), rounded, frozenset()))
    assert PROPERTY["efficiency"].check(ask, case, np.float64) < 1
    for wrong in (halved, decayed_by_a_millionth_less):
        candidate = Implementation("mine", frozenset({"scores", "utility"}), wrong, frozenset())
        with pytest.raises(Disagreement):
            PROPERTY["efficiency"].check(asker(candidate), case, np.float64)


def halved(step: Step, query: Query) -> Any:
    answer = ORACLE.ask(step, query)
    return answer / 2 if query.options.get("efficient") else answer


def decayed_by_a_millionth_less(step: Step, query: Query) -> Any:
    if query.options.get("efficient") and isinstance(step.adam, Adam):
        step = replace(step, adam=replace(step.adam, l2=(1 - 1e-6) * step.adam.l2))
    return ORACLE.ask(step, query)
