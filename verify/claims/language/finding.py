"""Finding the passage that a query comes from, by scores, by gradients, and by search.

A query is a training passage, garbled or paraphrased, or the text that follows it. A score is the fall of the query's
loss that a training passage caused; search compares words, n-grams of characters, and mean embeddings of the tokens.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from adamshap.reference.contract import Array, Batch
from adamshap.reference.weighting import weighted_steps
from adamshap.verify.claims.language import similarity, trajectory, truth
from adamshap.verify.claims.language.corpora import CHARACTERS, load
from adamshap.verify.claims.language.whole_runs import WEIGHTS, Finding
from adamshap.verify.claims.statistics import Record

SYNONYMS: Mapping[str, str] = {
    "all": "every", "also": "too", "an": "one", "any": "some", "argument": "parameter", "arguments": "parameters",
    "be": "become", "because": "since", "begin": "start", "call": "invoke", "called": "invoked", "can": "may",
    "change": "modify", "class": "type", "contains": "holds", "create": "make", "current": "present",
    "default": "usual", "defined": "given", "each": "every", "error": "failure", "first": "initial",
    "function": "routine", "if": "when", "is": "being", "list": "sequence", "method": "routine", "must": "should",
    "name": "label", "new": "fresh", "not": "never", "number": "count", "object": "thing", "only": "just",
    "optional": "permitted", "raise": "throw", "raised": "thrown", "return": "give", "returned": "given",
    "returns": "gives", "set": "put", "specified": "stated", "string": "text", "that": "which", "the": "this",
    "to": "towards", "true": "right", "type": "kind", "use": "employ", "used": "employed", "using": "with",
    "value": "quantity", "values": "quantities", "when": "whenever", "which": "that", "will": "shall", "with": "by",
}  # fmt: skip
"""Words for words: a paraphrase without a model."""


def garbled(tokens: Array, generator: np.random.Generator) -> Array:
    """Return a passage with a tenth of its characters replaced by others of it."""
    found = tokens.copy()
    at = generator.permutation(len(tokens))[: round(len(tokens) / 10)]
    found[at] = generator.choice(tokens, len(at))
    return found


def shuffled(text: str, generator: np.random.Generator) -> str:
    """Return the words of a text in a random order."""
    return " ".join(generator.permutation(np.array(text.split(" "), object)))


def paraphrased(text: str) -> str:
    """Return a text with words exchanged by `SYNONYMS`, and its second half first."""
    words = [SYNONYMS.get(word.lower(), word) for word in text.split(" ")]
    middle = len(words) // 2
    return " ".join(words[middle:] + words[:middle])


def text_of(row: Array) -> str:
    """Return the text of characters as tokens."""
    return "".join(CHARACTERS[token] for token in row)


def queries_of(rows: Array, half: int, generator: np.random.Generator) -> dict[str, Array]:
    """Return queries (Q, half) of the first halves of `rows` (Q, 2 half), by their kind; the other half follows."""
    first = rows[:, :half]

    def coded(text: str) -> Array:
        """Return the tokens of a text; a shorter one is repeated, a longer one is cut."""
        return np.resize([CHARACTERS.index(letter) for letter in text], half)

    return {
        "copy": first,
        "a tenth replaced": np.array([garbled(row, generator) for row in first]),
        "upper case": np.array([coded(text_of(row).upper()) for row in first]),
        "words shuffled": np.array([coded(shuffled(text_of(row), generator)) for row in first]),
        "paraphrase": np.array([coded(paraphrased(text_of(row))) for row in first]),
        "what follows": rows[:, half:],
    }


def measure(piece: Finding, seed: int) -> Iterator[Record]:
    """Yield, for each kind of query and score, how high the passage that the query comes from is ranked."""
    corpus = load(piece.corpus, seed)
    generator = np.random.default_rng([seed, 2])
    whole = np.column_stack([corpus.train.x[:, 0], corpus.train.y])  # an even number of tokens
    half = whole.shape[1] // 2
    passages = whole[:, :half]
    count = len(passages)
    sources = generator.permutation(count)[: piece.queries]
    kinds = queries_of(whole[sources], half, generator)
    queries = np.concatenate(list(kinds.values()))
    data, asked = (truth.data_of(Batch(rows[:, :-1], rows[:, 1:])) for rows in (passages, queries))
    flat = truth.model_of(corpus, piece.model, seed)
    index = truth.index_of(count, piece.training, seed)
    run = trajectory.recorded(flat, piece.training.optimiser(count), data, index)
    one_each = [(asked[0][k : k + 1], asked[1][k : k + 1]) for k in range(len(queries))]
    names = ("sgd", "random_order")
    steps = trajectory.step_scores(run, one_each, names)
    scores = {
        f"{name}, {weighting}": np.stack(
            [weighted_steps(index.numpy(), steps[name][..., k], count, weighting) for k in range(len(queries))], axis=1
        )
        for name in names
        for weighting in WEIGHTS
    }
    scores["AdamW-influence"] = trajectory.unrolled(run, one_each, "fisher")
    scores |= similarity.of_gradients(run, one_each)
    texts, asked_texts = ([text_of(row) for row in rows] for rows in (passages, queries))
    scores["BM25"] = similarity.bm25(texts, asked_texts)
    scores["TF-IDF, words"] = similarity.tfidf(texts, asked_texts, "word")
    scores["TF-IDF, n-grams"] = similarity.tfidf(texts, asked_texts, "char_wb")
    table = run.flat.named(run.theta[-1])["tokens.weight"]
    scores["mean embedding"] = similarity.embeddings(table, torch.tensor(passages), torch.tensor(queries))
    kind_of = np.repeat(list(kinds), len(sources))
    for name, values in scores.items():
        places = np.array([place_of(values[:, k], source) for k, source in enumerate(np.tile(sources, len(kinds)))])
        for kind in kinds:
            own = places[kind_of == kind]
            yield {
                "part": "finding",
                "seed": seed,
                "score": name,
                "query": kind,
                "first": float(np.mean(own == 1)),
                "reciprocal": float(np.mean(1 / own)),
            }


def place_of(values: Array, source: int) -> float:
    """Return the place of `source` in the list of highest values, 1 for the first; among equals the mean place."""
    above, equal = np.sum(values > values[source]), np.sum(values == values[source])
    return float(above + (equal + 1) / 2)
