"""Settings that differ by parameter and by step: each parameter moves as under an Adam with its own settings."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from adamshap.reference import (
    Adam,
    AdamState,
    Batch,
    Network,
    Run,
    Step,
    attribute,
    carry,
    influence,
    marginals,
    metagradient,
    models,
    retrained,
    retraining,
    scores,
    slopes,
    update,
    utility,
)
from adamshap.reference.contract import GRADIENTS, SLOPES, Array, Params, RunConfig, StepNumber, batch_order
from adamshap.reference.scoring import dot_products, terms_of
from adamshap.reference.validation import validation_gradients
from adamshap.verify.tolerance import assert_within, rounding, unit_roundoff

NET = Network((4, 5, 3))


@dataclasses.dataclass(frozen=True)
class Groups:
    """One set of settings for the biases, another for the weights."""

    weights: Adam
    biases: Adam

    def at(self, t: StepNumber, name: str) -> Adam:
        return self.biases if name.endswith("bias") else self.weights


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Settings that change with every step, and by parameter."""

    groups: Groups

    def at(self, t: StepNumber, name: str) -> Adam:
        adam = self.groups.at(t, name)
        beta1, beta2 = adam.betas
        return dataclasses.replace(adam, lr=adam.lr / t, betas=(beta1 * t / (t + 1), beta2), weight_decay=0.1 * t)


GROUPS = Groups(
    Adam(0.02, (0.9, 0.99), 1e-6, 1e-8, weight_decay=0.1), Adam(0.05, (0.5, 0.9), 1e-3, 1e-6, weight_decay=0.02)
)
SCHEDULE = Schedule(GROUPS)


def data(n: int = 11) -> tuple[Batch, Batch]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((n + 5, 4))
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)
    return Batch(x[:n], y[:n]), Batch(x[n:], y[n:])


def step(adam: Any = GROUPS, dtype: Any = np.float64) -> Step:
    generator = np.random.default_rng(1)
    params = {name: p.astype(dtype) for name, p in NET.init(2).items()}
    m = {name: (0.1 * generator.standard_normal(p.shape)).astype(dtype) for name, p in params.items()}
    v = {name: (0.1 * generator.uniform(size=p.shape)).astype(dtype) for name, p in params.items()}
    return Step(NET, params, adam, AdamState(3, m, v), *data(6))


def by_name(function: Any) -> Params:
    """Return `function` of the step with the weights' settings for the weights, and the biases' for the biases."""
    of_weights, of_biases = (function(step(adam)) for adam in (GROUPS.weights, GROUPS.biases))
    return {name: of_biases[name] if name.endswith("bias") else of_weights[name] for name in of_weights}


def assert_same(got: Params, expected: Params) -> None:
    assert list(got) == list(expected)
    for name in got:
        np.testing.assert_array_equal(got[name], expected[name])


# --- one step


def test_an_update_is_each_parameters_own() -> None:
    params, state = update(step())
    assert_same(params, by_name(lambda one: update(one)[0]))
    assert_same(state.m, by_name(lambda one: update(one)[1].m))
    assert_same(state.v, by_name(lambda one: update(one)[1].v))
    assert not np.array_equal(params["0.bias"], update(step(GROUPS.weights))[0]["0.bias"])


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("slope", [*SLOPES, "two_term", "previous"])
def test_scores_use_each_parameters_own_slope(slope: Any, gradient: Any) -> None:
    whole, nodes = step(), (4, 3)
    x, g = models.sample_gradients(whole), models.batch_gradient(whole)
    gamma = validation_gradients(whole, gradient, g, nodes, each=False)
    if slope == "previous":
        terms = [(x, by_name(slopes.linearized_previous))]
        got = scores(whole, "linearized", gradient, nodes=nodes, denominator="previous")
    else:
        count = 2 if slope == "two_term" else 1
        functions = [f for f, _ in terms_of(whole, slope, x, g, nodes, "shapley")]
        terms = [
            (functions[i], by_name(lambda one, i=i: terms_of(one, slope, x, g, nodes, "shapley")[i][1]))
            for i in range(count)
        ]
        got = scores(whole, slope, gradient, nodes=nodes)
    expected = np.sum([dot_products(f, {name: gamma[name] * S[name] for name in f}) for f, S in terms], axis=0)[:, 0]
    np.testing.assert_array_equal(got, expected)


