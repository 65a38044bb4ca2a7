"""Groups of parameters and schedules: PyTorch's groups and LambdaLR, and what is refused."""

import math
import re
from typing import Any

import numpy as np
import pytest

from adamshap import gpu
from adamshap.reference import Adam, AdamGroups, AdamState, Batch, Clipped, Network, Schedule, Step, attribute
from adamshap.reference.adam import apply_gradient
from adamshap.reference.contract import StepNumber

NET = Network((4, 5, 3))
BIASES, WEIGHTS = Adam(0.05, (0.5, 0.9), 1e-3), Adam(0.02, (0.9, 0.99), 1e-6, weight_decay=0.1)
GROUPS = AdamGroups((("*.bias", BIASES), (("0.weight", "1.weight"), WEIGHTS)))
SCHEDULES = [
    Schedule(GROUPS, warmup=4),
    Schedule(GROUPS, "linear", warmup=3, steps=12, floor=0.1),
    Schedule(GROUPS, "cosine", warmup=3, steps=12),
    Schedule(GROUPS, tuple(1 / (1 + t) for t in range(20))),
]


def data(n: int = 7) -> tuple[Batch, Batch]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((n + 4, 4))
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)
    return Batch(x[:n], y[:n]), Batch(x[n:], y[n:])


def step(adam: Any) -> Step:
    params = NET.init(0)
    return Step(NET, params, adam, AdamState.zeros(params), *data())


