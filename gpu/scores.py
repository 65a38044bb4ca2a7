"""Scores ⟨P, x_i⟩ without x_i: captures contracted with P, or paired with validation samples' ones, or forward mode.

======  ==============  ======================================================
paper   name            meaning
======  ==============  ======================================================
P       ``matrix``      validation gradient times slope, by parameter
S       ``slope``       slope, by parameter
η       ``lrs``         learning rate of each parameter, SGD's slope
Γ       ``validation``  captures of the validation samples, weighted
======  ==============  ======================================================
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adamshap.gpu.arrays import ScoreMatrix, SlopeArrays, like
from adamshap.gpu.captures import Captures, Factors, gradient_of, multiply_by_sums
from adamshap.gpu.clipping import multiply
from adamshap.gpu.context import EngineContext
from adamshap.gpu.sketch import Sketch
from adamshap.gpu.threads import in_parts

__all__ = [
    "Rerun",
    "Scorer",
    "ScoringTask",
    "contract",
    "differentiate",
    "matrix_scorer",
    "pair_dots",
    "score_chunks",
    "sgd_scorer",
    "slope_scorer",
    "two_term_scorer",
]

Scorer = Callable[[Captures, Any], None]
"""Adds the scores of captured rows to an array (1 or n_val, rows)."""

Rerun = Callable[[Callable[[Captures], None]], None]
"""Runs the passes of some rows again, and calls a function with the captures of each use of parameters as it comes."""


def contract(
    context: EngineContext,
    captures: Captures,
    matrix: Mapping[str, Any],
    out: Any,
    factors: Mapping[str, Factors] | None = None,
    score_dtype: str | None = None,
) -> None:
    """Add each row's score ⟨P, x_i⟩ to ``out``, exactly for a parameter without factors.

    With `score_dtype` the large products are computed in lower precision.
    """
    context.now("contraction")
    widest = max(capture.scratch for capture in captures.uses)
    scratch = context.buffers.get("contraction", (len(out), widest))

    def rows_between(low: int, high: int) -> None:
        rows = slice(low, high)
        for capture in captures.uses:
            part = capture if high - low == len(out) else capture.rows(rows)
            part.add_dots(context, matrix, factors or {}, out[rows], scratch[rows], score_dtype)

    if score_dtype == "bfloat16":  # whose product divides its own work
        rows_between(0, len(out))
    else:
        in_parts(rows_between, len(out), 2 * len(out) * captures.macs)


def differentiate(context: EngineContext, captures: Captures, matrix: ScoreMatrix, out: Any) -> None:
    """Add each row's score ⟨P, x_i⟩ to ``out`` as the derivative of its weighted loss along P."""
    if captures.origin is None:
        raise AssertionError("the captures are not those of a pass that can be differentiated")
    captures.origin.add_dots(context, matrix, out)


def pair_dots(
    context: EngineContext, captures: Captures, validation: Captures, names: Collection[str] | None = None
) -> Any:
    """Return the dot products of every row's gradient with every validation row's, (rows, validation rows).

    They are over the parameters in `names`, or over all. No array of a parameter's size is computed.
    """
    context.now("contraction")
    xp, total = context.backend.xp, None
    for capture in captures.uses:
        for other in validation.uses:
            dots = capture.pair_dots(xp, other, names)
            if dots is not None:
                total = dots if total is None else xp.add(total, dots, out=total)
    return total


@dataclass(frozen=True)
class ScoringTask:
    """Sizes and options of a scorer.

    Parameters
    ----------
    n, n_val : int
        Number of samples of the batch, and of validation samples.
    per_validation : bool
        Whether to score each validation sample's own loss. The validation captures may have n_val rows for each of
        several points, one after another.
    score_dtype : str, optional
    sketch : Sketch, optional
        Low-rank factors; None is exact.
    forward : bool
        Whether ⟨P, x_i⟩ is taken as the derivative of the loss along P, instead of from captures.
    names : collection of str, optional
        The parameters that are scored by factors; None is all for which these pay.
    """

    n: int
    n_val: int
    per_validation: bool = False
    score_dtype: str | None = None
    sketch: Sketch | None = None
    forward: bool = False
    names: Collection[str] | None = None

    @property
    def groups(self) -> int:
        """Number of scores per sample."""
        return self.n_val if self.per_validation else 1


def sgd_scorer(
    context: EngineContext, task: ScoringTask, validation: Captures, lrs: Mapping[str, float], buffer: str
) -> Scorer:
    """Return the scorer of SGD, whose slope is a number for each parameter: by pairs, where that is cheaper.

    `buffer` names the memory of P: two scorers of one step need two.
    """
    if task.forward and task.per_validation:
        rates = {name: context.backend.dtype.type(lr) for name, lr in lrs.items()}
        return _scorer_of_each(context, task, validation, rates)
    if not task.forward and (task.per_validation or validation.n * validation.pair_macs < validation.macs):
        return _pair_scorer(context, task, validation, lrs)
    gamma = gradient_of(context, validation)
    matrix = ScoreMatrix(like(context, buffer))
    for name, array in gamma.items():
        context.backend.xp.multiply(array, array.dtype.type(lrs[name]), out=matrix[name])
    return matrix_scorer(context, task, matrix, validation)