def test_the_path_ends_where_the_update_does() -> None:
    """Efficient scores plus U(∅) add up to U(B), the decrease of the loss over the step."""
    whole, everybody = step(), np.ones(6, bool)
    before, after = (models.mean_loss(NET, p, whole.valid) for p in (whole.params, update(whole)[0]))
    bound = rounding(before + after, 43 * 11)
    total = utility(whole, everybody)
    assert_within(total, before - after, bound, "utility")
    gain = total - utility(whole, ~everybody)
    for gradient in ("midpoint", "path"):
        assert_within(scores(whole, "secant", gradient, efficient=True).sum(), gain, 2 * bound, gradient)


@pytest.mark.parametrize("slope", sorted(carry.SPLITS))
def test_the_split_is_each_parameters_own(slope: Any) -> None:
    x, g = models.sample_gradients(step()), models.batch_gradient(step())
    for part in (0, 1):
        got = carry.splits(step(), slope, x, g, (4, 3))[part]
        assert_same(got, by_name(lambda one, part=part: carry.splits(one, slope, x, g, (4, 3))[part]))


def test_settings_are_held_in_the_steps_dtype() -> None:
    """An ε below float32's normal numbers counts as 0 in float32, as with one set for all."""
    groups = Groups(Adam(eps=1e-40), Adam(eps=1e-3))
    narrow = step(groups, np.float32).as_float64()
    assert [narrow.settings(name).eps for name in ("0.weight", "0.bias")] == [0.0, 1e-3]
    assert narrow.as_float64().settings("0.weight").eps == 0.0
    assert step(groups).as_float64().settings("0.weight").eps == 1e-40


# --- a run


def run(adam: Any, **options: Any) -> Run:
    return attribute(NET, adam, *data(), epochs=2, batch_size=4, seed=3, **options)


def test_a_run_takes_the_settings_of_each_step() -> None:
    """The run equals steps by hand, each with the schedule's settings of that step."""
    schedule = Schedule(Groups(GROUPS.weights, GROUPS.weights))
    got, (train, valid), params = run(schedule, slope="secant"), data(), NET.init(3)
    state, totals = AdamState.zeros(params), np.zeros(train.n)
    for _, index in batch_order(train.n, batch_size=4, epochs=2, seed=3):
        one = Step(NET, params, schedule.at(state.next_step, ""), state, train.take(index), valid)
        totals[index] += scores(one, "secant")
        params, state = update(one)
    np.testing.assert_array_equal(got.scores, totals)
    assert_same(got.params, params)
    assert_same(got.state.m, state.m)


def carried_by_hand(adam: Any, slope: Any) -> tuple[Array, Array]:
    """Return each sample's total and each step's closing, from the sums of docs/method.md 6 in the other order."""
    (train, valid), params = data(), NET.init(3)
    state, taken, totals = AdamState.zeros(params), [], np.zeros(train.n)
    for _, index in batch_order(train.n, batch_size=4, epochs=2, seed=3):
        one = Step(NET, params, adam, state, train.take(index), valid).as_float64()
        x, g = models.sample_gradients(one), models.batch_gradient(one)
        after, later = update(one)
        gamma = carry.walked_gradient(one, after, "path", (4, 4), each=False)
        taken.append((one, index, x, {n: gamma[n][0] for n in x}, *carry.splits(one, slope, x, g, (4, 4)), after))
        params, state = after, later
    closed = []
    for number, (one, index, x, gamma, S, M, after) in enumerate(taken):
        own = sum(x[n].reshape(len(index), -1) @ (gamma[n] * S[n]).ravel() for n in x)
        change = models.mean_loss(NET, one.params, valid) - models.mean_loss(NET, after, valid)
        sets = {n: one.settings(n) for n in x}
        decay = sum(sets[n].lr * sets[n].weight_decay * np.vdot(gamma[n], one.params[n]) for n in x)
        owed = sum(np.vdot(gamma[n] * M[n], one.state.m[n]) for n in x)
        closed.append(change - own.sum() - decay - owed)
        totals[index] += own + closed[-1] / len(index)
        for n in x:
            left = 1 - sets[n].betas[0]  # the weight of x in the moment
            for later_step, _, _, there, _, M_there, _ in taken[number + 1 :]:
                totals[index] += left * (x[n].reshape(len(index), -1) @ (there[n] * M_there[n]).ravel())
                left *= later_step.settings(n).betas[0]
    return totals, np.array(closed)


