"""The properties of a correct implementation, each with a name, a sentence, an equation and random cases.

*Agreement* properties compare a candidate with the oracle. *Metamorphic* ones need no oracle: they compare the
candidate's answers with each other, so they can run on problems that no oracle reaches.
"""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from adamshap.reference.contract import AUTO, GRADIENTS, MARGINAL_LOSSES, MARGINALS, SLOPES, TWO_TERM
from adamshap.verify.edges.properties import DRAWN_EDGES
from adamshap.verify.implementation import Query
from adamshap.verify.property import ANY, Asker, Case, Check, Disagreement, Property, asker
from adamshap.verify.property_cases import (
    STEPS,
    cases,
    micro_batch_cases,
    score_cases,
    steps_with_own_shares,
    utility_cases,
)
from adamshap.verify.property_checks import (
    a_duplicate_batch_halves_the_scores,
    agrees,
    agrees_in_forward_mode,
    answers_are_repeatable,
    efficient_scores_sum_to_the_utility,
    equal_samples_score_equally,
    inputs_are_untouched,
    large_eps_leaves_sgd,
    micro_batches_change_nothing,
    null_samples_score_nothing,
    rescaling_changes_nothing,
    scores_follow_samples,
    validation_adds_up,
)
from adamshap.verify.steps import in_dtype
from adamshap.verify.strategies import dimensions, large_steps, seeds, steps, steps_with_null_samples, wide_steps

__all__ = ["LARGE", "PROPERTIES", "Asker", "Case", "Disagreement", "Property", "asker", "cases", "in_dtype"]


LARGE = 5
"""Cost of a case of `large_steps` or `wide_steps`, relative to an ordinary case."""


def _agreement(
    name: str,
    sentence: str,
    equation: str,
    function: str,
    strategy: st.SearchStrategy[Case],
    extra: str = "",
) -> Property:
    return Property(name, sentence, equation, "agreement", function, strategy, agrees, extra)


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
    """Return the same property for sizes that exceed blocks of 256."""
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
        "Scores with other numbers of quadrature nodes are the oracle's.",
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
        "The difference to the gain of the data is spread equally.",
        "score_i + (U(B) − U(∅) − Σ_j score_j) / n",
        "scores",
        score_cases(efficient=True, per_validation=st.booleans()),
    ),
    _agreement(
        "scores-previous-denominator",
        "Scores with the linearised slope and the state's own denominator are the oracle's.",
        "S = η k / (√(v̂_{t−1} + ε_root) + ε)",
        "scores",
        st.builds(
            Case,
            steps(kinds=("ordinary", "adversarial"), at_edges=dimensions()),
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
        "The influence is minus the derivative of the loss after the step by a sample's weight.",
        "⟨∇L(θ⁺), A'(g) ⊙ x_i⟩",
        "influence",
        cases(Query("influence")),
    ),
    Property(
        "scores-forward-mode",
        "Scores are the derivatives of the samples' losses along P.",
        "score_i = w dℓ(θ + h P; z_i)/dh at h = 0",
        "agreement",
        "scores",
        score_cases(per_validation=st.booleans()),
        agrees_in_forward_mode,
    ),
)


