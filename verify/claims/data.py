"""The data for testing the claims: scikit-learn's data sets, a table of statsmodels, and the text of every Python.

Each task is split anew for each seed into training samples, validation samples (L is their mean loss), and test samples
that neither training nor scoring uses.
"""

import re
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pydoc_data import topics as pydoc_topics

import numpy as np
import sklearn.datasets

from adamshap.reference.contract import Array, Batch, Network, one_of

TASKS = ("digits", "breast_cancer", "wine", "diabetes", "visits", "topics", "characters")
TOPICS = 8  # the longest topics of pydoc_data
WORDS, CHUNK = 1024, 30  # size of the hashed vocabulary; words in a sample
CONTEXT = 6  # characters before the predicted one
ALPHABET = 48  # number of most frequent characters; all others share one more symbol
STRIDE = 7  # characters between two samples


@dataclass(frozen=True, eq=False)
class Task:
    """A split data set; ``source`` (N,) is the class or text of each training sample."""

    name: str
    train: Batch
    valid: Batch
    test: Batch
    source: Array
    valid_source: Array
    outputs: int
    loss: str

    def network(self, hidden: tuple[int, ...]) -> Network:
        """Return a tanh network with these hidden widths for the task."""
        sizes = (self.train.x.shape[1], *hidden, self.outputs)
        return Network(sizes, "tanh", "mse" if self.loss == "mse" else "cross_entropy")


def load(name: str, seed: int, *, train: int, valid: int = 100, test: int = 300) -> Task:
    """Return the task `name` with at most `train` training and `test` test samples, split by `seed`."""
    x, y, source = _whole(one_of("name", name, TASKS))
    order = np.random.default_rng(seed).permutation(len(x))
    valid = min(valid, len(x) // 4)
    test = min(test, len(x) // 4)
    at_valid, at_test, at_train = np.split(order[: valid + test + train], [valid, valid + test])
    if name in ("breast_cancer", "wine", "diabetes", "visits"):
        scale = x[at_train].std(axis=0)
        x = (x - x[at_train].mean(axis=0)) / np.where(scale > 0, scale, 1)  # a rare category may be in no sample
    if name == "diabetes":
        y = (y - y[at_train].mean(axis=0)) / y[at_train].std(axis=0)
    train_batch, valid_batch, test_batch = (Batch(x[part], y[part]) for part in (at_train, at_valid, at_test))
    outputs = y.shape[1] if y.ndim == 2 else int(y.max()) + 1
    loss = "mse" if y.ndim == 2 else "cross_entropy"
    return Task(name, train_batch, valid_batch, test_batch, source[at_train], source[at_valid], outputs, loss)


def count(name: str) -> int:
    """Return the number of all samples of the task `name`."""
    return len(_whole(one_of("name", name, TASKS))[0])


@cache
def _whole(name: str) -> tuple[Array, Array, Array]:
    """Return inputs, labels or targets, and sources of all samples."""
    if name == "topics":
        return _topics()
    if name == "characters":
        return _characters()
    if name == "visits":
        return _visits()
    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    if name == "diabetes":
        return x, y[:, None], (y > np.median(y)).astype(np.int64)
    return x / 16 if name == "digits" else x, y, y


def _visits() -> tuple[Array, Array, Array]:
    """Return RAND's health insurance experiment; the label is whether a person saw a doctor in a year."""
    from statsmodels.datasets import randhie  # only this task needs it, and it imports pandas

    table = randhie.load_pandas().data
    y = (table["mdvis"].to_numpy() > 0).astype(np.int64)
    return table.drop(columns="mdvis").to_numpy(float), y, y


def _longest_topics() -> list[str]:
    """Return the longest topics, in an order that does not depend on the dictionary's."""
    return sorted(pydoc_topics.topics.values(), key=lambda text: (-len(text), text))[:TOPICS]


def _topics() -> tuple[Array, Array, Array]:
    """Return chunks of a topic's words, as square roots of hashed word counts; the label is the topic."""
    rows, labels = [], []
    for topic, text in enumerate(_longest_topics()):
        words = re.findall(r"[a-z_]+", text.lower())
        for start in range(0, len(words) - CHUNK, CHUNK):
            places = [zlib.crc32(word.encode()) % WORDS for word in words[start : start + CHUNK]]
            rows.append(np.sqrt(np.bincount(places, minlength=WORDS)))
            labels.append(topic)
    y = np.array(labels)
    return np.array(rows), y, y


def _characters() -> tuple[Array, Array, Array]:
    """Return one-hot contexts of `CONTEXT` characters; the label is the next one, the source is the topic."""
    texts = [re.sub(r"\s+", " ", text.lower()) for text in _longest_topics()]
    frequent = [letter for letter, _ in sorted(Counter("".join(texts)).items(), key=lambda pair: (-pair[1], pair[0]))]
    number = {letter: place for place, letter in enumerate(frequent[:ALPHABET])}
    inputs, labels, sources = [], [], []
    for topic, text in enumerate(texts):
        codes = np.array([number.get(letter, ALPHABET) for letter in text])
        starts = np.arange(0, len(codes) - CONTEXT, STRIDE)
        inputs.append(np.eye(ALPHABET + 1)[codes[starts[:, None] + np.arange(CONTEXT)]].reshape(len(starts), -1))
        labels.append(codes[starts + CONTEXT])
        sources.append(np.full(len(starts), topic))
    return np.concatenate(inputs), np.concatenate(labels), np.concatenate(sources)
