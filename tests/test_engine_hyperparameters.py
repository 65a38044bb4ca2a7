"""Adam's settings by parameter and step: every update, slope and score is that of its own parameter's settings."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from engine_devices import in_each_dtype, on_each_device

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.gpu.arrays import BatchGradient, ScoreMatrix, SlopeArrays, like
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.captures import write_sums
from adamshap.gpu.charge import Charge, RunningSum, charge
from adamshap.gpu.forward import forward_and_gradient
from adamshap.gpu.hyperparameters import Hyperparameters, advice, refuse_division_by_zero
from adamshap.gpu.kernels.plan import SPLIT_SLOPES, slope_plan, split_plan
from adamshap.gpu.layers import context_for
from adamshap.gpu.parameter_pass import FusedOut, fused_step
from adamshap.gpu.state import State, StepBatch, StepInput
from adamshap.gpu.step import attribute_step, plain_step
from adamshap.reference.contract import (
    SCORE_SLOPES,
    SLOPES,
    Adam,
    AdamState,
    Batch,
    Estimator,
    Network,
    Optimiser,
    Step,
    StepNumber,
)
from adamshap.verify.implementation import Query
from adamshap.verify.oracle import bounds, expected
from adamshap.verify.tolerance import assert_within, rounding

NET, N, N_VAL, T = Network((5, 6, 4), "tanh"), 9, 3, StepNumber(4)
ONE = Adam(0.01, (0.9, 0.99), 1e-3, 1e-6, 0.1)
OTHER = Adam(0.3, (0.6, 0.9), 1e-2, 0.0, 0.7)


@dataclass(frozen=True)
class TwoGroups:
    """One set for some parameters, another for the rest; a learning rate that falls with the step."""

    one: Adam
    other: Adam
    names: frozenset[str] = frozenset({"0.bias", "1.weight"})
    schedule: bool = False

    def at(self, t: StepNumber, name: str) -> Adam:
        adam = self.other if name in self.names else self.one
        return replace(adam, lr=adam.lr / t) if self.schedule else adam


TWO = TwoGroups(ONE, OTHER)


@dataclass(frozen=True)
class Problem:
    """A context, a state and a batch."""

    context: Any
    state: State
    batch: StepBatch

    @classmethod
    def of(cls, device: str, dtype: Any, n_val: int = N_VAL) -> "Problem":
        context, generator = context_for(NET, pick_backend(device, dtype)), np.random.default_rng(0)
        real, labels = context.backend.real, context.backend.labels
        m = {name: real(0.02 * generator.standard_normal(shape)) for name, shape in NET.shapes.items()}
        v = {name: real(4e-4 * generator.chisquare(3, shape)) for name, shape in NET.shapes.items()}
        x, valid_x = (real(generator.standard_normal((count, 5))) for count in (N, n_val))
        y, valid_y = (labels(generator.integers(0, 4, count)) for count in (N, n_val))
        return cls(context, State(context.backend.reals(NET.init(0)), m, v, T), StepBatch(x, y, valid_x, valid_y))

    def new(self) -> State:
        xp = self.context.backend.xp
        groups = (self.state.theta, self.state.m, self.state.v)
        theta, m, v = ({name: xp.empty_like(a) for name, a in group.items()} for group in groups)
        return State(theta, m, v, T)

    def step(self, optimiser: Optimiser) -> StepInput:
        return StepInput.of(self.context, optimiser, self.state, self.batch, 1 / N)

    def forward(self, optimiser: Optimiser) -> Any:
        step = self.step(optimiser)
        return step, forward_and_gradient(step, 1 / N_VAL, start_wanted=True, norms_wanted=True, variance="exact")

    def fused(self, optimiser: Optimiser, slope: str) -> tuple[State, SlopeArrays]:
        """Return the state after the step, and S."""
        step, forward = self.forward(optimiser)
        out = FusedOut(self.new(), None, SlopeArrays(like(self.context, f"slope of {optimiser}")))
        fused_step(
            step, dict.fromkeys(forward.g, slope_plan(slope, (2, 4), N)), forward.g, forward.norms, None, 0.5, out
        )
        return out.new, out.slope


def group_of(name: str) -> Adam:
    return TWO.at(T, name)


@on_each_device
@in_each_dtype
@pytest.mark.parametrize("slope", SLOPES)
def test_updates_and_slopes_are_those_of_each_parameters_own_settings(device: Any, dtype: Any, slope: str) -> None:
    problem = Problem.of(device, dtype)
    new, slopes = problem.fused(TWO, slope)
    alone = {adam: problem.fused(adam, slope) for adam in (ONE, OTHER)}
    assert len({group_of(name) for name in NET.shapes}) == 2
    for name in NET.shapes:
        theirs, their_slopes = alone[group_of(name)]
        for ours, wanted in (
            (new.theta, theirs.theta),
            (new.m, theirs.m),
            (new.v, theirs.v),
            (slopes, their_slopes),
        ):
            np.testing.assert_array_equal(*(problem.context.backend.host(group[name]) for group in (ours, wanted)))


@on_each_device
@in_each_dtype
@pytest.mark.parametrize("per_validation", [False, True])
@pytest.mark.parametrize("n_val", [1, 40])  # SGD's scores by pairs, and by P
@pytest.mark.parametrize("slope", SLOPES)
def test_scores_add_up_over_groups(device: Any, dtype: Any, slope: Any, n_val: int, per_validation: bool) -> None:
    """⟨Γ ⊙ S, x_i⟩ with S from the steps of each group alone and x_i from the captures, by hand."""
    problem = Problem.of(device, dtype, n_val)
    context, state, host = problem.context, problem.state, problem.context.backend.host

    def contributions(x: Any, y: Any, weight: float) -> dict[str, Any]:
        captures = context.stack.run(context, context.stack.workspace(context, "hand", x), state.theta, y, weight)
        found = {}
        for one in captures.uses:
            a, b = (host(array).astype(np.float64) for array in (one.a, one.b))
            found |= {one.weight: np.einsum("no,ni->noi", b, a).reshape(len(a), -1), one.bias: b.copy()}
        return found

    batch = problem.batch
    x = contributions(batch.x, batch.y, 1 / N)
    gamma = contributions(batch.valid_x, batch.valid_y, 1.0)
    alone = {adam: problem.fused(adam, slope)[1] for adam in (ONE, OTHER)}
    products = {
        name: gamma[name] * host(alone[group_of(name)][name]).astype(np.float64).reshape(-1) for name in NET.shapes
    }
    wanted = sum(x[name] @ products[name].T for name in NET.shapes)
    terms = sum(np.abs(x[name]) @ np.abs(products[name]).T for name in NET.shapes)
    if not per_validation:
        wanted, terms = wanted.mean(axis=1), terms.mean(axis=1)
    estimator = Estimator(slope, "start", per_validation=per_validation, nodes=(2, 4))
    got = attribute_step(context, TWO, state, batch, 1 / N, estimator, problem.new(), with_sgd=True)
    assert_within(host(got.scores), wanted, rounding(terms, 200, dtype), "scores")
    if slope == "sgd":
        assert_within(host(got.sgd_scores), wanted, rounding(terms, 200, dtype), "SGD's scores")


@on_each_device
@in_each_dtype
@pytest.mark.parametrize("slope", SPLIT_SLOPES)
def test_what_a_step_owes_is_that_of_each_parameters_own_settings(device: Any, dtype: Any, slope: str) -> None:
    problem = Problem.of(device, dtype)
    host = problem.context.backend.host

    def charged(optimiser: Optimiser) -> tuple[Charge, dict[str, Any], dict[str, Any], Any]:
        step, forward = problem.forward(optimiser)
        gamma = BatchGradient(like(problem.context, "gamma"))
        write_sums(problem.context, forward.start, gamma)
        owed = {name: problem.context.backend.xp.full_like(a, 0.1) for name, a in gamma.items()}
        plan = split_plan(slope, (2, 4), N)
        account = charge(step, plan, forward, forward.start, [RunningSum(owed, 1.5, 0.25)], ScoreMatrix(forward.g))
        return account, {name: host(a).copy() for name, a in forward.g.items()}, owed, gamma

    account, matrix, owed, gamma = charged(TWO)
    alone = {adam: charged(adam) for adam in (ONE, OTHER)}
    wanted, terms = 0.0, 0.0
    for name in NET.shapes:
        _, their_matrix, their_owed, _ = alone[group_of(name)]
        np.testing.assert_array_equal(matrix[name], their_matrix[name])
        np.testing.assert_array_equal(host(owed[name]), host(their_owed[name]))
        decayed = host(gamma[name]).astype(np.float64) * host(problem.state.theta[name])
        factor = group_of(name).lr * group_of(name).weight_decay
        wanted, terms = wanted + factor * decayed.sum(), terms + factor * np.abs(decayed).sum()
    assert_within(float(account.decay), wanted, rounding(terms, 100, dtype), "decay")


SCHEDULED = TwoGroups(ONE, replace(OTHER, betas=(0.9, 0.95)), schedule=True)


def contract_step() -> Step:
    generator, params = np.random.default_rng(0), NET.init(0)
    m = {name: 0.02 * generator.standard_normal(p.shape) for name, p in params.items()}
    v = {name: 4e-4 * generator.chisquare(3, p.shape) for name, p in params.items()}
    batches = (Batch(generator.standard_normal((n, 5)), generator.integers(0, 4, n)) for n in (N, N_VAL))
    return Step(NET, params, SCHEDULED, AdamState(T - 1, m, v), *batches)


@on_each_device
@pytest.mark.parametrize("gradient", ["start", "path"])
@pytest.mark.parametrize("slope", SCORE_SLOPES)
def test_scores_of_groups_and_a_schedule_are_the_oracles(device: Any, slope: Any, gradient: Any) -> None:
    step, query = contract_step(), Query("scores", {"slope": slope, "gradient": gradient})
    got = engine.scores(step, slope, gradient, device=device, dtype="float64")
    assert_within(got, expected(step, query)["values"], bounds(step, query, "float64")["values"], "scores")


@on_each_device
@pytest.mark.parametrize("credit", ["step", "carry"])
def test_runs_of_groups_and_a_schedule_are_the_oracles(device: Any, credit: Any) -> None:
    step = contract_step()
    options: dict[str, Any] = {"epochs": 2, "batch_size": 4, "credit": credit, "slope": "secant"}
    got = engine.attribute(NET, SCHEDULED, step.train, step.valid, **options, device=device, dtype="float64")
    wanted = oracle.attribute(NET, SCHEDULED, step.train, step.valid, **options)
    for name in ("scores", "sgd_scores", "decay"):
        ours, theirs = getattr(got, name), getattr(wanted, name)
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            assert_within(ours, theirs, rounding(np.abs(theirs).max(), 1000), name)


@on_each_device
def test_settings_are_those_of_the_step(device: Any) -> None:
    problem = Problem.of(device, "float64")
    batch, host = problem.batch, problem.context.backend.host
    scheduled, constant = problem.new(), problem.new()
    falling = TwoGroups(ONE, ONE, schedule=True)
    for optimiser, new in ((falling, scheduled), (replace(ONE, lr=ONE.lr / T), constant)):
        plain_step(problem.context, optimiser, problem.state, batch.x, batch.y, 1 / N, new)
    for name in NET.shapes:
        np.testing.assert_array_equal(host(scheduled.theta[name]), host(constant.theta[name]))
    assert advice(TWO, NET.shapes, T, problem.context.backend).startswith("a smaller lr than 0.3,")
    assert advice(falling, NET.shapes, T, problem.context.backend).startswith("a smaller lr than 0.0025,")


@on_each_device
def test_a_zero_denominator_is_refused_where_its_own_eps_is_0(device: Any) -> None:
    """float32 does not hold ε = 1e-39, and v is 0: parameters with an ε that it holds are not counted."""
    problem = Problem.of(device, "float32")
    v = {name: problem.context.backend.xp.zeros_like(a) for name, a in problem.state.v.items()}
    optimiser = TwoGroups(ONE, Adam(eps=1e-39), frozenset({"1.bias"}))
    held = Hyperparameters.at(problem.context, optimiser, T)
    assert [held.adam[name].eps for name in ("0.weight", "1.bias")] == [ONE.eps, 0.0]
    with pytest.raises(ValueError, match="denominator of 0 at 4 coordinates where v is 0"):
        refuse_division_by_zero(problem.context, held, v, None)
