"""The checks of the properties: agreement with the oracle, and the candidate's answers compared with each other."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from adamshap.reference.contract import AdamState, Array, Step
from adamshap.verify.implementation import Answer, Implementation, Query, Unsupported
from adamshap.verify.models import kind_of
from adamshap.verify.oracle import ORACLE, expected, expected_and_bounds
from adamshap.verify.property import Asker, Case, compare, compare_widening
from adamshap.verify.slope_rounding import slope_rounding
from adamshap.verify.steps import adam_of, in_dtype
from adamshap.verify.strategies import null_samples
from adamshap.verify.tolerance import DRAWS, MORE_DRAWS, parameter_count, rounding, widening_conditioning

EACH_FUNCTION = (
    Query("update"),
    Query("utility"),
    Query("marginals", {"kind": "last", "loss": "exact"}),
    Query("scores", {"slope": "random_order", "gradient": "path"}),
    Query("influence"),
)


def agrees(ask: Asker, case: Case, dtype: npt.DTypeLike, oracle: Implementation = ORACLE) -> float:
    """Compare the candidate's answer with the oracle's, or with that of an acceptable variant of the `oracle`."""
    got, (wanted, widening) = ask(case.step, case.query), expected_and_bounds(case.step, case.query, dtype, oracle)
    # The first two bounds, a lower limit of the rounding and all of it, have no draws.
    return compare_widening(
        case, got, wanted, enumerate(widening, start=-1), DRAWS, lambda: slope_rounding(case.step, case.query, dtype)
    )


def agrees_in_forward_mode(ask: Asker, case: Case, dtype: npt.DTypeLike, oracle: Implementation = ORACLE) -> float:
    """Compare the candidate's scores with the oracle's by forward mode, which uses no sample's gradient."""
    forward = Query("scores", {**case.query.options, "contraction": "forward"})
    got, wanted = ask(case.step, case.query), expected(case.step, forward, oracle)
    _, widening = expected_and_bounds(case.step, case.query, dtype, oracle)
    return compare_widening(
        case, got, wanted, enumerate(widening, start=-1), DRAWS, lambda: slope_rounding(case.step, case.query, dtype)
    )


WITH_THE_ORACLE = (agrees, agrees_in_forward_mode)
"""The checks that take an `oracle`: only these can recognise an acceptable variant of it."""


def agree(
    ask: Asker, case: Case, got: Array, wanted: Array, base: Array, about: Case, dtype: npt.DTypeLike, factor: float = 1
) -> float:
    """Compare two of the candidate's own answers to `case`; `base` is its answer to the case `about`.

    The bound, times `factor`, covers rounding in proportion to the largest of `base`, and conditioning without an
    oracle: the largest change of `base` over the samples when the inputs change by relative u. The terms of a dot
    product are unknown here; this change shows their cancellation. Only where the answers still disagree does the
    oracle provide the rounding of g that acts by the slope alone (`slope_rounding`).
    """
    length, largest = parameter_count(about.step) + about.step.n, np.abs(base).max()

    def limit(spread: float) -> Answer:
        return {"values": np.asarray(factor * rounding(largest + spread / rounding(1.0, 1, dtype), length, dtype))}

    widening = ((draws, limit(spread)) for draws, spread in enumerate(_spreads(ask, about, dtype)))
    # The bound uses the largest change over the samples: with many samples, few draws suffice.
    enough = DRAWS if about.step.n <= 256 else 2
    return compare_widening(
        case,
        {"values": got},
        {"values": wanted},
        widening,
        enough,
        lambda: factor * np.max(slope_rounding(about.step, about.query, dtype)),
    )


def _spreads(
    ask: Asker, case: Case, dtype: npt.DTypeLike, of: Callable[[Array], Array] = np.asarray
) -> Iterator[float]:
    """Yield 0, then the largest change `of` the candidate's own answers after one draw, after two, and so on."""
    yield 0.0

    def again(step: Step) -> Array:
        return of(ask(in_dtype(step, dtype), case.query)["values"])

    for moved in widening_conditioning(again, case.step, dtype, seed=case.seed, draws=MORE_DRAWS):
        yield float(np.max(moved))