def factor_by_hand(schedule: Schedule, done: int) -> float:
    """Return the factor after `done` steps, as Hugging Face's schedules compute it."""
    if isinstance(schedule.shape, tuple):
        return schedule.shape[done]
    if done < schedule.warmup:
        return done / schedule.warmup
    if schedule.steps is None:
        return 1.0
    progress = (done - schedule.warmup) / (schedule.steps - schedule.warmup)
    if schedule.shape == "linear":
        return schedule.floor + (1 - schedule.floor) * max(0.0, 1 - progress)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_update_is_that_of_torchs_groups_and_lambda_lr(schedule: Schedule) -> None:
    torch = pytest.importorskip("torch", reason="extra `peers`: torch")
    params, generator = NET.init(1), np.random.default_rng(3)
    tensors = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in params.items()}
    groups = [
        {
            "params": [tensor for name, tensor in tensors.items() if name.endswith(end)],
            "lr": adam.lr,
            "betas": adam.betas,
            "eps": adam.eps,
            "weight_decay": adam.weight_decay,
        }
        for end, adam in (("bias", BIASES), ("weight", WEIGHTS))
    ]
    optimizer = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: factor_by_hand(schedule, min(done, 19)))
    state = AdamState.zeros(params)
    for _ in range(20):
        g = {name: generator.standard_normal(p.shape) for name, p in params.items()}
        params, state = apply_gradient(Step(NET, params, schedule, state, *data()), g)
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(g[name])
        optimizer.step()
        scheduler.step()
        for name, tensor in tensors.items():
            np.testing.assert_allclose(params[name], tensor.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_the_ends_of_a_schedule() -> None:
    linear = Schedule(Adam(), "linear", warmup=2, steps=6, floor=0.5)
    factors = [linear.factor(StepNumber(t)) for t in range(1, 10)]
    assert factors == [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5]
    cosine = Schedule(Adam(), "cosine", steps=4)
    np.testing.assert_allclose([cosine.factor(StepNumber(t)) for t in (1, 3, 5, 99)], [1, 0.5, 0, 0], atol=1e-15)


def test_a_parameter_has_the_settings_of_its_group() -> None:
    assert [GROUPS.at(StepNumber(1), name) for name in NET.shapes] == [WEIGHTS, BIASES, WEIGHTS, BIASES]
    rest = AdamGroups((("0.*", BIASES),), default=WEIGHTS)
    assert [rest.at(StepNumber(1), name) for name in NET.shapes] == [BIASES, BIASES, WEIGHTS, WEIGHTS]


def test_the_engine_has_both() -> None:
    one = step(Schedule(GROUPS, "cosine", steps=9))
    oracle = attribute(NET, one.adam, *data(), epochs=2, batch_size=4, slope="secant")
    engine = gpu.attribute(
        NET, one.adam, *data(), epochs=2, batch_size=4, slope="secant", device="cpu", dtype="float64"
    )
    np.testing.assert_allclose(engine.scores, oracle.scores, rtol=1e-8, atol=1e-12)


def test_a_run_resumes_only_with_its_own_groups_and_schedule() -> None:
    kept: list[Any] = []
    options: dict[str, Any] = {"epochs": 2, "batch_size": 4}
    schedule = Schedule(GROUPS, "cosine", steps=9)
    whole = attribute(NET, schedule, *data(), **options, on_checkpoint=lambda done, take: kept.append(take()))
    resumed = attribute(NET, schedule, *data(), **options, resume=kept[1])
    np.testing.assert_array_equal(resumed.scores, whole.scores)
    for other, name in (
        (Schedule(GROUPS, "cosine", steps=8), "adam.steps"),
        (Schedule(AdamGroups((("*.bias", WEIGHTS),), WEIGHTS), "cosine", steps=9), "adam.adam.default"),
        (Clipped(schedule, 1.0), "adam.norm"),
    ):
        with pytest.raises(ValueError, match=f"the state of another run, which differs in .*{re.escape(name)}"):
            attribute(NET, other, *data(), **options, resume=kept[1])


def test_settings_without_l2_are_recorded_as_before() -> None:
    """A state written before `l2` existed still resumes."""
    kept: list[Any] = []
    attribute(NET, GROUPS, *data(), epochs=1, on_checkpoint=lambda done, take: kept.append(str(take()["settings"])))
    assert '"weight_decay": 0.1' in kept[0]
    assert "l2" not in kept[0]
    with_l2 = AdamGroups((("*.bias", Adam(l2=0.5)),), Adam())
    attribute(NET, with_l2, *data(), epochs=1, on_checkpoint=lambda done, take: kept.append(str(take()["settings"])))
    assert kept[-1].count('"l2": 0.5') == 1


# --- refusals


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: step(AdamGroups((("*.bias", BIASES),))), ValueError, "the parameter '0.weight' in no group; needs a "),
        (
            lambda: step(AdamGroups((("*", BIASES), ("1.bias", WEIGHTS)))),
            ValueError,
            "the parameter '1.bias' in groups [0, 1]; needs each parameter in one group",
        ),
        (
            lambda: step(AdamGroups((("*", BIASES), ("2.bias", WEIGHTS)))),
            ValueError,
            "Step.adam.groups[1]: got '2.bias'; needs names or patterns of parameters: 0.weight, ",
        ),
        (
            lambda: step(Clipped(Schedule(AdamGroups((("2.*", BIASES),), WEIGHTS)), 1.0)),
            ValueError,
            "Step.adam.adam.adam.groups[0]: got '2.*'; needs names or ",
        ),
        (lambda: AdamGroups(()), TypeError, "AdamGroups.groups: got (); needs a sequence of pairs (names, Adam)"),
        (lambda: AdamGroups((BIASES,)), TypeError, "AdamGroups.groups[0]: got "),  # type: ignore[arg-type]
        (lambda: AdamGroups(((3, BIASES),)), TypeError, "AdamGroups.groups[0][0]: got 3; needs a name or pattern"),  # type: ignore[arg-type]
        (lambda: AdamGroups((("a", 0.1),)), TypeError, "AdamGroups.groups[0][1]: got float; needs "),  # type: ignore[arg-type]
        (lambda: AdamGroups((("a", BIASES),), 0.1), TypeError, "AdamGroups.default: got float; needs "),  # type: ignore[arg-type]
        (lambda: Schedule(GROUPS, "step"), ValueError, "Schedule.shape: got 'step'; needs one of constant, linear, "),  # type: ignore[arg-type]
        (lambda: Schedule(GROUPS, ()), TypeError, "Schedule.shape: got (); needs one of constant, linear, "),
        (lambda: Schedule(GROUPS, (1.0, -1.0)), ValueError, "Schedule.shape[1]: got -1.0; needs a finite real number"),
        (lambda: Schedule(GROUPS, "linear"), ValueError, "Schedule.steps: got None; needs more steps than warmup, 0"),
        (
            lambda: Schedule(GROUPS, "cosine", 5, 5),
            ValueError,
            "Schedule.steps: got 5; needs more steps than warmup, 5",
        ),
        (lambda: Schedule(GROUPS, steps=5), ValueError, "Schedule.steps: got 5; needs None for this shape"),
        (lambda: Schedule(GROUPS, floor=0.5), ValueError, "Schedule.floor: got 0.5; needs 0.0 for this shape"),
        (lambda: Schedule(GROUPS, "linear", steps=5, floor=2), ValueError, "Schedule.floor: got 2.0; needs a number"),
        (lambda: Schedule(GROUPS, (1.0,), warmup=2), ValueError, "Schedule.warmup: got 2; needs 0 with a factor for"),
        (lambda: Schedule(0.1), TypeError, "Schedule.adam: got float; needs an Adam"),  # type: ignore[arg-type]
        (lambda: Schedule(Clipped(GROUPS, 1.0)), ValueError, "Schedule.adam: got a Clipped; needs an optimiser with"),
        (lambda: Clipped(Clipped(GROUPS, 1.0), 1.0), ValueError, "Clipped.adam: got a Clipped; needs an optimiser wit"),
        (lambda: Clipped(GROUPS, 0.0), ValueError, "Clipped.norm: got 0.0; needs a positive number"),
        (lambda: Clipped(GROUPS, 1.0, -1.0), ValueError, "Clipped.eps: got -1.0; needs a finite real number of at le"),
        (lambda: Adam(weight_decay=0.1, l2=0.1), ValueError, "Adam.l2: got 0.1 with weight_decay 0.1; needs one of "),
        (
            lambda: attribute(NET, Schedule(GROUPS, (1.0, 1.0)), *data(), epochs=3, batch_size=7),
            ValueError,
            "Schedule.shape: got 2 factors for step 3; needs a factor for each step of the run",
        ),
    ],
)
def test_what_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()
