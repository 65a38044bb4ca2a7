"""Truth over a run: scores of a language model's training passages against training it again.

A mixture of sources is trained from scratch, or a pre-trained model is fine-tuned. L is the mean loss of validation
passages of one source at a time. Three truths: the same run on random halves of its samples, and without one sample,
with its initialisation, batches and divisor; and new runs on the same halves, with initialisations (unless fine-tuned)
and batches of their own, whose mean over repetitions is known up to the reliability of that mean.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from adamshap.reference.contract import Array, Batch, batch_order
from adamshap.reference.weighting import weighted_steps
from adamshap.torch.bench.model import Model, Sizes
from adamshap.verify.claims.language import similarity, trajectory
from adamshap.verify.claims.language.corpora import Corpus, load
from adamshap.verify.claims.language.stacked import Data, Flat, mean_losses, trained
from adamshap.verify.claims.language.trajectory import Run
from adamshap.verify.claims.language.whole_runs import LEFT_OUT, NEW, SAME, SAME_SOURCE, WEIGHTS, Gpt, Training, Truth
from adamshap.verify.claims.stability.retraining import ceiling, half_masks
from adamshap.verify.claims.statistics import Record, pearson, spearman

CARRIED = ("secant", "random_order")


def model_of(corpus: Corpus, gpt: Gpt, seed: int) -> Flat:
    """Return a GPT for the corpus, its initial parameters drawn by `seed`."""
    sizes = Sizes(gpt.layers, gpt.heads, gpt.width, corpus.vocab, corpus.mixture.length, n=1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Model(sizes)
        for table in (model.tokens, model.places):  # PyTorch's default, 1, is too wide for a tied output
            torch.nn.init.normal_(table.weight, std=gpt.width**-0.5)
    return Flat.of(model)


def data_of(batch: Batch) -> Data:
    """Return passages and labels as tensors."""
    return torch.tensor(batch.x), torch.tensor(batch.y)


def index_of(count: int, training: Training, seed: int) -> Tensor:
    """Return the samples of each step (steps, batch); every batch is full."""
    order = batch_order(count, batch_size=training.batch_size, epochs=training.epochs, seed=seed)
    return torch.tensor(np.array([index for _, index in order]))


def parts_of(batch: Batch, parts: int) -> list[Data]:
    """Return the passages of each of `parts` sources, which follow each other in the batch."""
    return [data_of(batch.take(part)) for part in np.array_split(np.arange(batch.n), parts)]


# --- scores ----------------------------------------------------------------------------------------------------------


def scores_of(run: Run, valid: list[Data]) -> dict[str, Array]:
    """Return every score of a run that the model gives, (N, K)."""
    index = run.index.numpy()
    found = {
        f"{name}, {weighting}": np.stack(
            [weighted_steps(index, steps[..., k], run.count, weighting) for k in range(len(valid))], axis=1
        )
        for name, steps in trajectory.step_scores(run, valid).items()
        for weighting in WEIGHTS
    }
    found |= {f"carry ({slope})": values for slope, values in trajectory.carried(run, valid, CARRIED).items()}
    found["unrolled, H = 0"] = trajectory.unrolled(run, valid, "none")
    found["AdamW-influence"] = trajectory.unrolled(run, valid, "fisher")
    found["metagradient"] = trajectory.unrolled(run, valid)
    found |= similarity.of_gradients(run, valid)
    found["loss"] = np.repeat(-similarity.final_losses(run)[:, None], len(valid), axis=1)
    return found


def text_scores(corpus: Corpus, parts: int) -> dict[str, Array]:
    """Return the similarity (N, K) of each training passage's text to that of each source's validation passages."""
    texts = [corpus.text(corpus.train, row) for row in range(corpus.train.n)]
    rows = np.array_split(np.arange(corpus.valid.n), parts)
    queries = [" ".join(corpus.text(corpus.valid, row) for row in part) for part in rows]
    return {"TF-IDF": similarity.tfidf(texts, queries, "char_wb"), "BM25": similarity.bm25(texts, queries)}


# --- truths ----------------------------------------------------------------------------------------------------------


def losses_of_same_run(flat: Flat, run: Run, valid: list[Data], masks: Array) -> Array:
    """Return the losses (M, K) after the run on the samples of each mask (M, N), with its batches and divisor."""
    index = run.index[:, None].expand(-1, len(masks), -1)
    weight = torch.tensor(masks, dtype=flat.start.dtype)[:, run.index].transpose(0, 1) / index.shape[2]
    return _losses(flat, trained(flat, run.optimiser, run.data, index, weight), valid)


def losses_of_new_run(flat: Flat, training: Training, data: Data, valid: list[Data], masks: Array, seed: int) -> Array:
    """Return the losses (M, K) after training on the samples of each mask alone, on batches of its own."""
    members = [np.flatnonzero(mask) for mask in masks]
    count = len(members[0])
    order = [index_of(count, training, seed * len(masks) + k) for k in range(len(masks))]
    index = torch.stack([torch.tensor(who)[rows] for who, rows in zip(members, order, strict=True)], dim=1)
    weight = torch.full(index.shape, 1 / training.batch_size, dtype=flat.start.dtype)
    return _losses(flat, trained(flat, training.optimiser(count), data, index, weight), valid)


def _losses(flat: Flat, theta: Tensor, valid: list[Data]) -> Array:
    return np.stack([mean_losses(flat, theta, data).numpy() for data in valid], axis=1)


def started(case: Truth, corpus: Corpus, seed: int) -> Flat:
    """Return the model before the run: new, or trained on the case's first corpus."""
    flat = model_of(corpus, case.model, seed)
    if case.before is None:
        return flat
    mixture, training = case.before
    first = load(mixture, seed)
    index = index_of(first.train.n, training, seed)[:, None]
    weight = torch.full(index.shape, 1 / training.batch_size)
    return flat.starting(trained(flat, training.optimiser(first.train.n), data_of(first.train), index, weight)[0])


