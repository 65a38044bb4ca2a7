"""One score for each sample from the scores of a run's steps: how much each step counts (docs/method.md 12).

In the first steps Adam's moments are near 0, so these steps are large whatever the gradient, and their scores with
them. The plain sum of a sample's scores is its share of the fall of the validation loss, but its largest and smallest
values are those of the samples that happened to be in the first batches. Other weightings give that sum up for an order
that depends less on chance.
"""

from typing import Literal, get_args

import numpy as np

from adamshap.reference.contract import Array, Run, of_kind, one_of, refuse, true_or_false

__all__ = ["WEIGHTINGS", "Weighting", "weighted", "weighted_steps"]

Weighting = Literal["sum", "unit"]
WEIGHTINGS: tuple[str, ...] = get_args(Weighting)


def weighted(run: Run, weighting: Weighting = "unit", *, sgd: bool = False) -> Array:
    """Return each training sample's score of a run under a weighting of its steps.

    Parameters
    ----------
    run : Run
        Of oracle, engine or `adamshap.torch`, with ``keep_step_scores=True``; "sum" needs no step scores.
    weighting : {"sum", "unit"}
        "sum": the sum over the sample's steps, which is ``run.scores``. "unit": the mean over the sample's steps of its
        score divided by the root mean square of the batch's scores.
    sgd : bool
        Weigh the scores by SGD's formula instead.

    Returns
    -------
    array (N,), or (N, n_val) with ``per_validation``
        In units of the validation loss for "sum"; a plain number for "unit", 1 for a sample whose score is the root
        mean square of its batch's in each step. 0 for a sample of no batch.

    Raises
    ------
    ValueError, TypeError
        An unknown weighting; a run without step scores.
    """
    of_kind("run", run, Run)
    one_of("weighting", weighting, WEIGHTINGS)
    sgd = true_or_false("sgd", sgd)
    totals, steps = (run.sgd_scores, run.step_sgd_scores) if sgd else (run.scores, run.step_scores)
    index = run.step_index
    if weighting == "sum":
        return totals.copy()
    if steps is None or index is None:
        needs = "one with keep_step_scores=True, or weighting 'sum'"
        refuse("run", "a run without step scores", needs)
    return weighted_steps(index, steps, len(totals), weighting)


def weighted_steps(index: Array, steps: Array, count: int, weighting: Weighting) -> Array:
    """Return the scores of `count` samples from those of each step.

    Parameters
    ----------
    index : int array (steps, batch)
        The sample of each score; −1 for none.
    steps : array (steps, batch), or (steps, batch, n_val)
        The scores; whatever stands where there is no sample does not matter.
    count : int
        Number of samples N.
    weighting : {"sum", "unit"}
        As for `weighted`.

    Returns
    -------
    array (N,) or (N, n_val)
        The scores.
    """
    one_of("weighting", weighting, WEIGHTINGS)
    taken = index >= 0
    known = np.where(taken.reshape(*taken.shape, *[1] * (steps.ndim - 2)), steps, 0.0)
    if weighting == "unit":
        sizes = _root_mean_squares(known, taken)
        known = np.divide(known, sizes, out=np.zeros_like(known), where=sizes > 0)
    scores = np.zeros((count, *steps.shape[2:]))
    # In the order of the steps, so that "sum" has the same bits as the totals of the run.
    np.add.at(scores, index[taken], known[taken])
    if weighting == "unit":
        seen = np.maximum(np.bincount(index[taken], minlength=count), 1)
        scores /= seen.reshape(count, *[1] * (scores.ndim - 1))
    return scores


def _root_mean_squares(known: Array, taken: Array) -> Array:
    """Return the root mean square of each step's scores, 0 where there is no sample: (steps, 1, ...).

    With a column for each validation sample it is that of the columns' mean, so that the mean of the weighted columns
    is the weighted mean.
    """
    scores = known if known.ndim == 2 else known.mean(axis=2)
    # The largest is taken out first, as squares may be beyond the range.
    largest = np.abs(scores).max(axis=1, keepdims=True, initial=0.0)
    shares = np.divide(scores, largest, out=np.zeros_like(scores), where=largest > 0)
    count = np.maximum(taken.sum(axis=1, keepdims=True), 1)
    sizes: Array = largest * np.sqrt((shares**2).sum(axis=1, keepdims=True) / count)
    return sizes.reshape(len(known), *[1] * (known.ndim - 1))