def _pair_scorer(context: EngineContext, task: ScoringTask, validation: Captures, lrs: Mapping[str, float]) -> Scorer:
    names_by_lr: dict[float, list[str]] = {}
    for name, lr in lrs.items():
        names_by_lr.setdefault(lr, []).append(name)
    groups = [(lr, None if len(names_by_lr) == 1 else names) for lr, names in names_by_lr.items()]

    def by_pairs(captures: Captures, out: Any) -> None:
        def rows_between(low: int, high: int) -> None:
            rows = slice(low, high)
            part = captures if high - low == captures.n else captures.rows(rows)
            for lr, names in groups:
                dots = pair_dots(context, part, validation, names)
                if dots is None:  # no capture uses them
                    continue
                dots *= dots.dtype.type(lr)
                if task.per_validation:
                    out[:, rows] += dots.reshape(len(dots), -1, task.n_val).sum(axis=1).T
                else:
                    out[0, rows] += dots.sum(axis=1)

        in_parts(rows_between, captures.n, 2 * captures.n * validation.n * captures.pair_macs)

    return by_pairs


def matrix_scorer(context: EngineContext, task: ScoringTask, matrix: ScoreMatrix, validation: Captures) -> Scorer:
    """Return the scorer of the mean validation loss, from P itself."""
    contraction = _contraction(context, task, matrix, validation, 0)
    return lambda captures, out: contraction(captures, out[0])


def _contraction(
    context: EngineContext, task: ScoringTask, matrix: ScoreMatrix, validation: Captures, group: int
) -> Callable[[Captures, Any], None]:
    """Return the function that adds ⟨P, x_i⟩ of captured rows to an array (rows,)."""
    if task.forward:
        return lambda captures, out: differentiate(context, captures, matrix, out)
    sketch = task.sketch
    factors = (
        None if sketch is None else sketch.factors(context, matrix, task.n, group, validation.products, task.names)
    )
    return lambda captures, out: contract(context, captures, matrix, out, factors, task.score_dtype)


def slope_scorer(context: EngineContext, task: ScoringTask, validation: Captures, slope: SlopeArrays) -> Scorer:
    """Return the scorer of a slope S. For the mean validation loss, P takes the memory of S."""
    if not task.per_validation:
        multiply_by_sums(context, validation, slope)
        return matrix_scorer(context, task, ScoreMatrix(slope), validation)
    return _scorer_of_each(context, task, validation, slope)


def _scorer_of_each(
    context: EngineContext, task: ScoringTask, validation: Captures, slope: Mapping[str, Any]
) -> Scorer:
    """Return the scorer of each validation sample's own loss, with a P for each."""

    def by_validation_sample(captures: Captures, out: Any) -> None:
        for v in range(task.n_val):
            gamma = gradient_of(context, validation.rows(slice(v, None, task.n_val)))
            matrix = ScoreMatrix(like(context, "product"))
            for name, array in gamma.items():
                context.backend.xp.multiply(array, slope[name], out=matrix[name])
            _contraction(context, task, matrix, validation, v)(captures, out[v])

    return by_validation_sample


def two_term_scorer(
    context: EngineContext,
    task: ScoringTask,
    validation: Captures,
    slopes: tuple[SlopeArrays, SlopeArrays],
    factor: Any = None,
) -> Scorer:
    """Return the scorer of both terms of "two_term": S with x, and R with sign(x) √|x|.

    The slopes are those for c x, c being `factor`, and scores are multiplied by c later. The signed root of c x is √c
    times that of x, so that the second term is divided by √c here.
    """
    score_own, score_roots = (slope_scorer(context, task, validation, slope) for slope in slopes)

    def both_terms(captures: Captures, out: Any) -> None:
        score_own(captures, out)
        roots = captures.signed_roots(context)
        if factor is None:
            score_roots(roots, out)
            return
        second = context.backend.xp.zeros_like(out)
        score_roots(roots, second)
        multiply(context, second, 1 / context.backend.xp.maximum(factor, 1e-300) ** 0.5)
        out += second

    return both_terms


def score_chunks(
    context: EngineContext, task: ScoringTask, scorers: list[Scorer], chunks: Iterable[tuple[slice, Captures | Rerun]]
) -> list[Any]:
    """Return each scorer's scores (groups, n), from the captures of the batch's chunks or from another pass of each."""
    totals = [context.backend.xp.zeros((task.groups, task.n), context.backend.dtype) for _ in scorers]
    for chunk, captures in chunks:
        context.now("contraction", chunk)
        parts = [total[:, chunk] for total in totals]

        def add(some: Captures, parts: list[Any] = parts) -> None:
            for scorer, part in zip(scorers, parts, strict=True):
                scorer(some, part)

        if isinstance(captures, Captures):
            add(captures)
        else:
            captures(add)
    return totals
