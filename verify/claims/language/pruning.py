"""Pruning: drop the lowest-scored share of a mixture, train new models on the rest, and take their test loss.

One source of the mixture is wanted, and validates and tests; the others are another domain each, or gibberish. All runs
take about the same number of steps, so that what is kept is seen more often.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from adamshap.verify.claims.language import trajectory, truth
from adamshap.verify.claims.language.corpora import load
from adamshap.verify.claims.language.whole_runs import RANDOM, Pruning
from adamshap.verify.claims.statistics import Record

PRUNERS = (
    "sgd, sum",
    "sgd, unit",
    "random_order, sum",
    "random_order, unit",
    "carry (random_order)",
    "metagradient",
    "TRAK-like",
    "loss",
    "TF-IDF",
)


def measure(piece: Pruning, seed: int) -> Iterator[Record]:
    """Yield the test loss after each pruning, and the wanted source's share of what is kept."""
    corpus = load(piece.corpus, seed)
    count = corpus.train.n
    data, valid, test = truth.data_of(corpus.train), truth.parts_of(corpus.valid, 1), truth.parts_of(corpus.test, 1)
    flat = truth.model_of(corpus, piece.model, seed)
    index = truth.index_of(count, piece.training, seed)
    run = trajectory.recorded(flat, piece.training.optimiser(count), data, index)
    scores = truth.scores_of(run, valid) | truth.text_scores(corpus, 1)
    ranked = {name: scores[name][:, 0] for name in PRUNERS}
    ranked[RANDOM] = np.random.default_rng(seed).random(count)
    wanted = piece.corpus.sources.index(piece.corpus.validation)
    ranked["the source itself"] = (corpus.source == wanted) + np.random.default_rng(seed).random(count)
    for share in (0.0, *piece.shares):
        for name in ranked if share else (RANDOM,):
            # Whole batches, so that every step counts alike.
            kept_count = round((1 - share) * count / piece.training.batch_size) * piece.training.batch_size
            kept = np.zeros((piece.retrainings, count), bool)
            kept[:, np.argsort(-ranked[name], kind="stable")[:kept_count]] = True
            own = truth.model_of(corpus, piece.model, 1000 + seed)
            training = replace(piece.training, epochs=round(piece.training.epochs * count / kept_count))
            losses = truth.losses_of_new_run(own, training, data, test, kept, seed)
            yield {
                "part": "pruning",
                "seed": seed,
                "score": name,
                "share": share,
                "loss": float(losses.mean()),
                "wanted kept": float(np.mean(corpus.source[kept[0]] == wanted)),
            }
