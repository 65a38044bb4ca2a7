"""The oracle's functions of one step, `Step` in and NumPy arrays out, computed the engine's way.

======  =================  ==============================================================
paper   name               meaning
======  =================  ==============================================================
U       `utility`          fall of the validation loss by a step with a coalition alone
S       ``coalition``      which samples take part, a mask
A[a,b]  plans' "nodes"     divided difference of Adam's map; ``x_i A[g, g − x_i]`` is a
                           marginal's change of the step, without subtracting two steps
======  =================  ==============================================================
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adamshap.gpu.arrays import Arrays, BatchGradient, like
from adamshap.gpu.backend import Backend, DeviceName, DtypeName, pick_backend
from adamshap.gpu.captures import Captures, write_sums
from adamshap.gpu.context import EngineContext
from adamshap.gpu.hyperparameters import Hyperparameters, refuse_division_by_zero
from adamshap.gpu.layers import context_for
from adamshap.gpu.parameter_pass import take_step
from adamshap.gpu.sketch import Sketch
from adamshap.gpu.state import State, StepBatch
from adamshap.gpu.step import attribute_step, plain_step
from adamshap.reference.contract import (
    MARGINAL_LOSSES,
    MARGINALS,
    Adam,
    AdamState,
    Denominator,
    Estimator,
    Gradient,
    MarginalKind,
    MarginalLoss,
    Marginals,
    Params,
    ScoreDtype,
    ScoreSlope,
    Step,
    StepNumber,
    Variance,
    adam_in,
    coalition_mask,
    of_kind,
    one_of,
    permutations_of,
    positive_integer,
    refuse,
    refuse_overflow,
    seed_of,
    true_or_false,
)

__all__ = ["influence", "marginals", "refuse_score_dtype", "scores", "update", "utility"]

ALL_COALITIONS_UP_TO = 12  # samples


def update(
    step: Step, *, device: DeviceName = "auto", dtype: DtypeName = "float32", device_arrays: bool = False
) -> tuple[Params, AdamState]:
    """Take the step with the whole batch.

    Parameters
    ----------
    step : Step
    device : {"auto", "cpu", "cuda"}
        "auto" is CUDA where CuPy finds a device.
    dtype : {"float32", "float64"}
        In which everything is computed.
    device_arrays : bool
        Return arrays where they were computed, rather than NumPy's.

    Returns
    -------
    params : dict of arrays
        θ⁺ = θ − A(g) − η λ θ.
    state : AdamState
        m⁺ and v⁺, one step further.

    Raises
    ------
    ValueError, TypeError
        A bad argument; ε = 0 where v and the gradient are 0; results that `dtype` does not hold.
    """
    device_arrays = true_or_false("device_arrays", device_arrays)
    case = _Case.of(step, device, dtype)
    context, new = case.context, case.fresh()
    with context.at_work():
        if case.adam.eps == 0:
            refuse_division_by_zero(context, case.hyperparameters, case.state.v, case.gradient())
        plain_step(context, case.adam, case.state, case.batch.x, case.batch.y, case.weight, new)
    groups = {"gradient of": new.m, "squared gradient of": new.v, "new": new.theta}
    named = {f"{group} {key!r}": array for group, arrays in groups.items() for key, array in arrays.items()}
    refuse_overflow(named, context.backend.dtype)
    theta, m, v = (
        {key: context.backend.out(a, device_arrays) for key, a in d.items()} for d in (new.theta, new.m, new.v)
    )
    return theta, AdamState(step.state.step + 1, m, v)


def scores(
    step: Step,
    slope: ScoreSlope = "random_order",
    gradient: Gradient = "midpoint",
    efficient: bool = False,
    per_validation: bool = False,
    nodes: tuple[int, int] | None = None,
    denominator: Denominator = "exact",
    kind: MarginalKind = "shapley",
    *,
    rank: int | None = None,
    variance: Variance = "exact",
    micro_batch: int | None = None,
    score_dtype: ScoreDtype | None = None,
    device: DeviceName = "auto",
    dtype: DtypeName = "float32",
    device_arrays: bool = False,
) -> Any:
    """Return each training sample's score for this step: ``score_i = ⟨Γ ⊙ S, x_i⟩``.

    With slope "two_term", ``⟨Γ ⊙ S, x_i⟩ + ⟨Γ ⊙ R, sign(x_i) √|x_i|⟩``.

    Parameters
    ----------
    step : Step
    slope : {"sgd", "frozen", "linearized", "tangent", "secant", "random_order", "two_term"}
        S.
    gradient : {"start", "midpoint", "path"}
        Γ. With "two_term", "midpoint" and "path" are those of the sample's own part of the step.
    efficient : bool
        Spread what is missing to U(B) − U(∅) equally over the batch.
    per_validation : bool
        Score against each validation sample's own loss: (n, n_val), whose mean over columns is the score.
    nodes : tuple of two ints, optional
        (path, normal): Gauss–Legendre nodes of "random_order" and of "path", Gauss–Hermite nodes of "random_order".
        Of "two_term" with "shapley" likewise, over what a sample finds; places of arrival are counted for n ≤ path.
        By default (4, 4), for "two_term" (8, 2).
    denominator : {"exact", "previous"}
        Of "linearized".
    kind : {"first", "last", "shapley"}
        Of "two_term": which of `marginals` the scores are made for.
    rank : int, optional
        Score by a sketch of P of this rank, in the layers that gain by it; None is exact, and all that
        "two_term" has.
    variance : {"exact", "rank_one"}
        σ² of "random_order" and "two_term": exact at the cost of one more matrix product a layer, or from norms alone,
        which is far off where a single input is far larger than the others (docs/choose.md).
    micro_batch : int, optional
        So many samples go through the network at a time.
    score_dtype : {"tf32", "float16"}, optional
        Make the contraction's products in this on a CUDA device, for speed; the step itself stays in `dtype`.
    device : {"auto", "cpu", "cuda"}
        "auto" is CUDA where CuPy finds a device.
    dtype : {"float32", "float64"}
        In which everything is computed.
    device_arrays : bool
        Return arrays where they were computed, rather than NumPy's.

    Returns
    -------
    array (n,) or (n, n_val)
        In units of the validation loss; positive means that the sample lowered it.

    Raises
    ------
    ValueError, TypeError
        An unknown name, bad nodes; ``denominator="previous"`` at t = 1 or with another slope; another `kind` with
        another slope; a `rank` with "two_term"; a denominator of 0; results that `dtype` does not hold.
    """
    of_kind("step", step, Step)
    device_arrays = true_or_false("device_arrays", device_arrays)
    backend = pick_backend(device, dtype)
    estimator = Estimator(
        slope, gradient, efficient, per_validation, nodes, denominator, kind, variance, rank, score_dtype
    )
    refuse_score_dtype(estimator, backend)
    estimator.refuse_first_step(step.state.step)
    sketch = None if estimator.rank is None else Sketch(estimator.rank)
    size = None if micro_batch is None else positive_integer("micro_batch", micro_batch)
    case = _Case.of(step, device, dtype)
    with case.context.at_work():
        taken = attribute_step(
            case.context,
            case.adam,
            case.state,
            case.batch,
            case.weight,
            estimator,
            case.fresh(),
            micro_batch=size,
            sketch=sketch,
        )
    refuse_overflow({"scores": taken.scores}, case.context.backend.dtype)
    return case.context.backend.out(taken.scores, device_arrays)


def refuse_score_dtype(estimator: Estimator, backend: Backend) -> None:
    """Refuse a `score_dtype` but for float32 on a CUDA device."""
    if estimator.score_dtype is not None and not (backend.on_cuda and backend.dtype == np.float32):
        where = f"{backend.dtype} on {'a CUDA device' if backend.on_cuda else 'the host'}"
        refuse("score_dtype", f"{estimator.score_dtype!r} for {where}", "None, or float32 on a CUDA device")


def influence(
    step: Step, *, device: DeviceName = "auto", dtype: DtypeName = "float32", device_arrays: bool = False
) -> Any:
    """Return ⟨∇L(θ⁺), A'(g) ⊙ x_i⟩: how fast the loss after the step falls as sample i's weight grows from 1.

    Parameters
    ----------
    step : Step
    device : {"auto", "cpu", "cuda"}
        "auto" is CUDA where CuPy finds a device.
    dtype : {"float32", "float64"}
        In which everything is computed.
    device_arrays : bool
        Return arrays where they were computed, rather than NumPy's.

    Returns
    -------
    array (n,)
        Minus the derivative of L(θ⁺) in the weight; positive means that more of the sample would lower the loss.

    Raises
    ------
    ValueError, TypeError
        A bad argument; a denominator of 0; results that `dtype` does not hold.
    """
    device_arrays = true_or_false("device_arrays", device_arrays)
    case = _Case.of(step, device, dtype)
    estimator = Estimator("tangent")
    with case.context.at_work():
        taken = attribute_step(
            case.context, case.adam, case.state, case.batch, case.weight, estimator, case.fresh(), after=True
        )
    refuse_overflow({"influence": taken.scores}, case.context.backend.dtype)
    return case.context.backend.out(taken.scores, device_arrays)


def utility(step: Step, coalition: Any, *, device: DeviceName = "auto", dtype: DtypeName = "float32") -> float:
    """Return U(S) = L(θ) − L(θ − A(g_S) − η λ θ), the fall of the validation loss by a step with `coalition` alone.

    Parameters
    ----------
    step : Step
    coalition : bool array (n,)
        Which samples of the batch take part; the gradient's divisor stays n.
    device : {"auto", "cpu", "cuda"}
        "auto" is CUDA where CuPy finds a device.
    dtype : {"float32", "float64"}
        In which everything is computed.

    Returns
    -------
    float
        In units of the validation loss; positive where it fell.

    Raises
    ------
    ValueError, TypeError
        A bad argument; a denominator of 0; a result that `dtype` does not hold.
    """
    mask = coalition_mask(coalition, of_kind("step", step, Step).n)
    case = _Case.of(step, device, dtype)
    with case.context.at_work():
        value = _Game.of(case, "exact").value(mask)
    refuse_overflow({"utility": value}, case.context.backend.dtype)
    return value


def marginals(
    step: Step,
    kind: MarginalKind = "first",
    loss: MarginalLoss = "exact",
    *,
    permutations: int = 1024,
    seed: int = 0,
    device: DeviceName = "auto",
    dtype: DtypeName = "float32",
) -> Marginals:
    """Return what each sample adds to the utility of the step.

    Parameters
    ----------
    step : Step
    kind : {"first", "last", "shapley"}
        "first": U({i}) − U(∅); "last": U(B) − U(B∖{i}); "shapley": the Shapley value of U, over all coalitions for
        n ≤ 12, above by antithetic permutations.
    loss : {"exact", "first_order"}
        "exact" evaluates the loss (U); "first_order" uses U₁(S) = ⟨∇L(θ), A(g_S)⟩.
    permutations : int
        Even number of permutations drawn where Shapley values are sampled.
    seed : int
        Of those permutations.
    device : {"auto", "cpu", "cuda"}
        "auto" is CUDA where CuPy finds a device.
    dtype : {"float32", "float64"}
        In which everything is computed.

    Returns
    -------
    Marginals
        ``values`` (n,), ``empty`` = U(∅), ``total`` = U(B), ``standard_error`` (n,).

    Raises
    ------
    ValueError, TypeError
        A bad argument; a denominator of 0; results that `dtype` does not hold.
    """
    of_kind("step", step, Step)
    one_of("kind", kind, MARGINALS)
    one_of("loss", loss, MARGINAL_LOSSES)
    sampled = kind == "shapley" and step.n > ALL_COALITIONS_UP_TO
    permutations, seed = permutations_of(permutations), seed_of(seed)
    case, n = _Case.of(step, device, dtype), step.n
    error = np.zeros(n)
    with case.context.at_work():
        game = _Game.of(case, loss)
        empty, total = game.value(np.zeros(n, bool)), game.value(np.ones(n, bool))
        if sampled:
            values, error = _sampled_shapley(game, n, permutations // 2, seed)
        elif kind == "shapley":
            values = _exact_shapley(game, n)
        elif kind == "first":
            values = np.array([game.value(alone) - empty for alone in np.eye(n, dtype=bool)])
        else:
            values = np.array([total - game.value(~alone) for alone in np.eye(n, dtype=bool)])
    refuse_overflow({"values": values, "empty": empty, "total": total}, case.context.backend.dtype)
    return Marginals(values, empty, total, error)


@dataclass(frozen=True)
class _Case:
    """A step brought into a backend."""

    context: EngineContext
    adam: Adam
    state: State
    batch: StepBatch
    weight: float

    @classmethod
    def of(cls, step: Step, device: str, dtype: str) -> "_Case":
        of_kind("step", step, Step)
        backend = pick_backend(device, dtype)
        groups = {"Step.params": step.params, "Step.state.m": step.state.m, "Step.state.v": step.state.v}
        theta, m, v = (backend.reals(group, field) for field, group in groups.items())
        train, valid = (
            (backend.held(f"Step.{field}.x", batch.x), backend.targets(f"Step.{field}.y", batch.y))
            for field, batch in (("train", step.train), ("valid", step.valid))
        )
        return cls(
            context_for(step.net, backend),
            adam_in(adam_in(step.adam, step.dtype), backend.dtype),
            State(theta, m, v, StepNumber(step.state.step + 1)),
            StepBatch(*train, *valid),
            1 / step.n if step.reduction == "mean" else 1.0,
        )

    def fresh(self) -> State:
        """Return room for the state after the step."""
        theta, m, v = (like(self.context, f"new {name}") for name in ("theta", "m", "v"))
        return State(theta, m, v, StepNumber(self.state.t + 1))

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Adam's settings at the step."""
        return Hyperparameters.at(self.context, self.adam, self.state.t)

    def captures(self) -> Captures:
        """Return the batch's captures at θ."""
        stack = self.context.stack
        workspace = stack.workspace(self.context, "train", self.batch.x)
        return stack.run(self.context, workspace, self.state.theta, self.batch.y, self.weight)

    def gradient(self) -> BatchGradient:
        """Return the batch's gradient."""
        g = BatchGradient(like(self.context, "gradient"))
        write_sums(self.context, self.captures(), g)
        return g


