"""The pieces of the study that follow whole runs: retraining, pruning, and finding passages. They need PyTorch."""

import importlib.util
from dataclasses import dataclass, field, replace

from adamshap.reference.contract import Adam, Schedule
from adamshap.reference.weighting import Weighting
from adamshap.verify.claims.language.corpora import GIBBERISH, Mixture
from adamshap.verify.claims.statistics import Record

SAME, NEW, LEFT_OUT = "halves, same run", "halves, new runs", "one left out"
TRUTHS = (SAME, NEW, LEFT_OUT)
WEIGHTS: tuple[Weighting, ...] = ("sum", "unit")
"""How the steps of a run count in a score."""
SAME_SOURCE = "same source"
"""1 for a passage of the validation passages' source, 0 for any other: what a score has to know more than."""
RANDOM = "random"
"""A pruner in the tables."""


@dataclass(frozen=True)
class Training:
    """How a model is trained; if `scheduled`, η rises over a tenth of the steps and then falls to 0."""

    epochs: int = 8
    batch_size: int = 8
    adam: Adam = field(default_factory=lambda: Adam(lr=3e-3))
    scheduled: bool = False

    def steps(self, count: int) -> int:
        """Return the number of steps for `count` samples."""
        return self.epochs * -(-count // self.batch_size)

    def optimiser(self, count: int) -> Adam | Schedule:
        """Return the optimiser for `count` samples."""
        if not self.scheduled:
            return self.adam
        steps = self.steps(count)
        return Schedule(self.adam, "linear", warmup=max(1, steps // 10), steps=steps)


@dataclass(frozen=True)
class Gpt:
    """The size of the model: small, since it is trained hundreds of times."""

    width: int = 32
    layers: int = 2
    heads: int = 4


@dataclass(frozen=True)
class Truth:
    """A run to train again.

    Parameters
    ----------
    name : str
        Its name in the tables.
    corpus : Mixture
        Its sources validate in turn.
    training : Training
    before : tuple of Mixture and Training, or None
        What the model is trained on first, if it is fine-tuned.
    model : Gpt
    halves, repeats : int
        Number of random halves, and of new runs on each.
    left_out : int
        Number of samples that are left out, one at a time.
    """

    name: str
    corpus: Mixture
    training: Training
    before: tuple[Mixture, Training] | None = None
    model: Gpt = Gpt()
    halves: int = 100
    repeats: int = 2
    left_out: int = 48


@dataclass(frozen=True)
class Pruning:
    """A mixture of the wanted source, which validates, with others; shares to drop; number of new runs on the rest."""

    corpus: Mixture
    training: Training
    shares: tuple[float, ...] = (0.2, 0.4, 0.6)
    retrainings: int = 2
    model: Gpt = Gpt()


@dataclass(frozen=True)
class Finding:
    """Passages of characters, of whose first halves a model is trained, and the number of those to find."""

    corpus: Mixture
    training: Training
    queries: int = 12
    model: Gpt = Gpt()


WholeRun = Truth | Pruning | Finding

FROM_SCRATCH = Truth(
    "from scratch", Mixture("four", ("help", "docstrings", "code", "licences"), train=96, valid=32), Training()
)
FINE_TUNING = Truth(
    "fine-tuning",
    Mixture("fine-tuning", ("code", "licences"), train=96, valid=16),
    Training(epochs=4, adam=Adam(lr=1e-3), scheduled=True),
    before=(Mixture("before", ("help", "docstrings"), train=1024, valid=2), Training(epochs=4)),
)
LARGER = replace(FINE_TUNING, name="fine-tuning, larger", model=Gpt(width=64, layers=4))
WANTED = ("docstrings", "code", "licences", GIBBERISH)
PRUNING = Pruning(
    Mixture("pruned", WANTED, train=320, valid=16, test=64, validation=WANTED[0]),
    Training(epochs=5),
)
FINDING = Finding(Mixture("passages", ("docstrings",), length=97, train=128, valid=1, test=1), Training(epochs=6))

FULL: tuple[WholeRun, ...] = (FINE_TUNING, LARGER, FROM_SCRATCH, PRUNING, FINDING)
SMALL = Gpt(width=16)
QUICK: tuple[WholeRun, ...] = (
    Truth(
        "fine-tuning",
        Mixture("fine-tuning", ("code",), length=24, train=48, valid=8),
        Training(epochs=4, adam=Adam(lr=1e-3), scheduled=True),
        before=(Mixture("before", ("help",), length=24, train=512, valid=2), Training(epochs=2)),
        model=SMALL,
        repeats=1,
        left_out=16,
    ),
    Pruning(
        Mixture("pruned", WANTED, length=24, train=96, valid=8, test=32, validation=WANTED[0]),
        Training(epochs=10),
        shares=(0.4,),
        model=SMALL,
    ),
    Finding(
        Mixture("passages", ("docstrings",), length=65, train=48, valid=1, test=1),
        Training(epochs=4),
        queries=4,
        model=SMALL,
    ),
)


def available() -> bool:
    """Return whether PyTorch is installed, which these pieces need."""
    return importlib.util.find_spec("torch") is not None


def measure(piece: WholeRun, seed: int) -> list[Record]:
    """Return the records of a piece with `seed`."""
    from adamshap.verify.claims.language import finding, pruning, truth  # these import PyTorch

    if isinstance(piece, Truth):
        return list(truth.measure(piece, seed))
    if isinstance(piece, Pruning):
        return list(pruning.measure(piece, seed))
    return list(finding.measure(piece, seed))
