"""Truth by retraining, search and pruning for language models, at tiny sizes and by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from adamshap.reference.contract import Adam, Array  # noqa: E402
from adamshap.verify.claims import language  # noqa: E402
from adamshap.verify.claims.language import finding, pruning, similarity, tables_of_runs, trajectory, truth, whole_runs  # noqa: E402
from adamshap.verify.claims.language.corpora import CHARACTERS, Mixture, load  # noqa: E402
from adamshap.verify.claims.statistics import Record, select  # noqa: E402
from adamshap.verify.tolerance import rounding  # noqa: E402

MODEL = whole_runs.Gpt(width=8, layers=1, heads=2)
CASE = whole_runs.Truth(
    "tiny",
    Mixture("tiny", ("help", "code"), length=16, train=16, valid=8, test=4),
    whole_runs.Training(epochs=3, batch_size=4, adam=Adam(lr=1e-2, eps=1e-3)),
    model=MODEL,
    halves=12,
    left_out=16,
)


def close(a: object, b: object) -> bool:
    size = np.abs(np.asarray(b)).max()
    return bool(np.all(np.abs(np.asarray(a) - b) <= rounding(np.full(np.shape(b), size), 1e4)))


# --- truth -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return language.measure(CASE, seed=0)


def test_the_metagradient_ranks_as_leaving_one_sample_out_does(records: list[Record]) -> None:
    for source in ("help", "code"):
        (found,) = select(records, score="metagradient", truth=whole_runs.LEFT_OUT, source=source)
        assert found["pearson"] > 0.9


def test_every_score_meets_every_truth(records: list[Record]) -> None:
    for name in (
        "sgd, sum",
        "linearized, unit",
        "carry (secant)",
        "AdamW-influence",
        "TRAK-like",
        "loss",
        "BM25",
        "same source",
    ):
        assert {r["truth"] for r in select(records, score=name)} == set(whole_runs.TRUTHS)
    for noise in select(records, part="noise"):
        assert 0 <= noise["ceiling"] <= 1
        assert noise["loss"] < noise["loss before"]
    section = language.section(language.Settings(1, whole=(CASE,)), records)
    table = section.tables[-1]
    assert len(table.rows) == len({r["score"] for r in select(records, part="truth")}) + 3
    corpus = load(CASE.corpus, 0)
    assert f" {truth.model_of(corpus, MODEL, 1).start.numel():,} parameters" in table.caption
    assert len(section.findings) == len(whole_runs.TRUTHS)


def test_whole_runs_are_pieces_of_the_study_where_pytorch_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in (language.FULL, language.QUICK):
        assert set(settings.whole) < set(language.pieces(settings))
    monkeypatch.setattr(whole_runs, "available", lambda: False)
    assert not set(language.FULL.whole) & set(language.pieces(language.FULL))


def test_a_half_is_the_run_without_the_others() -> None:
    corpus = load(CASE.corpus, 0)
    flat, data = truth.model_of(corpus, MODEL, 0), truth.data_of(corpus.train)
    valid = truth.parts_of(corpus.valid, 2)
    index = truth.index_of(16, CASE.training, 0)
    run = trajectory.recorded(flat, CASE.training.adam, data, index)
    masks = np.ones((2, 16), bool)
    masks[1, :8] = False
    everyone, half = truth.losses_of_same_run(flat, run, valid, masks)
    assert np.allclose(everyone, run.losses(len(index), valid), rtol=1e-5, atol=0)
    assert not np.allclose(half, everyone, rtol=1e-3, atol=0)
    # A new run on everyone with the run's own order of batches is the run.
    seed = 0
    new = truth.losses_of_new_run(flat, CASE.training, data, valid, masks[:1], seed)
    assert np.allclose(new[0], everyone, rtol=1e-5, atol=0)


def test_fine_tuning_starts_from_a_trained_model() -> None:
    before = (Mixture("before", ("help",), length=16, train=32, valid=2, test=2), CASE.training)
    corpus = load(CASE.corpus, 0)
    new, tuned = (truth.started(case, corpus, 0) for case in (CASE, replace(CASE, before=before)))
    valid = truth.parts_of(corpus.valid, 2)[0]
    assert float(tuned.mean_loss(tuned.start, valid)) < float(new.mean_loss(new.start, valid)) - 0.1


# --- gradients and text ----------------------------------------------------------------------------------------------


def test_the_kernel_of_final_gradients_is_the_damped_inverse_of_their_covariance() -> None:
    corpus = load(CASE.corpus, 0)
    flat, data = truth.model_of(corpus, MODEL, 0), truth.data_of(corpus.train)
    valid = truth.parts_of(corpus.valid, 2)
    run = trajectory.recorded(flat, CASE.training.adam, data, truth.index_of(16, CASE.training, 0)[:2])
    found = similarity.of_gradients(run, valid)
    g = flat.each_gradient(run.theta[-1], data).double().numpy()
    gamma = run.gradients(run.theta[-1], valid).numpy()
    covariance = g.T @ g / len(g)
    damping = similarity.DAMPING * np.mean((g**2).sum(1)) / len(g)
    wanted = g @ np.linalg.solve(covariance + damping * np.eye(len(covariance)), gamma.T)
    assert np.allclose(found["TRAK-like"], wanted, rtol=1e-6, atol=0)
    norms = np.linalg.norm(g, axis=1)[:, None] * np.linalg.norm(gamma, axis=1)
    assert close(found["final gradients, cosine"] * norms, found["final gradients"])


def test_bm25_by_hand() -> None:
    texts = ["the cat sat", "the dog sat on the mat", "a bird"]
    found = similarity.bm25(texts, ["the Cat!", "fish"])
    length = np.array([3, 6, 2]) / (11 / 3)
    norm = 1.5 * (0.25 + 0.75 * length)
    the, cat = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)
    wanted = [the * 2.5 / (1 + norm[0]) + cat * 2.5 / (1 + norm[0]), the * 2 * 2.5 / (2 + norm[1]), 0]
    assert close(found[:, 0], wanted)
    assert not found[:, 1].any()


def test_search_finds_the_text_itself() -> None:
    texts = ["a file object with a buffer", "the largest item of a list", "an error of the parser"]
    for analyzer in ("word", "char_wb"):
        assert close(similarity.tfidf(texts, texts, analyzer).diagonal(), np.ones(3))
        assert (similarity.tfidf(texts, texts, analyzer).argmax(0) == np.arange(3)).all()
    table, rows = torch.eye(6), torch.tensor([[0, 1], [2, 3], [4, 4]])
    assert close(similarity.embeddings(table, rows, rows).diagonal(), np.ones(3))
    assert (similarity.embeddings(table, rows, rows.flip(1)).argmax(0) == np.arange(3)).all()


# --- uses ------------------------------------------------------------------------------------------------------------


def coded(text: str) -> Array:
    return np.array([CHARACTERS.index(letter) for letter in text])


def test_queries_are_of_the_first_half() -> None:
    text = "return the value of a string "
    rows = np.array([coded(text + "and what follows it, too      ")[: 2 * len(text)]])
    found = finding.queries_of(rows, len(text), np.random.default_rng(0))
    read = {kind: finding.text_of(tokens[0]) for kind, tokens in found.items()}
    assert read["copy"] == text
    assert read["upper case"] == text.upper()
    assert read["what follows"].startswith("and what follows")
    assert sorted(read["words shuffled"].split()) == sorted(text.split())
    assert read["paraphrase"].startswith("of a text")
    assert 0 < sum(a != b for a, b in zip(read["a tenth replaced"], text, strict=True)) <= 3


def test_the_place_counts_from_one_and_shares_ties() -> None:
    values = np.array([3.0, 1.0, 2.0, 2.0])
    assert [finding.place_of(values, k) for k in range(4)] == [1, 4, 2.5, 2.5]


def test_uses_at_a_tiny_size() -> None:
    mixture = replace(whole_runs.PRUNING.corpus, length=16, train=32, valid=4, test=4)
    passages = Mixture("passages", ("docstrings",), length=33, train=12, valid=1, test=1)
    longer = replace(CASE.training, epochs=6)
    found = [
        *pruning.measure(whole_runs.Pruning(mixture, CASE.training, (0.5,), retrainings=2, model=MODEL), seed=0),
        *finding.measure(whole_runs.Finding(passages, longer, queries=4, model=MODEL), seed=0),
    ]
    (alone,) = select(found, part="pruning", score="the source itself", share=0.5)
    assert alone["wanted kept"] == 0.5  # a quarter of the passages are of the source, and half are kept
    (plain,) = select(found, score=whole_runs.RANDOM, share=0.0)
    assert plain["wanted kept"] == 0.25
    for name in ("BM25", "TF-IDF, n-grams", "final gradients, cosine"):
        (copy,) = select(found, score=name, query="copy")
        assert copy["first"] == 1, name
    assert len(tables_of_runs.tables(found)) == 4
    assert any("paraphrase" in sentence for sentence in tables_of_runs.sentences(found))
