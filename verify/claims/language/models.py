"""The language models: causal transformers of our own layers, and the number of parameters of each kind."""

from dataclasses import dataclass
from typing import Literal

from adamshap.reference.contract import Model, Sequential, transformer
from adamshap.verify.claims.language.corpora import Corpus

Kind = Literal["embedding", "attention", "MLP", "norms", "head"]
KINDS: tuple[Kind, ...] = ("embedding", "attention", "MLP", "norms", "head")


@dataclass(frozen=True)
class Shape:
    """The shape of a transformer, apart from the vocabulary and T; the width between a block's layers is 4 `width`."""

    width: int = 64
    depth: int = 2
    heads: int = 4
    norm: Literal["layer", "rms"] = "layer"
    tied: bool = True

    @property
    def label(self) -> str:
        """Its name in the tables."""
        norm = {"layer": "LayerNorm", "rms": "RMSNorm"}[self.norm]
        return f"{self.depth} × {self.width}, {'tied' if self.tied else 'untied'}, {norm}"

    def network(self, corpus: Corpus) -> Sequential:
        """Return the model for a corpus."""
        return transformer(
            vocab=corpus.vocab,
            context=corpus.mixture.length,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            norm=self.norm,
            tied=self.tied,
        )


def kind_of(name: str) -> Kind:
    """Return the kind of layer that a parameter belongs to; a tied output is part of the embedding."""
    if "norm" in name:
        return "norms"
    if "self_attn" in name:
        return "attention"
    if "linear" in name:
        return "MLP"
    return "head" if name.startswith("head") else "embedding"


def count(network: Model) -> int:
    """Return the number of parameters."""
    total = 0
    for shape in network.shapes.values():
        size = 1
        for side in shape:
            size *= side
        total += size
    return total
