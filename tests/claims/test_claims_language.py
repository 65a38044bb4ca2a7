"""The study on language models: corpora, exact quantities against the oracle, protocols on planted numbers."""

from dataclasses import replace

import numpy as np
import pytest

from adamshap.reference import Step, marginals, models, scores
from adamshap.reference.adam import step_coefficients, update_map
from adamshap.reference.contract import Array, Params
from adamshap.verify.claims import language
from adamshap.verify.claims.language import corpora, exact, experiment, presentation, protocols, settings
from adamshap.verify.claims.language.corpora import GIBBERISH, Mixture
from adamshap.verify.claims.language.experiment import Point
from adamshap.verify.claims.language.models import KINDS, Shape, kind_of
from adamshap.verify.claims.language.settings import Marginals, Run
from adamshap.verify.claims.statistics import distinct, pearson, select, spearman

TEXT = Mixture("help", ("help",), length=8, train=8, valid=3, test=3)
RUN = Run(TEXT, Shape(8, 1, 2, "rms", tied=False), n=4, examined=tuple(range(1, 19)), thorough=(3,))


def step_of(run: Run, t: int) -> tuple[Step, Array, Params]:
    for number, index, step, seen in experiment.walk(run, corpora.load(run.corpus, 0), 0):
        if number == t:
            return step, index, seen
    raise AssertionError(t)


@pytest.fixture(scope="module")
def step() -> Step:
    return step_of(RUN, 3)[0]


# --- corpora and models ----------------------------------------------------------------------------------------------


def test_passages_are_drawn_by_the_seed_and_taken_once() -> None:
    corpus, again, other = (corpora.load(replace(TEXT, train=200), seed) for seed in (0, 0, 1))
    assert np.array_equal(corpus.train.x, again.train.x)
    assert not np.array_equal(corpus.train.x, other.train.x)
    rows = [corpus.text(batch, row) for batch in (corpus.train, corpus.valid, corpus.test) for row in range(batch.n)]
    assert len(set(rows)) > 0.97 * len(rows)  # the text itself repeats few passages
    assert all(row in corpora.source("help") for row in rows)
    assert np.array_equal(corpus.train.x[:, 1:], corpus.train.y[:, :-1])


def test_a_mixture_has_equal_shares_near_duplicates_and_another_domain_for_validation() -> None:
    mixture = replace(TEXT, sources=("help", "licences", GIBBERISH), train=300, duplicates=0.2, validation="code")
    corpus = corpora.load(mixture, 0)
    own = corpus.original < 0
    assert np.bincount(corpus.source[own]).tolist() == [80, 80, 80]
    copies = np.flatnonzero(~own)
    assert len(copies) == 60
    assert np.array_equal(corpus.source[copies], corpus.source[corpus.original[copies]])
    equal = (corpus.train.y[copies] == corpus.train.y[corpus.original[copies]]).mean()
    assert 0.85 < equal < 1
    assert all(corpus.text(corpus.valid, row) in corpora.source("code") for row in range(corpus.valid.n))
    gibberish = [corpus.text(corpus.train, row) for row in np.flatnonzero(own & (corpus.source == 2))]
    assert not any(row in corpora.source("help") for row in gibberish)


def test_every_parameter_has_a_kind() -> None:
    corpus = corpora.load(TEXT, 0)
    found = {name: kind_of(name) for name in Shape(8, 1, 2, tied=False).network(corpus).shapes}
    assert set(found.values()) == set(KINDS)
    assert found["positions.weight"] == "embedding"
    assert found["encoder.layers.0.norm2.weight"] == "norms"
    assert found["encoder.layers.0.linear2.bias"] == "MLP"


# --- exact quantities ------------------------------------------------------------------------------------------------


