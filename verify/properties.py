"""What must hold of an implementation: each property has a name, a sentence, an equation, and random cases.

*Agreement* properties compare a candidate with the oracle. *Metamorphic* ones need no oracle: they compare the
candidate's answers with each other, so they can run on problems that no oracle reaches.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from adamshap.reference.contract import (
    GRADIENTS,
    MARGINAL_LOSSES,
    MARGINALS,
    SLOPES,
    TWO_TERM,
    AdamState,
    Array,
    Batch,
    Step,
)
from adamshap.verify.implementation import Answer, Implementation, Query, Unsupported, answer
from adamshap.verify.models import kind_of
from adamshap.verify.oracle import expected_and_bounds
from adamshap.verify.strategies import (
    DIMENSIONS,
    large_steps,
    null_samples,
    seeds,
    steps,
    steps_with_null_samples,
    wide_steps,
)
from adamshap.verify.tolerance import CLOSE, DRAWS, MORE_DRAWS, parameter_count, rounding, widening_conditioning

Kind = Literal["agreement", "metamorphic"]

ANY = "any"
"""The function of a property that is about all of them."""

EACH_FUNCTION = (
    Query("update"),
    Query("utility"),
    Query("marginals", {"kind": "last", "loss": "exact"}),
    Query("scores", {"slope": "random_order", "gradient": "path"}),
    Query("influence"),
)

LARGE = 5
"""What a case of `large_steps` or `wide_steps` costs, in ordinary cases."""


@dataclass(frozen=True)
class Case:
    """One problem for a property: the step, what is asked about it, and a seed for what the property draws itself."""

    step: Step
    query: Query
    seed: int = 0


AMPLE = 0.5
"""An error below this share of a bound that is only partly known is not looked at further: the whole is larger still.
So a share that is reported is exact above this, and below it an upper limit."""


class Disagreement(AssertionError):
    """A property does not hold for a case: which number, what it should be, how far it may be off."""

    def __init__(self, case: Case, what: str, got: float, wanted: float, bound: float) -> None:
        self.case, self.what, self.got, self.wanted, self.bound = case, what, got, wanted, bound
        super().__init__(
            f"{case.query}: {what} is {got!r}, should be {wanted!r}; off by {abs(got - wanted):.3g}, "
            f"where rounding and conditioning explain {bound:.3g}"
        )


Asker = Callable[[Step, Query], Answer]
Check = Callable[[Asker, Case, npt.DTypeLike], float]
"""Returns the largest share of its bound that an error took; raises `Disagreement` where that is more than 1."""


@dataclass(frozen=True)
class Property:
    """Something that must hold.

    Parameters
    ----------
    name, sentence, equation : str
    kind : {"agreement", "metamorphic"}
    function : str
        The function of the contract that it is about; `ANY` for all that a candidate offers.
    cases : strategy of Case
    check : callable
        ``check(ask, case, dtype)``, which raises `Disagreement`, or returns the largest share of its bound that an
        error took; `ask` returns a candidate's answer.
    extra : str
        The one of `implementation.EXTRAS` that it is about, if any.
    cost : int
        How many ordinary cases one of its cases stands for: a profile tries as many fewer.
    """

    name: str
    sentence: str
    equation: str
    kind: Kind
    function: str
    cases: st.SearchStrategy[Case]
    check: Check
    extra: str = ""
    cost: int = 1

    def is_about(self, candidate: Implementation) -> bool:
        """Whether the candidate offers what the property is about."""
        offered = self.function in candidate.offers or (self.function == ANY and bool(candidate.offers))
        return offered and (not self.extra or self.extra in candidate.extras)


def asker(candidate: Implementation, timeout: float | None = None) -> Asker:
    """Return the candidate as a function that puts a call and returns a checked answer."""
    return lambda step, query: answer(candidate, step, query, timeout)


def compare(case: Case, got: Answer, wanted: Answer, bound: Answer) -> float:
    """Return the largest share of its bound that an error takes; arrays that `got` lacks are not compared.

    Raises
    ------
    Disagreement
        Where it is more than 1, for the element whose error exceeds its bound most.
    """
    worst = _worst(got, wanted, bound)
    if worst[0] > 1:
        raise Disagreement(case, *worst[1:])
    return worst[0]


def _worst(got: Answer, wanted: Answer, bound: Answer) -> tuple[float, str, float, float, float]:
    """Return the largest share of its bound that an error takes; of which number, got, wanted, and the bound."""
    worst = (0.0, "", 0.0, 0.0, 0.0)
    for name in sorted(wanted.keys() & got.keys()):
        error, limit = np.abs(got[name] - wanted[name]), np.broadcast_to(bound[name], got[name].shape)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # Nothing is off by nothing, also where nothing may be off.
            ratio = np.where((error == 0) & (limit >= 0), 0.0, np.nan_to_num(error / limit, nan=np.inf, posinf=np.inf))
        place = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        label = name + (str(list(map(int, place))) if place else "")
        found = (float(ratio[place]), label, float(got[name][place]), float(wanted[name][place]), float(limit[place]))
        worst = max(worst, found)
    return worst


def _agrees(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    got, (wanted, widening) = ask(case.step, case.query), expected_and_bounds(case.step, case.query, dtype)
    # The first is for the least that is rounded, the second for all of it, and no draw is in them yet.
    return _compare_widening(case, got, wanted, enumerate(widening, start=-1), DRAWS)


def _compare_widening(
    case: Case, got: Answer, wanted: Answer, widening: Iterable[tuple[int, Answer]], enough: int
) -> float:
    """Return the largest share of its bound that an error takes, as `compare`, for bounds that grow with their draws.

    An error that is plainly within a bound, or beyond `CLOSE` bounds with `enough` draws, needs no more of them.
    """
    bound: Answer = {}
    for draws, bound in widening:
        share = _worst(got, wanted, bound)[0]
        if share <= AMPLE or (draws >= enough and not 1 < share <= CLOSE):
            break
    return compare(case, got, wanted, bound)


# --- metamorphic checks -----------------------------------------------------------------------------------------------


def _agree(
    ask: Asker, case: Case, got: Array, wanted: Array, base: Array, about: Case, dtype: npt.DTypeLike, factor: float = 1
) -> float:
    """Compare two of the candidate's own answers to `case`, where `base` is its answer to the question `about`.

    The bound, `factor` times, is for rounding in proportion to the largest of `base`, and for conditioning without an
    oracle: how far `base` moves when the inputs change by relative u, the largest over the samples. A dot product's
    own terms are not seen from outside; where they cancel, this shows it.
    """
    length, largest = parameter_count(about.step) + about.step.n, np.abs(base).max()

    def limit(spread: float) -> Answer:
        return {"values": np.asarray(factor * rounding(largest + spread / rounding(1.0, 1, dtype), length, dtype))}

    widening = ((draws, limit(spread)) for draws, spread in enumerate(_spreads(ask, about, dtype)))
    # The largest over the samples is what counts: where they are many, few draws see it.
    enough = DRAWS if about.step.n <= 256 else 2
    return _compare_widening(case, {"values": got}, {"values": wanted}, widening, enough)


def _spreads(ask: Asker, case: Case, dtype: npt.DTypeLike) -> Iterator[float]:
    """Yield 0, then how far the candidate's own answers have moved after one draw, after two, and so on."""
    yield 0.0

    def again(step: Step) -> Array:
        return ask(in_dtype(step, dtype), case.query)["values"]

    for moved in widening_conditioning(again, case.step, dtype, seed=case.seed, draws=MORE_DRAWS):
        yield float(np.max(moved))


