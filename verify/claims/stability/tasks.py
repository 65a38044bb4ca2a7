"""The data as `adamshap attribute` prepares them: a fifth held out, at most 500 samples, and tables standardised."""

from dataclasses import replace

import numpy as np

from adamshap.reference.contract import Array, Batch
from adamshap.verify.claims import data
from adamshap.verify.claims.stability.settings import Case

SHARE = 0.2  # of all samples, for validation
TEXTS = ("topics", "characters")


def load(case: Case, split: int) -> data.Task:
    """Return the data of `case`, split by the seed `split`."""
    valid = min(case.valid, round(SHARE * data.count(case.task)))
    task = data.load(case.task, split, train=case.train, valid=valid, test=1)
    if case.task in TEXTS:
        return task
    mean, scale = task.train.x.mean(axis=0), task.train.x.std(axis=0)
    scale[scale == 0] = 1.0

    def standardised(batch: Batch) -> Batch:
        x: Array = (batch.x - mean) / scale
        x[:, np.ptp(task.train.x, axis=0) == 0] = 0.0
        return Batch(x, batch.y)

    return replace(task, train=standardised(task.train), valid=standardised(task.valid))