def test_targets_are_the_oracles_marginals(step: Step) -> None:
    x = models.sample_gradients(step)
    gamma = models.loss_gradient(step.net, step.params, step.valid)
    found = exact.targets(step, x, gamma, shapley=8, counted=8, seed=0)
    of_kind = {kind: marginals(step, kind) for kind in ("first", "last", "shapley")}  # type: ignore[arg-type]
    for kind, wanted in of_kind.items():
        assert np.allclose(found[kind], wanted.values, rtol=0, atol=1e-13)
    assert np.allclose(found[exact.PAPER], of_kind["first"].values + of_kind["first"].empty, rtol=0, atol=1e-13)
    heavy = replace(step, reduction="sum")
    assert np.allclose(found[exact.FIRST_1], marginals(heavy).values, rtol=0, atol=1e-13)
    own = marginals(heavy, loss="first_order")
    assert np.allclose(found[exact.OWN_DATA], own.values, rtol=0, atol=1e-13)
    assert np.allclose(found[exact.OWN], own.values + own.empty, rtol=0, atol=1e-13)


def test_estimates_are_the_oracles_scores(step: Step) -> None:
    point = Point.of(3, np.arange(step.n), step)
    for name, found in point.scores(experiment.EVERY).items():
        slope, gradient = name.split(" + ")
        assert np.allclose(found, scores(step, slope, gradient), rtol=1e-9, atol=1e-18)  # type: ignore[arg-type]
    fitted = experiment._fitted(point, "first")
    two = scores(step, "two_term", "midpoint", kind="first")
    assert np.allclose(fitted[experiment.TWO_TERM], two, rtol=1e-9, atol=1e-18)


def test_kinds_move_alone_and_their_shares_add_up(step: Step) -> None:
    x = models.sample_gradients(step)
    c = step_coefficients(step)
    head = exact.firsts_by_kind(step, x)["head"]
    params = dict(step.params)
    params["head.weight"] = step.params["head.weight"] - update_map(c["head.weight"], x["head.weight"][0])
    empty = dict(step.params)
    empty["head.weight"] = step.params["head.weight"] - update_map(c["head.weight"], 0 * x["head.weight"][0])
    losses = [float(models.mean_loss(step.net, p, step.valid)) for p in (empty, params)]
    assert np.isclose(head[0], losses[0] - losses[1], rtol=0, atol=1e-13)
    whole = np.arange(5.0) ** 2
    parts = [whole * 0.25 + np.cos(whole), whole * 0.75 - np.cos(whole)]
    assert np.isclose(sum(experiment.share(part, whole) for part in parts), 1)


def test_coordinates_are_counted_by_their_gradients() -> None:
    step, _, seen = step_of(RUN, 3)
    tokens = [set(batch.ravel()) for batch in (step_of(RUN, t)[0].train.x for t in (1, 2))]
    rows = seen["embedding.weight"].max(axis=1)
    assert rows.tolist() == [sum(token in batch for batch in tokens) for token in range(len(rows))]
    assert (step.state.v["embedding.weight"].any(axis=1) == (rows > 0)).all()


# --- protocols -------------------------------------------------------------------------------------------------------


def test_correlations_by_step_are_those_of_scipy() -> None:
    values, wanted = np.random.default_rng(0).normal(size=(2, 5, 7))
    values[0] = 1.0
    for found, measure in ((protocols.within, pearson), (protocols.within_ranks, spearman)):
        each = [measure(a, b) for a, b in zip(values, wanted, strict=True)]
        assert np.allclose(found(values, wanted), each, equal_nan=True)


def test_a_constant_for_each_step_rules_the_pool_and_says_nothing_within() -> None:
    generator = np.random.default_rng(0)
    data = generator.normal(size=(30, 8))
    history = 100 * generator.normal(size=(30, 1))
    index = np.tile(np.arange(8), (30, 1))
    noise = generator.normal(size=(30, 8))

    def r(protocol: str, values: Array, wanted: Array) -> float:
        return protocols.summary(protocol, values, wanted, index, 8)["pearson"]

    blind = np.broadcast_to(history, data.shape)
    assert r("pooled", blind, data + history) > 0.999
    assert r("pooled", noise + history, data + history) > 0.999
    assert abs(r("pooled", data, data + history)) < 0.2
    assert r("within", data, data + history) > 0.999
    assert abs(r("within", noise + history, data + history)) < 0.3
    assert np.isnan(r("within", blind, data))
    assert r("totals", data, data + history) > 0.999  # every sample is in every step: all get the same history