def scores_follow_samples(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare the scores of a reordered batch with the reordered scores."""
    order = np.random.default_rng(case.seed).permutation(case.step.n)
    base = ask(case.step, case.query)["values"]
    shuffled = ask(replace(case.step, train=case.step.train.take(order)), case.query)["values"]
    return agree(ask, case, shuffled, base[order], base, case, dtype)


def equal_samples_score_equally(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare the scores of a sample and its copy in one batch."""
    twice = replace(case.step, train=case.step.train.take(np.append(np.arange(case.step.n), 0)))
    base = ask(twice, case.query)["values"]
    return agree(ask, case, base[-1:], base[:1], base, replace(case, step=twice), dtype)


def validation_adds_up(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare the mean over validation samples with the score against their mean loss."""
    each = Query("scores", dict(case.query.options) | {"per_validation": True})
    matrix, mean = ask(case.step, each)["values"], ask(case.step, case.query)["values"]
    return agree(ask, case, matrix.mean(axis=1), mean, matrix, replace(case, query=each), dtype)


def efficient_scores_sum_to_the_utility(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare the sum of efficient scores with U(B) − U(∅).

    The candidate computes the step for either, and may round g differently. Without v the step is steep in g where λ₂ θ
    nearly cancels it: so the bound has the change of the sum when the inputs change by relative u, as in `agree`.
    """
    everybody = np.ones(case.step.n, bool)
    total, empty = (ask(case.step, Query("utility", {"coalition": mask}))["values"] for mask in (everybody, ~everybody))
    values = ask(case.step, case.query)["values"]
    # The difference is spread over scores that may be much larger than their final sum.
    plain = ask(case.step, Query("scores", dict(case.query.options) | {"efficient": False}))["values"]
    # A utility is the difference of two losses of the order of one nat, or one unit squared.
    size = sum(float(np.abs(part).sum()) for part in (values, plain, total, empty)) + 1
    size += kind_of(case.step.net).loss_limit(case.step)
    rounded = rounding(size, parameter_count(case.step) + case.step.n, dtype)
    spreads = _spreads(ask, case, dtype, np.sum)
    widening = ((draws, {"sum": np.array([rounded + spread])}) for draws, spread in enumerate(spreads))
    got, wanted = values.sum()[None], np.array([total - empty])
    return compare_widening(case, {"sum": got}, {"sum": wanted}, widening, DRAWS)


def rescaling_changes_nothing(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare reduction "sum" with "mean": it scales g by n, and Adam cancels a common factor of g, m, √v and ε."""
    n, mean = case.step.n, replace(case.step, reduction="mean")
    adam = adam_of(mean)
    state = AdamState(
        mean.state.step,
        {name: n * m for name, m in mean.state.m.items()},
        {name: n**2 * v for name, v in mean.state.v.items()},
    )
    scaled = replace(
        mean,
        reduction="sum",
        state=state,
        adam=replace(adam, eps=n * adam.eps, eps_root=n**2 * adam.eps_root),
    )
    base = ask(mean, case.query)["values"]
    return agree(ask, case, ask(scaled, case.query)["values"], base, base, replace(case, step=mean), dtype)


def large_eps_leaves_sgd(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare with SGD in the limit D(g) → ε: every other slope becomes η k / ε, or η k for the learning rate ε η.

    ε is so large that r(g) is negligible, while its square is still within the range of the dtype.
    """
    adam, t = adam_of(case.step), case.step.state.next_step
    eps = 1e18 if np.dtype(dtype).itemsize <= 4 else 1e30
    step = replace(case.step, adam=replace(adam, eps=eps, lr=adam.lr * eps))
    beta1 = adam.betas[0]
    k = (1 - beta1) / (1 - beta1**t)
    wanted = k * ask(case.step, Query("scores", {"slope": "sgd", "gradient": "start"}))["values"]
    # Evaluating 1 − β^t directly magnifies its relative error by up to 1/(1 − β).
    got, factor = ask(step, case.query)["values"], 1 / (1 - beta1)
    return agree(ask, case, got, wanted, wanted, replace(case, step=step), dtype, factor)


def a_duplicate_batch_halves_the_scores(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare with a batch of every sample twice: the mean gradient is the same, and each copy contributes half."""
    step = replace(case.step, reduction="mean")
    twice = replace(step, train=step.train.take(np.tile(np.arange(step.n), 2)))
    base, doubled = ask(step, case.query)["values"], ask(twice, case.query)["values"]
    return agree(ask, case, 2 * doubled[: step.n], base, base, replace(case, step=step), dtype, factor=2)


def answers_are_repeatable(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare two answers to one call, bit by bit."""
    first, second = (ask(case.step, case.query) for _ in range(2))
    return compare(case, second, first, {name: np.zeros_like(array) for name, array in first.items()})


def null_samples_score_nothing(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare the scores of samples with x_i = 0 with zero: every element is exactly 0, and so is a dot product."""
    null = null_samples(case.step)
    values = ask(case.step, case.query)["values"]
    nothing = np.zeros_like(values)
    kept = np.where(null.reshape(-1, *[1] * (values.ndim - 1)), values, 0.0)
    return compare(case, {"values": kept}, {"values": nothing}, {"values": nothing})


def micro_batches_change_nothing(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare the scores with and without micro-batches."""
    whole = Query("scores", {name: value for name, value in case.query.options.items() if name != "micro_batch"})
    base = ask(case.step, whole)["values"]
    got = ask(case.step, case.query)["values"]
    return agree(ask, case, got, base, base, replace(case, query=whole), dtype)


def inputs_are_untouched(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Call every function with one step; `ask` checks after each call that no input so far was changed."""
    reasons = []
    for query in EACH_FUNCTION:
        options = {"coalition": np.arange(case.step.n) % 2 == 0} if query.function == "utility" else query.options
        try:
            ask(case.step, Query(query.function, options))
        except Unsupported as reason:
            reasons.append(reason)
    if len(reasons) == len(EACH_FUNCTION):
        raise reasons[0]
    return 0.0