_TWO_TERM: tuple[Property, ...] = tuple(
    _agreement(
        f"scores-{TWO_TERM}-{kind}",
        f"Scores with slope '{TWO_TERM}' for the marginals '{kind}' are the oracle's.",
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


_AUTO: tuple[Property, ...] = (
    replace(
        _agreement(
            f"scores-{AUTO}",
            f"Scores with slope '{AUTO}' are the oracle's.",
            "S = (1 − λ) S_secant + λ S_random_order",
            "scores",
            score_cases(
                of=steps_with_own_shares(),
                slope=AUTO,
                per_validation=st.booleans(),
                nodes=st.sampled_from([(4, 4), (2, 3)]),
            ),
        ),
        features=frozenset({AUTO}),
    ),
)


_METAMORPHIC: tuple[Property, ...] = (
    _metamorphic(
        "equivariance",
        "Scores follow their samples when the batch is reordered.",
        "score_π(i)(π B) = score_i(B)",
        score_cases(),
        scores_follow_samples,
    ),
    _metamorphic(
        "symmetry",
        "Equal samples score equally.",
        "z_i = z_j ⇒ score_i = score_j",
        score_cases(),
        equal_samples_score_equally,
    ),
    _metamorphic(
        "additivity",
        "Scores against the validation samples average to the score.",
        "mean_j score_ij = score_i",
        score_cases(),
        validation_adds_up,
    ),
    _metamorphic(
        "efficiency",
        "Efficient scores sum to the gain of the data.",
        "Σ_i score_i = U(B) − U(∅)",
        score_cases(efficient=True),
        efficient_scores_sum_to_the_utility,
    ),
    _metamorphic(
        "rescaling",
        "A common factor of loss, m, √v and ε changes nothing.",
        "A_{c m, c² v, c ε}(c g) = A_{m, v, ε}(g)",
        score_cases(slope=_NOT_SGD),
        rescaling_changes_nothing,
    ),
    _metamorphic(
        "sgd-limit",
        "With a large ε, the scores are those of SGD with momentum.",
        "η ε k / D(g) → η k",
        score_cases(slope=_NOT_SGD, gradient="start"),
        large_eps_leaves_sgd,
    ),
    _metamorphic(
        "duplicate-batch",
        "In a batch with every sample twice, each copy scores half.",
        "score_i(B + B) = score_i(B) / 2",
        score_cases(slope=_NOT_RANDOM),
        a_duplicate_batch_halves_the_scores,
    ),
    _metamorphic(
        "repeatability",
        "The same call gives the same answer, to the last bit.",
        "score(step) = score(step)",
        score_cases(),
        answers_are_repeatable,
    ),
    _metamorphic(
        "null-sample",
        "A sample with zero gradient scores zero.",
        "x_i = 0 ⇒ score_i = 0",
        score_cases(steps_with_null_samples(STEPS), per_validation=st.booleans()),
        null_samples_score_nothing,
    ),
    _metamorphic(
        "micro-batch",
        "The size of micro-batches changes nothing.",
        "score(step, micro_batch) = score(step)",
        micro_batch_cases(score_cases(), st.integers(1, 33)),
        micro_batches_change_nothing,
        extra="micro_batch",
    ),
    _metamorphic(
        "inputs-untouched",
        "No call changes its inputs.",
        "step = step",
        cases(Query("update")),
        inputs_are_untouched,
        ANY,
    ),
)


_BY_NAME = {one.name: one for one in _METAMORPHIC}


def _of_two_terms(name: str, **options: Any) -> Property:
    """Return the same property for scores with slope "two_term"."""
    one = _BY_NAME[name]
    drawn = score_cases(slope=TWO_TERM, kind=st.sampled_from(MARGINALS), **options)
    sentence = f"{one.sentence[:-1]}, also with slope '{TWO_TERM}'."
    return replace(one, name=f"{TWO_TERM}-{name}", sentence=sentence, cases=drawn, extra="kind")


_METAMORPHIC_OF_TWO_TERMS: tuple[Property, ...] = (
    _of_two_terms("symmetry"),
    _of_two_terms("additivity"),
    _of_two_terms("efficiency", efficient=True),
    _of_two_terms("rescaling"),
    _of_two_terms("null-sample", of=steps_with_null_samples(STEPS), per_validation=st.booleans()),
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
                # The exact loss costs a forward pass per sample, and again for every draw of the bound.
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
            score_cases(wide_steps()),  # no optional options: too few cases to lose any as unsupported
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
    *_AUTO,
    *_METAMORPHIC,
    *_METAMORPHIC_OF_TWO_TERMS,
    *_LARGE_AGREEMENT,
    *_LARGE,
    *DRAWN_EDGES,
)
