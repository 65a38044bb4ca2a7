"""What the study runs: its data, the number of runs, and the truths by retraining."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A data set with the number of runs on it and of retrainings.

    Parameters
    ----------
    name : str
        Its name in the tables.
    task : str
        Its name in `claims.data`.
    train, valid : int
        Largest number of training and of validation samples; at most a fifth of the data validates.
    epochs : int
    runs : int
        Number of runs that differ in initialisation and order.
    one_varies : int
        Number of runs that differ in the initialisation alone, and as many in the order alone.
    halves, retrainings : int
        Number of random halves of the training data, and of retrainings of each.
    left_out, leave_one_out_seeds : int
        Number of samples left out, one at a time, and of retrainings of each; 0 for none.
    flipped_runs : int
        Number of runs with flipped labels; 0 for none.
    variants : bool
        Whether other training settings and slopes are tried as well.
    carry : bool
        Whether ``credit="carry"`` is tried as well.
    """

    name: str
    task: str
    train: int = 20_000
    valid: int = 500
    epochs: int = 5
    runs: int = 20
    one_varies: int = 4
    halves: int = 128
    retrainings: int = 5
    left_out: int = 0
    leave_one_out_seeds: int = 8
    flipped_runs: int = 5
    variants: bool = False
    carry: bool = False


@dataclass(frozen=True)
class Settings:
    """The defaults of `adamshap attribute`, and the cases; `seeds` is the number of splits of each data set."""

    seeds: int
    cases: tuple[Case, ...]
    hidden: tuple[int, ...] = (64, 64)
    lr: float = 1e-3
    batch_size: int = 32
    top: int = 50
    flipped: float = 0.1
    variant_runs: int = 4
    variant_halves: int = 96
    variant_retrainings: int = 3
    carry_runs: int = 3
    projections: int = 256


FULL = Settings(
    3,
    (
        Case("digits", "digits", left_out=96, variants=True),
        Case("visits, 1,600", "visits", train=1600, valid=400),
        Case("wine", "wine", halves=256, left_out=96, carry=True),
        Case("breast cancer", "breast_cancer", halves=256, left_out=96, variants=True, carry=True),
        Case("diabetes", "diabetes", halves=256, left_out=96, flipped_runs=0, carry=True),
        Case("topics", "topics", runs=10, retrainings=3),
        Case("visits, 12,000", "visits", train=12_000, epochs=2, runs=10, one_varies=0, halves=100, retrainings=2),
    ),
)
QUICK = Settings(
    2,
    (
        Case("digits", "digits", train=600, valid=150, epochs=3, runs=10, one_varies=2, halves=100, retrainings=2),
        Case("wine", "wine", runs=10, one_varies=2, halves=100, left_out=32, leave_one_out_seeds=4),
    ),
)