def _scores_follow_samples(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    order = np.random.default_rng(case.seed).permutation(case.step.n)
    base = ask(case.step, case.query)["values"]
    shuffled = ask(replace(case.step, train=case.step.train.take(order)), case.query)["values"]
    return _agree(ask, case, shuffled, base[order], base, case, dtype)


def _equal_samples_score_equally(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    twice = replace(case.step, train=case.step.train.take(np.append(np.arange(case.step.n), 0)))
    base = ask(twice, case.query)["values"]
    return _agree(ask, case, base[-1:], base[:1], base, replace(case, step=twice), dtype)


def _validation_adds_up(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    each = Query("scores", dict(case.query.options) | {"per_validation": True})
    matrix, mean = ask(case.step, each)["values"], ask(case.step, case.query)["values"]
    return _agree(ask, case, matrix.mean(axis=1), mean, matrix, replace(case, query=each), dtype)


def _efficient_scores_sum_to_the_utility(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    everybody = np.ones(case.step.n, bool)
    total, empty = (ask(case.step, Query("utility", {"coalition": mask}))["values"] for mask in (everybody, ~everybody))
    values = ask(case.step, case.query)["values"]
    # What is missing is spread over scores which may be much larger than what they then sum to.
    plain = ask(case.step, Query("scores", dict(case.query.options) | {"efficient": False}))["values"]
    # A utility is the difference of two losses, which are of the order of one nat, or one unit squared.
    size = sum(float(np.abs(part).sum()) for part in (values, plain, total, empty)) + 1
    size += kind_of(case.step.net).loss_limit(case.step)
    bound = rounding(size, parameter_count(case.step) + case.step.n, dtype)
    return compare(case, {"sum": values.sum()[None]}, {"sum": np.array([total - empty])}, {"sum": np.array([bound])})


def _rescaling_changes_nothing(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """A sum over n samples is n times their mean, and Adam does not see a common factor of g, √v and ε."""
    n, mean = case.step.n, replace(case.step, reduction="mean")
    state = AdamState(
        mean.state.step,
        {name: n * m for name, m in mean.state.m.items()},
        {name: n**2 * v for name, v in mean.state.v.items()},
    )
    scaled = replace(
        mean,
        reduction="sum",
        state=state,
        adam=replace(mean.adam, eps=n * mean.adam.eps, eps_root=n**2 * mean.adam.eps_root),
    )
    base = ask(mean, case.query)["values"]
    return _agree(ask, case, ask(scaled, case.query)["values"], base, base, replace(case, step=mean), dtype)


def _large_eps_leaves_sgd(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """D(g) → ε: every slope but SGD's own becomes η k / ε, which is η k again for the learning rate ε η.

    ε is so large that nothing of r(g) is left beside it, and its square is still within the range of the dtype.
    """
    adam, t = case.step.adam, case.step.state.step + 1
    eps = 1e18 if np.dtype(dtype).itemsize <= 4 else 1e30
    step = replace(case.step, adam=replace(adam, eps=eps, lr=adam.lr * eps))
    beta1 = adam.betas[0]
    k = (1 - beta1) / (1 - beta1**t)
    wanted = k * ask(case.step, Query("scores", {"slope": "sgd", "gradient": "start"}))["values"]
    # 1 − β^t, as everybody computes it, loses up to 1/(1 − β) digits' worth.
    got, factor = ask(step, case.query)["values"], 1 / (1 - beta1)
    return _agree(ask, case, got, wanted, wanted, replace(case, step=step), dtype, factor)


def _a_duplicate_batch_halves_the_scores(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Every sample twice is the same mean gradient, of which each copy contributes half."""
    step = replace(case.step, reduction="mean")
    twice = replace(step, train=step.train.take(np.tile(np.arange(step.n), 2)))
    base, doubled = ask(step, case.query)["values"], ask(twice, case.query)["values"]
    return _agree(ask, case, 2 * doubled[: step.n], base, base, replace(case, step=step), dtype, factor=2)


def _answers_are_repeatable(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    first, second = (ask(case.step, case.query) for _ in range(2))
    return compare(case, second, first, {name: np.zeros_like(array) for name, array in first.items()})


def _null_samples_score_nothing(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """x_i is zero in every element, exactly, and so is a dot product with it."""
    null = null_samples(case.step)
    values = ask(case.step, case.query)["values"]
    nothing = np.zeros_like(values)
    kept = np.where(null.reshape(-1, *[1] * (values.ndim - 1)), values, 0.0)
    return compare(case, {"values": kept}, {"values": nothing}, {"values": nothing})


def _micro_batches_change_nothing(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    whole = Query("scores", {name: value for name, value in case.query.options.items() if name != "micro_batch"})
    base = ask(case.step, whole)["values"]
    got = ask(case.step, case.query)["values"]
    return _agree(ask, case, got, base, base, replace(case, query=whole), dtype)


def _inputs_are_untouched(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Every function is asked about one step; `ask` looks after each call at what this and earlier calls were given."""
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


# --- cases ------------------------------------------------------------------------------------------------------------


def in_dtype(step: Step, dtype: npt.DTypeLike) -> Step:
    """Return the step with its real arrays in `dtype`."""

    def cast(arrays: dict[str, Array]) -> dict[str, Array]:
        return {name: array.astype(dtype) for name, array in arrays.items()}

    def cast_batch(batch: Batch) -> Batch:
        return Batch(batch.x.astype(dtype), batch.y.astype(dtype) if batch.y.ndim == 2 else batch.y)

    state = AdamState(step.state.step, cast(step.state.m), cast(step.state.v))
    train, valid = cast_batch(step.train), cast_batch(step.valid)
    return Step(step.net, cast(step.params), step.adam, state, train, valid, step.reduction)


_STEPS = steps(at_edges=DIMENSIONS)


def cases(query: Query, **limits: Any) -> st.SearchStrategy[Case]:
    """Return cases of one call over random steps, of which some are at an edge within `limits`."""
    at_edges = tuple(name for name in DIMENSIONS if f"max_{name}" not in limits)
    return st.builds(Case, steps(at_edges=at_edges, **limits), st.just(query), seeds)


def score_cases(of: st.SearchStrategy[Step] | None = None, **options: Any) -> st.SearchStrategy[Case]:
    """Return cases of `scores` over steps `of`, with `options`, over every slope and gradient that they leave open."""
    drawn = {"slope": st.sampled_from(SLOPES), "gradient": st.sampled_from(GRADIENTS)}
    fixed = {name: value if isinstance(value, st.SearchStrategy) else st.just(value) for name, value in options.items()}
    query = st.fixed_dictionaries(drawn | fixed).map(lambda given: Query("scores", given))
    return st.builds(Case, _STEPS if of is None else of, query, seeds)


@st.composite
def micro_batch_cases(draw: Any, of: st.SearchStrategy[Case], sizes: st.SearchStrategy[int]) -> Case:
    """Return cases of `of` with `micro_batch`; two of three times it leaves one sample over, or lacks one to fit."""
    case: Case = draw(of)
    size = draw(sizes, label="micro_batch")
    over = draw(st.sampled_from((None, 1, -1)), label="samples over")
    if over is not None:
        fitting = [size for size in range(2, case.step.n) if (case.step.n - over) % size == 0]
        size = draw(st.sampled_from(fitting), label="fitting micro_batch") if fitting else size
    return replace(case, query=Query("scores", {**case.query.options, "micro_batch": size}))


@st.composite
def utility_cases(draw: Any, of: st.SearchStrategy[Step] = _STEPS) -> Case:
    """Return cases of `utility` over random coalitions, the empty and the whole one among them."""
    step = draw(of)
    some = st.lists(st.booleans(), min_size=step.n, max_size=step.n).map(lambda members: np.array(members, dtype=bool))
    nobody, everybody = (np.full(step.n, flag) for flag in (False, True))
    mask = draw(some | some | st.just(nobody) | st.just(everybody), label="coalition")
    return Case(step, Query("utility", {"coalition": mask}))


def _agreement(
    name: str,
    sentence: str,
    equation: str,
    function: str,
    strategy: st.SearchStrategy[Case],
    extra: str = "",
) -> Property:
    return Property(name, sentence, equation, "agreement", function, strategy, _agrees, extra)


def _metamorphic(
    name: str,
    sentence: str,
    equation: str,
    strategy: st.SearchStrategy[Case],
    check: Check,
    function: str = "scores",
    extra: str = "",
) -> Property:
    return Property(name, sentence, equation, "metamorphic", function, strategy, check, extra)


def _large(one: Property, strategy: st.SearchStrategy[Case]) -> Property:
    """The same at sizes that overrun blocks of 256."""
    sentence = f"{one.sentence[:-1]}, also with more than 256 samples and units."
    return replace(one, name=f"large-{one.name}", sentence=sentence, cases=strategy, cost=LARGE)


_SLOPE_EQUATIONS = {
    "sgd": "S = η",
    "frozen": "S = η k / D(g)",
    "linearized": "S = A[0, 0] = η k / D(0)",
    "tangent": "S = A[g, g]",
    "secant": "S = A[g, 0]",
    "random_order": "S = Σ w Σ 2 a h² A[τ g + h s, τ g − h s]",
}
_NOT_SGD = st.sampled_from([slope for slope in SLOPES if slope != "sgd"])
_NOT_RANDOM = st.sampled_from([slope for slope in SLOPES if slope != "random_order"])
_MARGINAL_EQUATIONS = {
    "first": "U({i}) − U(∅)",
    "last": "U(B) − U(B∖{i})",
    "shapley": "mean over all orders of arrival",
}

_AGREEMENT: tuple[Property, ...] = (
    _agreement(
        "update",
        "The step is Adam's.",
        "θ⁺ = θ − A(g) − η λ θ, m⁺ = β1 m + (1 − β1) g, v⁺ = β2 v + (1 − β2) g²",
        "update",
        cases(Query("update")),
    ),
    _agreement(
        "utility",
        "The utility of a coalition is the fall of the validation loss.",
        "U(S) = L(θ) − L(θ − A(g_S) − η λ θ)",
        "utility",
        utility_cases(),
    ),
    *(
        _agreement(
            f"marginals-{kind}-{loss}",
            f"Marginal utilities '{kind}' with loss '{loss}' are the oracle's.",
            _MARGINAL_EQUATIONS[kind],
            "marginals",
            cases(Query("marginals", {"kind": kind, "loss": loss}), max_n=5 if kind == "shapley" else 16),
        )
        for kind in MARGINALS
        for loss in MARGINAL_LOSSES
    ),
    *(
        _agreement(
            f"scores-{slope}-{gradient}",
            f"Scores with slope '{slope}' and gradient '{gradient}' are the oracle's.",
            f"score_i = ⟨Γ ⊙ S, x_i⟩, {_SLOPE_EQUATIONS[slope]}",
            "scores",
            cases(Query("scores", {"slope": slope, "gradient": gradient})),
        )
        for slope in SLOPES
        for gradient in GRADIENTS
    ),
    _agreement(
        "scores-nodes",
        "Other numbers of quadrature nodes are followed.",
        "nodes = (path, normal)",
        "scores",
        score_cases(slope="random_order", nodes=st.sampled_from([(1, 2), (2, 4), (3, 5), (8, 9)])),
    ),
    _agreement(
        "scores-per-validation",
        "The matrix of scores by validation sample is the oracle's.",
        "score_ij = ⟨Γ_j ⊙ S, x_i⟩",
        "scores",
        score_cases(per_validation=True),
    ),
    _agreement(
        "scores-efficient",
        "What is missing to the gain of the data is spread equally.",
        "score_i + (U(B) − U(∅) − Σ_j score_j) / n",
        "scores",
        score_cases(efficient=True, per_validation=st.booleans()),
    ),
    _agreement(
        "scores-previous-denominator",
        "The linearised slope with the denominator of the state as it is.",
        "S = η k / (√(v̂_{t−1} + ε_root) + ε)",
        "scores",
        st.builds(
            Case,
            steps(kinds=("ordinary", "adversarial"), at_edges=DIMENSIONS),
            st.sampled_from(GRADIENTS).map(
                lambda gradient: Query(
                    "scores", {"slope": "linearized", "gradient": gradient, "denominator": "previous"}
                )
            ),
            seeds,
        ),
    ),
    _agreement(
        "influence",
        "The derivative of the loss after the step in a sample's weight.",
        "⟨∇L(θ⁺), A'(g) ⊙ x_i⟩",
        "influence",
        cases(Query("influence")),
    ),
)

_TWO_TERM: tuple[Property, ...] = tuple(
    _agreement(
        f"scores-{TWO_TERM}-{kind}",
        f"Scores with slope '{TWO_TERM}' made for the marginals '{kind}' are the oracle's.",
        "score_i = ⟨Γ ⊙ S, x_i⟩ + ⟨Γ ⊙ R, sign(x_i) √|x_i|⟩",
        "scores",
        score_cases(
            slope=TWO_TERM,
            kind=kind,
            per_validation=st.booleans(),
            efficient=st.booleans(),
            nodes=st.sampled_from([(4, 4), (8, 2), (2, 3)]),
        ),
        extra="kind",
    )
    for kind in MARGINALS
)

_METAMORPHIC: tuple[Property, ...] = (
    _metamorphic(
        "equivariance",
        "Scores follow their samples when the batch is reordered.",
        "score_π(i)(π B) = score_i(B)",
        score_cases(),
        _scores_follow_samples,
    ),
    _metamorphic(
        "symmetry",
        "Equal samples score equally.",
        "z_i = z_j ⇒ score_i = score_j",
        score_cases(),
        _equal_samples_score_equally,
    ),
    _metamorphic(
        "additivity",
        "Scores against the validation samples average to the score.",
        "mean_j score_ij = score_i",
        score_cases(),
        _validation_adds_up,
    ),
    _metamorphic(
        "efficiency",
        "Efficient scores sum to the gain of the data.",
        "Σ_i score_i = U(B) − U(∅)",
        score_cases(efficient=True),
        _efficient_scores_sum_to_the_utility,
    ),
    _metamorphic(
        "rescaling",
        "A common factor of loss, m, √v and ε changes nothing.",
        "A_{c m, c² v, c ε}(c g) = A_{m, v, ε}(g)",
        score_cases(slope=_NOT_SGD),
        _rescaling_changes_nothing,
    ),
    _metamorphic(
        "sgd-limit",
        "A large ε leaves SGD with momentum.",
        "η ε k / D(g) → η k",
        score_cases(slope=_NOT_SGD, gradient="start"),
        _large_eps_leaves_sgd,
    ),
    _metamorphic(
        "duplicate-batch",
        "A batch with every sample twice gives each copy half.",
        "score_i(B + B) = score_i(B) / 2",
        score_cases(slope=_NOT_RANDOM),
        _a_duplicate_batch_halves_the_scores,
    ),
    _metamorphic(
        "repeatability",
        "The same call gives the same answer, to the last bit.",
        "score(step) = score(step)",
        score_cases(),
        _answers_are_repeatable,
    ),
    _metamorphic(
        "null-sample",
        "A sample without a gradient scores nothing.",
        "x_i = 0 ⇒ score_i = 0",
        score_cases(steps_with_null_samples(_STEPS), per_validation=st.booleans()),
        _null_samples_score_nothing,
    ),
    _metamorphic(
        "micro-batch",
        "The size of micro-batches changes nothing.",
        "score(step, micro_batch) = score(step)",
        micro_batch_cases(score_cases(), st.integers(1, 33)),
        _micro_batches_change_nothing,
        extra="micro_batch",
    ),
    _metamorphic(
        "inputs-untouched",
        "No call changes the step that it is given.",
        "step = step",
        cases(Query("update")),
        _inputs_are_untouched,
        ANY,
    ),
)

_BY_NAME = {one.name: one for one in _METAMORPHIC}


def _of_two_terms(name: str, **options: Any) -> Property:
    """The same of scores with slope "two_term"."""
    one = _BY_NAME[name]
    drawn = score_cases(slope=TWO_TERM, kind=st.sampled_from(MARGINALS), **options)
    sentence = f"{one.sentence[:-1]}, also with slope '{TWO_TERM}'."
    return replace(one, name=f"{TWO_TERM}-{name}", sentence=sentence, cases=drawn, extra="kind")


_METAMORPHIC_OF_TWO_TERMS: tuple[Property, ...] = (
    _of_two_terms("symmetry"),
    _of_two_terms("additivity"),
    _of_two_terms("efficiency", efficient=True),
    _of_two_terms("rescaling"),
    _of_two_terms("null-sample", of=steps_with_null_samples(_STEPS), per_validation=st.booleans()),
)

_LARGE_AGREEMENT: tuple[Property, ...] = tuple(
    replace(
        _agreement(
            f"large-{name}",
            f"With inputs, a hidden layer, outputs, n and n_val all primes beyond 256, {what} the oracle's.",
            equation,
            function,
            strategy,
            extra,
        ),
        cost=LARGE,
    )
    for name, what, equation, function, strategy, extra in (
        (
            "update",
            "the step is",
            "θ⁺ = θ − A(g) − η λ θ",
            "update",
            st.builds(Case, wide_steps(), st.just(Query("update")), seeds),
            "",
        ),
        ("utility", "a utility is", "U(S) = L(θ) − L(θ − A(g_S) − η λ θ)", "utility", utility_cases(wide_steps()), ""),
        (
            "marginals",
            "marginals are",
            "U₁(S) = ⟨∇L(θ), A(g_S)⟩",
            "marginals",
            st.builds(
                Case,
                wide_steps(),
                # The exact loss costs a forward pass a sample, and as much again for every draw of the bound.
                st.sampled_from(("first", "last")).map(
                    lambda kind: Query("marginals", {"kind": kind, "loss": "first_order"})
                ),
                seeds,
            ),
            "",
        ),
        (
            "scores",
            "scores are",
            "score_i = ⟨Γ ⊙ S, x_i⟩",
            "scores",
            score_cases(wide_steps()),  # no option that a candidate may lack: there are few cases
            "",
        ),
        (
            "scores-per-validation",
            "the matrix of scores is",
            "score_ij = ⟨Γ_j ⊙ S, x_i⟩",
            "scores",
            score_cases(wide_steps(), per_validation=True, efficient=st.booleans()),
            "",
        ),
        (
            TWO_TERM,
            "scores of two terms are",
            "score_i = ⟨Γ ⊙ S, x_i⟩ + ⟨Γ ⊙ R, sign(x_i) √|x_i|⟩",
            "scores",
            score_cases(wide_steps(), slope=TWO_TERM, kind=st.sampled_from(MARGINALS), per_validation=st.booleans()),
            "kind",
        ),
        (
            "influence",
            "the influence is",
            "⟨∇L(θ⁺), A'(g) ⊙ x_i⟩",
            "influence",
            st.builds(Case, wide_steps(), st.just(Query("influence")), seeds),
            "",
        ),
    )
)

_LARGE: tuple[Property, ...] = (
    _large(_BY_NAME["equivariance"], score_cases(large_steps())),
    _large(_BY_NAME["additivity"], score_cases(large_steps())),
    _large(_BY_NAME["efficiency"], score_cases(large_steps(), efficient=True)),
    _large(_BY_NAME["duplicate-batch"], score_cases(large_steps(), slope=_NOT_RANDOM)),
    _large(_BY_NAME["null-sample"], score_cases(steps_with_null_samples(large_steps()))),
    _large(
        _BY_NAME["micro-batch"],
        micro_batch_cases(score_cases(large_steps()), st.sampled_from([100, 255, 256, 257])),
    ),
)

PROPERTIES = (
    *_AGREEMENT,
    *_TWO_TERM,
    *_METAMORPHIC,
    *_METAMORPHIC_OF_TWO_TERMS,
    *_LARGE_AGREEMENT,
    *_LARGE,
)