@pytest.mark.parametrize("adam", [GROUPS, SCHEDULE])
@pytest.mark.parametrize("slope", ["secant", "linearized"])
def test_momentum_is_paid_by_each_parameters_own_decay_of_the_step(adam: Any, slope: Any) -> None:
    got = run(adam, credit="carry", slope=slope, gradient="path")
    totals, closed = carried_by_hand(adam, slope)
    losses = sum(models.mean_loss(NET, p, data()[1]) for p in (got.initial_params, got.params))
    bound = rounding(losses + np.abs(totals).sum(), 43 * 16 * len(closed))
    assert_within(got.scores, totals, bound, "scores")
    assert_within(got.closed, closed, bound, "closed")
    fall = models.mean_loss(NET, got.initial_params, data()[1]) - models.mean_loss(NET, got.params, data()[1])
    assert_within(got.scores.sum() + got.decay.sum(), fall, bound, "account")


def test_training_again_takes_the_settings_of_each_parameter() -> None:
    """A run of one step equals that step; the metagradient of all is the limit of central differences."""
    one = RunConfig(NET, GROUPS, *data(6), 1, 6, 2)
    once, weights = Step(NET, NET.init(2), GROUPS, AdamState.zeros(NET.init(2)), *data(6)), np.ones(6)
    state = retraining.weighted_step(one, retraining.initial_state(one), np.arange(6), weights)
    whole = attribute(NET, GROUPS, *data(6), epochs=1, batch_size=6, seed=2)
    scale = sum(models.mean_loss(NET, p, once.valid) for p in (once.params, state[0]))
    assert_within(retrained(whole, range(6)), marginals(once, "last").values, rounding(scale, 43 * 11), "retrained")
    expected = influence(once)
    bound = rounding(np.abs(expected).max() + scale, 43 * 11)
    assert_within(metagradient(whole), expected, bound, "metagradient")

    again = run(SCHEDULE)
    config, found, h = retraining.config_of(again), metagradient(again), unit_roundoff("float64") ** (1 / 3)
    for sample in (0, 7):
        change = np.arange(11) == sample
        wide, narrow = (
            (retraining.final_loss(config, 1 - k * h * change) - retraining.final_loss(config, 1 + k * h * change))
            / (2 * k * h)
            for k in (2, 1)
        )
        loss = retraining.final_loss(config, np.ones(11))
        bound = abs(wide - narrow) + rounding(loss, 43 * 16 * 6) / h
        assert_within(found[sample], narrow, bound, f"sample {sample}")
        assert abs(found[sample]) > bound


def test_a_run_resumes_only_with_its_own_settings() -> None:
    kept: list[Any] = []
    whole = run(SCHEDULE, on_checkpoint=lambda step, take: kept.append(take()))
    resumed = run(SCHEDULE, resume=kept[2])
    np.testing.assert_array_equal(resumed.scores, whole.scores)
    assert_same(resumed.params, whole.params)
    other = Schedule(dataclasses.replace(GROUPS, biases=Adam(0.06, (0.5, 0.9), 1e-3, 1e-6, weight_decay=0.02)))
    with pytest.raises(ValueError, match=re.escape("which differs in adam.groups.biases.lr; needs one of this run")):
        run(other, resume=kept[2])


# --- refusals


@dataclasses.dataclass(frozen=True)
class NoAdam:
    def at(self, t: StepNumber, name: str) -> float:
        return 0.1


def test_an_optimiser_without_adams_is_refused() -> None:
    with pytest.raises(TypeError, match=re.escape("Step.adam.at(4, '0.weight'): got float; needs an Adam")):
        step(NoAdam())
    with pytest.raises(TypeError, match=re.escape("adam.at(1, '0.weight'): got float; needs an Adam")):
        run(NoAdam())
    with pytest.raises(TypeError, match=re.escape("Step.adam: got type; needs an Adam")):
        step(Adam)
