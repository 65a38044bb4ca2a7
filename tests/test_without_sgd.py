"""Runs without the scores by SGD's formula, by oracle and engine: everything else is as with them."""

from typing import Any

import numpy as np
import pytest

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.reference.contract import Adam, Array, Batch, Network, Run, RunConfig, Snapshot
from adamshap.verify.run_tolerance import run_conditioning
from adamshap.verify.tolerance import assert_within

NET = Network((6, 8, 3))
RUN: dict[str, Any] = {"epochs": 2, "batch_size": 5, "seed": 1}


def batch(n: int, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    return Batch(generator.standard_normal((n, 6)), generator.integers(0, 3, n))


TRAIN, VALID = batch(22, 0), batch(4, 1)


def run_of(attribute: Any, **options: Any) -> Run:
    run: Run = attribute(NET, Adam(0.01), TRAIN, VALID, **RUN, **options)
    return run


ENGINE = {"device": "cpu", "dtype": "float64"}
TRAINERS = pytest.mark.parametrize(
    ("attribute", "options"),
    [
        pytest.param(oracle.attribute, {"keep_step_scores": True}, id="oracle"),
        pytest.param(oracle.attribute, {"credit": "carry", "per_validation": True}, id="oracle, carry"),
        pytest.param(engine.attribute, ENGINE | {"keep_step_scores": True, "per_validation": True}, id="engine"),
        pytest.param(engine.attribute, ENGINE | {"micro_batch": 3, "gradient": "start"}, id="engine, chunks"),
        pytest.param(engine.attribute, ENGINE | {"credit": "carry"}, id="engine, carry"),
        pytest.param(engine.attribute, ENGINE | {"credit": "carry", "gradient": "start"}, id="engine, carry, start"),
    ],
)


def arrays_of(run: Run) -> list[Array]:
    of_steps = [] if run.step_scores is None else [run.step_scores[~np.isnan(run.step_scores)]]  # a short batch
    return [run.scores, run.history["train_loss"], run.history["valid_loss"], *of_steps]


def bounds(attribute: Any, options: dict[str, Any]) -> list[float]:
    """Return the bound on each array's change: 0 for the oracle, which computes the rest alike.

    In the engine the validation samples may go through the network beside the batch, in products of another shape.
    """
    own = {name: value for name, value in options.items() if name not in ENGINE}
    if attribute is oracle.attribute:
        return [0.0] * len(arrays_of(run_of(attribute, **own)))
    config = RunConfig(NET, Adam(0.01), TRAIN, VALID, **RUN)
    return run_conditioning(
        lambda near: arrays_of(oracle.attribute(near.network, near.adam, near.train, near.valid, **RUN, **own)), config
    )


@TRAINERS
def test_everything_else_is_as_with_them(attribute: Any, options: Any) -> None:
    run, plain = run_of(attribute, **options), run_of(attribute, with_sgd=False, **options)
    assert np.isnan(plain.sgd_scores).all()
    assert plain.sgd_scores.shape == run.sgd_scores.shape
    for got, wanted, bound in zip(arrays_of(plain), arrays_of(run), bounds(attribute, options), strict=True):
        assert_within(got, wanted, bound, "scores, losses or scores of steps")
    if run.step_scores is not None:
        assert np.isnan(plain.step_sgd_scores).all()


@TRAINERS
def test_a_resumed_run_ends_alike_and_refuses_the_state_of_a_run_with_them(attribute: Any, options: Any) -> None:
    snapshots: list[Snapshot] = []
    run = run_of(attribute, with_sgd=False, on_checkpoint=lambda _, take: snapshots.append(take()), **options)
    resumed = run_of(attribute, with_sgd=False, resume=snapshots[3], **options)
    np.testing.assert_array_equal(resumed.scores, run.scores)
    assert np.isnan(resumed.sgd_scores).all()
    with pytest.raises(ValueError, match=r"resume: got the names .*needs exactly the names .*'sgd_scores'"):
        run_of(attribute, resume=snapshots[3], **options)


@pytest.mark.parametrize("credit", ["step", "carry"])
def test_the_engine_does_not_compute_them(credit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("SGD's scores are computed")

    for module in ("step", "carry"):
        monkeypatch.setattr(f"adamshap.gpu.{module}.sgd_scorer", refuse)
    run_of(engine.attribute, credit=credit, with_sgd=False, **ENGINE)
    with pytest.raises(AssertionError, match="SGD's scores"):
        run_of(engine.attribute, credit=credit, **ENGINE)


@pytest.mark.parametrize("attribute", [oracle.attribute, engine.attribute])
def test_another_value_is_refused(attribute: Any) -> None:
    with pytest.raises(TypeError, match="with_sgd: got 1; needs True or False"):
        run_of(attribute, with_sgd=1)