def test_squares_of_the_pooled_correlations_of_history_and_data_add_up_to_one() -> None:
    generator = np.random.default_rng(0)
    data, history = generator.normal(size=(40, 8)), np.repeat(generator.normal(size=(40, 1)), 8, axis=1)
    data -= data.mean(axis=1, keepdims=True)  # uncorrelated with any constant in each step
    history -= history.mean()
    history *= np.sqrt((1 / 0.11**2 - 1) * data.var() / history.var())
    index = np.tile(np.arange(8), (40, 1))
    rs = [protocols.summary("pooled", part, data + history, index, 8)["pearson"] for part in (data, history)]
    assert np.isclose(rs[0], 0.11)
    assert np.isclose(rs[1], np.sqrt(1 - 0.11**2))


def test_the_fitted_slope_is_the_least_squares_without_a_second_term(step: Step) -> None:
    point = Point.of(3, np.arange(step.n), step)
    c, x = step_coefficients(step)["head.weight"], point.x["head.weight"]
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    h, a = np.polynomial.hermite_e.hermegauss(4)
    own = mean + h[:, None, None] * deviation
    change = update_map(c, own) - update_map(c, np.zeros_like(own))
    wanted = np.tensordot(a, own * change, axes=1) / np.tensordot(a, own**2, axes=1)
    assert np.allclose(experiment.one_slope("first", c, x, (8, 2)), wanted, rtol=1e-9)


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records() -> list[dict[str, object]]:
    return language.measure(Marginals(RUN), 0)


def test_blind_rows_are_in_every_pooled_table(records: list[dict[str, object]]) -> None:
    for protocol in ("pooled", "totals"):
        rows = select(records, part="protocols", protocol=protocol)
        for target in distinct(rows, "target"):
            names = distinct(select(rows, target=target), "estimator")
            known = {"history alone", "[mean of each step]", "[first]"}
            assert known | {"sgd + start", "linearized + start + history"} <= set(names)
        exact = select(rows, target="first", estimator="[first]")
        assert exact
        assert all(r["pearson"] > 1 - 1e-12 for r in exact)
    within = select(records, part="protocols", protocol="within", target="first")
    assert not any("history" in r["estimator"] or r["estimator"].startswith("[") for r in within)


def test_shapley_values_of_some_steps_are_pooled() -> None:
    run = replace(RUN, examined=(2, 11, 12), thorough=(), shapley=(11, 12))
    found = select(language.measure(Marginals(run), 0), part="protocols", protocol="pooled", place="t ≥ 1")
    steps = {target: select(found, target=target)[0]["steps"] for target in distinct(found, "target")}
    assert (steps["shapley"], steps["shapley + U(∅)"], steps["first"]) == (2, 2, 3)


def test_the_runs_of_every_model_have_enough_shapley_values_to_pool() -> None:
    for run in (*settings.CORE, *(piece.run for piece in settings.QUICK.marginals)):
        steps = {t for t in (*run.thorough, *run.shapley) if t >= experiment.LATER}
        assert len(steps) >= presentation.FEWEST
        assert steps <= set(run.examined)


def test_the_page_shows_every_part(records: list[dict[str, object]]) -> None:
    found = language.section(language.Settings(1, (Marginals(RUN),)), records)
    captions = " ".join(table.caption for table in found.tables)
    for part in ("The runs", "History is", "by step", "Kinds of layers", "gradient before", "Slopes and places"):
        assert part in captions + " ".join(str(table.header) for table in found.tables)
    for table in found.tables:
        assert table.rows, table.caption
        assert all(len(row) == len(table.header) for row in table.rows), table.caption
    assert any("history alone" in line for line in found.findings)
