"""Scores of training samples without a run: gradients of the final model, and comparisons of the text.

All have the shape (N, K), for N training samples and K sets of validation samples, and a high value means helpful or
alike.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from adamshap.reference.contract import Array
from adamshap.verify.claims.language.stacked import Data
from adamshap.verify.claims.language.trajectory import Run

DAMPING = 0.1
"""Of the kernel of the final gradients, relative to the mean of its diagonal."""
BM25_K1, BM25_B = 1.5, 0.75


def of_gradients(run: Run, valid: Sequence[Data]) -> dict[str, Array]:
    """Return scores by the gradients g_i at θ_T and γ_k, those of the validation losses.

    Their product, their cosine, and γᵀ (F + λ)⁻¹ g_i with F = Σ_i g_i g_iᵀ/N, as TRAK has it without a projection. With
    the N rows of G this is (G Gᵀ/N + λ)⁻¹ G γ, which needs no matrix of P rows.
    """
    g = run.flat.each_gradient(run.theta[-1], run.data).double()
    gamma = run.gradients(run.theta[-1], valid)
    product = g @ gamma.T
    cosine = product / (g.norm(dim=1)[:, None] * gamma.norm(dim=1))
    kernel = g @ g.T / len(g)
    damped = kernel + torch.eye(len(g), dtype=g.dtype) * (DAMPING * kernel.diagonal().mean())
    found = {
        "final gradients": product,
        "final gradients, cosine": cosine,
        "TRAK-like": torch.linalg.solve(damped, product),
    }
    return {name: values.numpy() for name, values in found.items()}


def final_losses(run: Run) -> Array:
    """Return each training sample's loss (N,) at θ_T."""
    losses: Array = run.flat.losses(run.theta[-1], *run.data).numpy()
    return losses


# --- text ------------------------------------------------------------------------------------------------------------


def tfidf(texts: Sequence[str], queries: Sequence[str], analyzer: str) -> Array:
    """Return the cosines (N, K) of TF-IDF vectors, of "word" or of character n-grams ("char_wb", n = 2 to 4)."""
    ngrams = (1, 1) if analyzer == "word" else (2, 4)
    vectoriser = TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams)
    rows = vectoriser.fit_transform(texts)
    found: Array = (rows @ vectoriser.transform(queries).T).toarray()
    return found


def bm25(texts: Sequence[str], queries: Sequence[str]) -> Array:
    """Return Okapi BM25 (N, K) of lower-case words; each word of a query counts as often as it occurs.

    A word in d of N texts weighs log(1 + (N − d + ½)/(d + ½)); f occurrences in a text of relative length l count as
    f (k1 + 1)/(f + k1 (1 − b + b l)).
    """
    documents = [Counter(words(text)) for text in texts]
    lengths = np.array([document.total() for document in documents], float)
    norm = BM25_K1 * (1 - BM25_B + BM25_B * lengths / max(lengths.mean(), 1))
    occurs = Counter(word for document in documents for word in document)
    found = np.zeros((len(texts), len(queries)))
    for column, query in enumerate(queries):
        for word, times in Counter(words(query)).items():
            if word in occurs:
                weight = math.log(1 + (len(texts) - occurs[word] + 0.5) / (occurs[word] + 0.5))
                f = np.array([document[word] for document in documents])
                found[:, column] += times * weight * f * (BM25_K1 + 1) / (f + norm)
    return found


def words(text: str) -> list[str]:
    """Return the lower-case words of a text: runs of letters, digits and underscores."""
    return "".join(letter if letter.isalnum() or letter == "_" else " " for letter in text.lower()).split()


def embeddings(table: Tensor, rows: Tensor, queries: Tensor) -> Array:
    """Return the cosines (N, K) of mean embeddings of the tokens of `rows` (N, T) and `queries` (K, T), centred."""
    means = [table[tokens].mean(1) for tokens in (rows, queries)]
    centre = means[0].mean(0)
    a, b = ((mean - centre) / (mean - centre).norm(dim=1, keepdim=True).clamp_min(1e-12) for mean in means)
    found: Array = (a @ b.T).numpy()
    return found
