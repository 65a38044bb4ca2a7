"""A run with ``credit="carry"``: training, its checkpoints and its closing accounts (docs/engine.md)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice

import numpy as np

from adamshap.gpu.arrays import like
from adamshap.gpu.backend import Backend, arithmetic_of
from adamshap.gpu.carry import LOG, Carrier
from adamshap.gpu.hyperparameters import advice
from adamshap.gpu.kernels.plan import SPLIT_SLOPES
from adamshap.gpu.layers import context_for
from adamshap.gpu.state import State
from adamshap.gpu.threads import parts_of
from adamshap.reference.contract import (
    AdamState,
    Array,
    Checkpointer,
    Diverged,
    Estimator,
    Progress,
    Run,
    RunConfig,
    Snapshot,
    StepNumber,
    first_not_finite,
    logged,
    positive_integer,
    refuse,
    resumed,
    run_settings,
)

__all__ = ["attribute_carrying"]


def attribute_carrying(
    config: RunConfig,
    estimator: Estimator,
    backend: Backend,
    window: int | None,
    about: str,
    on_step: Callable[[Progress], None] | None,
    on_checkpoint: Checkpointer | None,
    resume: Mapping[str, Array] | None,
    *,
    patiently: bool = False,
) -> Run:
    """Train and attribute with ``credit="carry"``; the arguments are those of `trainer.attribute`, checked.

    `about` is what the log says of the run.

    On a device, `on_step` and `on_checkpoint` wait for each step. Without them numbers that are not finite show at the
    run's end; the run is then repeated, `patiently` waiting for each step, to find where they came from.
    """
    if estimator.slope not in SPLIT_SLOPES:
        refuse(
            "slope",
            f"'{estimator.slope}' with credit 'carry'",
            "one of " + ", ".join(SPLIT_SLOPES) + ": the others do not split the step between batch and momentum",
        )
    if estimator.per_validation:
        refuse("per_validation", "True with credit 'carry'", "False: each validation sample would need its own window")
    window = None if window is None else positive_integer("carry_window", window)
    on_step, steps, parts = logged(on_step, about), config.length, parts_of(resume)
    context, xp = context_for(config.network, backend, parts), backend.xp
    looks = patiently or not backend.on_cuda or on_step is not None or on_checkpoint is not None
    initial = backend.reals(config.network.init(config.seed))
    zeros = [{name: xp.zeros_like(p) for name, p in initial.items()} for _ in range(2)]
    state = State({name: p.copy() for name, p in initial.items()}, zeros[0], zeros[1], StepNumber(1))
    spare = State(like(context, "second theta"), like(context, "second m"), like(context, "second v"), StepNumber(1))
    carrier = Carrier.of(context, config, steps, window)
    sgd_totals, seen = xp.zeros(config.train.n), np.zeros(config.train.n, np.int64)
    settings = ""
    if resume is not None or on_checkpoint is not None:
        settings = run_settings(
            config.train,
            config.valid,
            arithmetic_of(backend, parts),
            trainer=__name__,
            network=config.network,
            adam=config.adam,
            epochs=config.epochs,
            steps=steps,
            batch_size=config.batch_size,
            seed=config.seed,
            estimator=estimator,
            reduction=config.reduction,
            carry_window=[carrier.length, carrier.later],
            backend=[xp.__name__, str(backend.dtype)],
        )

    def run(done: int) -> Run:
        log = np.array(backend.host(carrier.log))[:done]
        theta, m, v = (
            {name: backend.host(a) for name, a in group.items()} for group in (state.theta, state.m, state.v)
        )
        return Run(
            initial_params={name: backend.host(p) for name, p in initial.items()},
            params=theta,
            state=AdamState.unchecked(state.t - 1, m, v),
            scores=backend.host(carrier.totals),
            sgd_scores=backend.host(sgd_totals),
            seen=seen,
            history={
                "epoch": np.arange(done) // config.per_epoch,
                "train_loss": log[:, 0],
                "valid_loss": log[:, 1],
            },
            config=config,
            credit="carry",
            decay=log[:, 2],
            truncated=backend.host(carrier.truncated),
        )

    def snapshot() -> Snapshot:
        done = state.t - 1
        arrays = {"sgd_scores": np.array(backend.host(sgd_totals)), "seen": seen.copy()} | carrier.arrays(done)
        for group, named in (("params", state.theta), ("m", state.m), ("v", state.v)):
            arrays |= {f"{group}/{name}": np.array(backend.host(array)) for name, array in named.items()}
        return {"step": np.array(done), "settings": np.array(settings)} | arrays

    def valid_loss() -> float:
        data = carrier.data
        workspace = context.stack.workspace(context, "valid", data.valid_x)
        return float(context.stack.losses(context, workspace, state.theta, data.valid_y).mean(dtype="float64"))

    if resume is not None:
        kept = resumed(resume, settings, snapshot(), steps=steps)
        carrier.restore(kept)
        theta, m, v = ({n: backend.real(kept[f"{g}/{n}"].copy()) for n in initial} for g in ("params", "m", "v"))
        state = State(theta, m, v, StepNumber(int(kept["step"]) + 1))
        sgd_totals, seen = xp.array(kept["sgd_scores"]), kept["seen"].copy()

    with context.at_work():
        for number, (epoch, index) in islice(enumerate(config.order()), state.t - 1, None):
            where = backend.labels(index)
            before = carrier.totals.copy(), carrier.truncated.copy()
            sgd = carrier.take(number, index, where, state, carrier.data.batch(index, where), estimator, spare)
            state, spare = State(spare.theta, spare.m, spare.v, StepNumber(state.t + 1)), state
            if looks:
                row = dict(zip(LOG, backend.host(carrier.log[number]).tolist(), strict=True))
                losses = [row[name] for name in LOG[:2]]
                suspects = {} if state.is_finite() else state.suspects()
                ending = {"final valid_loss": valid_loss()} if number + 1 == steps else {}
                named = dict(zip(LOG[:2], losses, strict=True)) | suspects | ending
                bad = first_not_finite(named | {"scores": carrier.totals, "sgd_scores": sgd} | row)
                if bad is not None:
                    # What past samples are owed by now cannot be told: the scores are those paid before the step.
                    carrier.totals, carrier.truncated = before
                    raise Diverged(number + 1, steps, *bad, run(number), advice(config.adam, initial, state.t, backend))
                if on_step is not None:
                    on_step(Progress(number + 1, steps, epoch, *losses))
            sgd_totals[where] += sgd
            seen[index] += 1
            if on_checkpoint is not None:
                on_checkpoint(number + 1, snapshot)
        settled, last_loss = backend.host(carrier.settled()), valid_loss()
    scores, closed = _closed(config, settled, carrier.loses, backend.host(carrier.log), last_loss)
    bad = first_not_finite({"scores": scores, "sgd_scores": sgd_totals, "closed": closed})
    if bad is not None and not looks:
        callbacks = (on_step, on_checkpoint)
        return attribute_carrying(config, estimator, backend, window, about, *callbacks, resume, patiently=True)
    if bad is not None:
        raise Diverged(steps + 1, steps, *bad, run(steps), advice(config.adam, initial, state.t, backend))
    return replace(run(steps), scores=scores, closed=closed)


def _closed(config: RunConfig, settled: Array, loses: bool, log: Array, last_loss: float) -> tuple[Array, Array]:
    """Return the scores with what each step leaves open, and what was lost at windows' ends, in equal parts."""
    losses, decay, own, owed = np.append(log[:, 1], last_loss), log[:, 2], log[:, 3], log[:, 4]
    closed = losses[:-1] - losses[1:] - decay - own - owed
    scores = np.array(settled)
    sizes = np.array([len(index) for _, index in config.order()])
    if loses:
        # All that was owed, and was not paid: the rest of the account.
        closed = closed + (owed.sum() + own.sum() - scores.sum()) * (sizes / sizes.sum())
    for (_, index), share in zip(config.order(), closed / sizes, strict=True):
        scores[index] += share
    return scores, closed
