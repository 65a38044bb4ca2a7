"""The options of one call of ``adamshap attribute``, and its results."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from adamshap.reference.command.datasets import Dataset, TaskChoice, label_names
from adamshap.reference.command.per_validation import mean_over
from adamshap.reference.command.preparation import Prepared
from adamshap.reference.command.spelling import Decimal
from adamshap.reference.command.table import Missing, Reading
from adamshap.reference.command.texts import ExampleKind, TokenKind
from adamshap.reference.contract import (
    ActivationName,
    Array,
    Credit,
    Estimator,
    Gradient,
    MarginalKind,
    Network,
    Run,
    ScoreSlope,
    Sequential,
)
from adamshap.reference.contract.schedule import Shape as ScheduleShape
from adamshap.reference.weighting import Weighting, weighted

Device = Literal["auto", "cpu", "cuda"]
ModelName = Literal["mlp", "convnet", "transformer"]


@dataclass(frozen=True)
class Options:
    """The command's options after parsing; `label` is None for data that is not a table.

    Exactly one of `epochs` and `steps` is given. Options with a default here are younger than the folders of some runs,
    which were computed with it. Sizes that `model` does not have are 0 or empty. `more` has the text files
    after `data`.
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
    valid_limit: int | None = None
    id: str | None = None
    activation: ActivationName = "tanh"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: ScheduleShape = "constant"
    warmup: int = 0
    device: Device = "auto"
    model: ModelName = "mlp"
    width: int = 0
    depth: int = 0
    group: str | None = None
    weighting: Weighting = "sum"  # runs of earlier versions have no other
    run_seed: int | None = None
    heads: int = 0
    context: int = 0
    more: tuple[str, ...] = ()
    examples: ExampleKind = "passage"
    tokens: TokenKind = "characters"
    per_validation: bool = False

    @classmethod
    def from_config(cls, given: Mapping[str, Any]) -> "Options":
        """Return the options that a run's ``config.json`` holds.

        Raises
        ------
        TypeError
            One is unknown, or one without a default is missing.
        """
        options: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in given.items()}
        return cls(**options)

    @property
    def seed_of_run(self) -> int:
        """The seed of initialisation and batch order: `seed`, which the data are split by, unless `run_seed` is set."""
        return self.seed if self.run_seed is None else self.run_seed

    @property
    def reading(self) -> Reading:
        """The options for reading a table."""
        return Reading(self.sep, self.decimal, self.one_hot, self.drop, self.missing, self.id, self.group)

    @property
    def estimator(self) -> Estimator:
        """Which score is computed."""
        return Estimator(self.slope, self.gradient, kind=self.kind)

    def length(self, count: int) -> tuple[int, int]:
        """Return the number of epochs begun and of steps when training on `count` examples."""
        per_epoch = -(-count // self.batch_size)
        steps = (self.epochs or 0) * per_epoch if self.steps is None else self.steps
        return -(-steps // per_epoch), steps


@dataclass(frozen=True)
class Quality:
    """Loss (nats), accuracy and ROC AUC on the validation examples.

    Of several classes, the mean of the ROC AUC of each class against all others. It is None where no class has
    validation examples both in it and outside.
    """

    loss: float
    accuracy: float
    roc_auc: float | None


@dataclass(frozen=True)
class Likelihood:
    """Mean loss (nats per token) on the validation examples, the same in bits, and its exponential, the perplexity."""

    loss: float
    bits: float
    perplexity: float


@dataclass(frozen=True)
class Fit:
    """A regression's loss and R² on the standardised validation targets, and its RMSE in their own units.

    R² is None if all validation targets are equal. The RMSE is taken over all targets.
    """

    loss: float
    r_squared: float | None
    rmse: float


@dataclass(frozen=True)
class Detection:
    """ROC AUC of detecting flipped labels by low scores, for both scores."""

    adam: float
    sgd: float


@dataclass(frozen=True, eq=False)
class Findings:
    """A finished attribution, with everything to be written and shown."""

    options: Options
    dataset: Dataset
    prepared: Prepared
    network: Network | Sequential
    computed_by: str
    run: Run
    before: Quality | Fit | Likelihood
    after: Quality | Fit | Likelihood
    seconds: float

    @property
    def scores(self) -> Array:
        """Each training example's score under the weighting of the options."""
        return mean_over(weighted(self.run, self.options.weighting))

    @property
    def label_names(self) -> list[str]:
        """The class name, or the targets, on which each training example was trained."""
        prepared = self.prepared
        return label_names(prepared.labels if self.dataset.targets else prepared.train.y, self.dataset.classes)
