"""What one call of the command was asked, and what it found."""

from dataclasses import dataclass

from adamshap.reference.command.datasets import Dataset, TaskChoice, label_names
from adamshap.reference.command.preparation import Prepared
from adamshap.reference.command.spelling import Decimal
from adamshap.reference.command.table import Missing, Reading
from adamshap.reference.contract import Credit, Estimator, Gradient, MarginalKind, Network, Run, ScoreSlope


@dataclass(frozen=True)
class Options:
    """The command's options, as they are used (`label` is the table's column, None for other data).

    Either `epochs` or `steps` is given.
    """

    data: str
    hidden: tuple[int, ...]
    epochs: int | None
    steps: int | None
    batch_size: int
    lr: float
    slope: ScoreSlope
    gradient: Gradient
    flip_labels: float
    seed: int
    label: str | None
    task: TaskChoice
    valid: str | None
    valid_fraction: float | None
    credit: Credit = "step"
    kind: MarginalKind = "shapley"
    sep: str | None = None
    decimal: Decimal | None = None
    one_hot: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    missing: Missing | None = None

    @property
    def reading(self) -> Reading:
        """Options that decide how a table is read."""
        return Reading(self.sep, self.decimal, self.one_hot, self.drop, self.missing)

    @property
    def estimator(self) -> Estimator:
        """Which score is computed."""
        return Estimator(self.slope, self.gradient, kind=self.kind)

    def length(self, count: int) -> tuple[int, int]:
        """Return epochs begun, and steps, of training on `count` examples."""
        per_epoch = -(-count // self.batch_size)
        steps = (self.epochs or 0) * per_epoch if self.steps is None else self.steps
        return -(-steps // per_epoch), steps


@dataclass(frozen=True)
class Quality:
    """Loss (nats) and accuracy on the validation examples."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Fit:
    """Of a regression on the validation examples: loss and R² of the standardised targets, error in their own units.

    R² is None where all validation targets are equal. The error is the root of the mean square over all targets.
    """

    loss: float
    r_squared: float | None
    rmse: float


@dataclass(frozen=True)
class Detection:
    """ROC AUC of "a low score means a flipped label", for both scores."""

    adam: float
    sgd: float


@dataclass(frozen=True, eq=False)
class Findings:
    """A finished attribution: all that is written and shown."""

    options: Options
    dataset: Dataset
    prepared: Prepared
    network: Network
    computed_by: str
    run: Run
    before: Quality | Fit
    after: Quality | Fit
    detection: Detection | None
    seconds: float

    @property
    def label_names(self) -> list[str]:
        """Class name that each training example was trained on, or its targets."""
        prepared = self.prepared
        return label_names(prepared.labels if self.dataset.targets else prepared.train.y, self.dataset.classes)