@dataclass(frozen=True)
class _Game:
    """The utility of coalitions of one batch."""

    case: _Case
    hyperparameters: Hyperparameters
    captures: Captures
    base: float | Arrays  # L(θ), or ∇L(θ) for the first-order loss

    @classmethod
    def of(cls, case: _Case, loss: str) -> "_Game":
        context, batch = case.context, case.batch
        workspace = context.stack.workspace(context, "valid", batch.valid_x)
        validation = context.stack.run(context, workspace, case.state.theta, batch.valid_y, 1 / batch.n_val)
        base: float | Arrays = float(validation.losses.mean(dtype="float64"))
        if loss == "first_order":
            base = like(context, "validation gradient")
            write_sums(context, validation, base)
        return cls(case, case.hyperparameters, case.captures(), base)

    def value(self, coalition: Any) -> float:
        """Return U(S), or U₁(S)."""
        context, state = self.case.context, self.case.state
        mask = context.backend.real(coalition.astype(np.float64))[:, None]
        g = BatchGradient(like(context, "coalition"))
        write_sums(context, self.captures.weighted(mask), g)
        refuse_division_by_zero(context, self.hyperparameters, state.v, g)
        new = self.case.fresh()
        if isinstance(self.base, float):
            take_step(context, self.hyperparameters.scalars, state, g, new)
            workspace = context.stack.workspace(context, "valid", self.case.batch.valid_x)
            losses = context.stack.losses(context, workspace, new.theta, self.case.batch.valid_y)
            return self.base - float(losses.mean(dtype="float64"))
        # From θ = 0 the step is −A(g_S) to its last digit; θ − A(g_S) would round it off.
        take_step(
            context,
            self.hyperparameters.scalars,
            replace(state, theta={k: context.backend.xp.zeros_like(a) for k, a in g.items()}),
            g,
            new,
        )
        products = [(self.base[key] * moved).sum(dtype="float64") for key, moved in new.theta.items()]
        return -float(sum(products))


def _exact_shapley(game: _Game, n: int) -> Any:
    """Return the Shapley values from all 2ⁿ coalitions; bit i of a coalition's number says whether i takes part."""
    members = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    value = np.array([game.value(row.astype(bool)) for row in members])
    size = members.sum(axis=1)
    chance = np.array([1 / (n * math.comb(n - 1, s)) for s in range(n)])
    values = np.empty(n)
    for i in range(n):
        without = np.flatnonzero(members[:, i] == 0)
        values[i] = chance[size[without]] @ (value[without | (1 << i)] - value[without])
    return values


def _sampled_shapley(game: _Game, n: int, pairs: int, seed: int) -> tuple[Any, Any]:
    """Return means over random orders, each with its reverse, and the standard errors of these means."""
    generator = np.random.default_rng(seed)
    drawn = np.zeros((pairs, n))
    for row in drawn:
        order = generator.permutation(n)
        for way in (order, order[::-1]):
            mask = np.zeros(n, bool)
            before = game.value(mask)
            for i in way:
                mask[i] = True
                after = game.value(mask)
                row[i] += (after - before) / 2
                before = after
    return drawn.mean(axis=0), drawn.std(axis=0, ddof=1) / math.sqrt(pairs)
