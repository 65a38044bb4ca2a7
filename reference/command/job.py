"""What one call of the command was asked, and what it found."""

from dataclasses import dataclass

from adamshap.reference.command.datasets import Dataset
from adamshap.reference.command.preparation import Prepared
from adamshap.reference.problem import Credit, Gradient, Network, Run, Slope


@dataclass(frozen=True)
class Options:
    """The command's options, as they are used (`label` is the csv's column, None for other data)."""

    data: str
    hidden: tuple[int, ...]
    epochs: int
    batch_size: int
    lr: float
    slope: Slope
    gradient: Gradient
    flip_labels: float
    seed: int
    label: str | None
    credit: Credit = "step"


@dataclass(frozen=True)
class Quality:
    """Loss (nats) and accuracy on the validation examples."""

    loss: float
    accuracy: float


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
    before: Quality
    after: Quality
    detection: Detection | None
    seconds: float

    @property
    def label_names(self) -> list[str]:
        """Class name that each training example was trained on."""
        return [self.dataset.classes[label] for label in self.prepared.train.y]