def measure(case: Truth, seed: int) -> Iterator[Record]:
    """Yield the agreement of every score with every truth, for each source of validation passages."""
    corpus = load(case.corpus, seed)
    sources = case.corpus.sources
    train, valid = data_of(corpus.train), parts_of(corpus.valid, len(sources))
    flat = started(case, corpus, seed)
    count = corpus.train.n
    run = trajectory.recorded(flat, case.training.optimiser(count), train, index_of(count, case.training, seed))
    scores = scores_of(run, valid) | text_scores(corpus, len(sources))
    scores[SAME_SOURCE] = (corpus.source[:, None] == np.arange(len(sources))).astype(float)
    generator = np.random.default_rng([seed, 1])
    masks = half_masks(count, case.halves, generator)
    same = losses_of_same_run(flat, run, valid, masks)
    new = []
    for repeat in range(case.repeats):
        own_seed = 1 + seed * case.repeats + repeat
        own = flat if case.before else model_of(corpus, case.model, 1000 + own_seed)
        new.append(losses_of_new_run(own, case.training, train, valid, masks, own_seed))
    repeated = np.array(new)
    left_out = generator.permutation(count)[: case.left_out]
    without = np.ones((len(left_out) + 1, count))
    without[np.arange(len(left_out)), left_out] = 0  # the last run leaves out nobody
    effects = losses_of_same_run(flat, run, valid, without)
    common = {"part": "truth", "case": case.name, "seed": seed}
    for k, source in enumerate(sources):
        truths = {SAME: -same[:, k], NEW: -repeated[..., k].mean(0), LEFT_OUT: effects[:-1, k] - effects[-1, k]}
        for name, values in scores.items():
            for truth, wanted in truths.items():
                predicted = values[left_out, k] if truth == LEFT_OUT else masks @ values[:, k]
                yield {
                    **common,
                    "source": source,
                    "score": name,
                    "truth": truth,
                    "spearman": spearman(predicted, wanted),
                    "pearson": pearson(predicted, wanted),
                }
        yield {
            **common,
            "part": "noise",
            "source": source,
            "parameters": flat.start.numel(),
            "ceiling": ceiling(repeated[..., k]),
            "same with new": spearman(truths[SAME], truths[NEW]),
            "loss": float(effects[-1, k]),
            "loss before": float(mean_losses(flat, flat.start[None], valid[k])[0]),
        }
