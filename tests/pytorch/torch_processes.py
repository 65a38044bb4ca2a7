"""Loops of several processes for test_torch_processes.py, and the same loops in one process."""

import os
import pickle
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch_loops import CLASSES, MODELS, Loop, labels

from adamshap.gpu import sketch
from adamshap.torch import Attribution

COUNT, VALID = 12, 8


class Branches(nn.Module):
    """A model whose second branch may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.both = nn.Linear(4, CLASSES), nn.Linear(4, CLASSES), True

    def forward(self, x: Any) -> Any:
        return self.first(x) + self.second(x).tanh() if self.both else self.first(x)


MODELS["branches"] = (Branches, lambda count: torch.randn(count, 4).double(), labels)


def in_groups(model: Any) -> Any:
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": parameters[::2], "lr": 0.02, "weight_decay": 0.1},
            {"params": parameters[1::2], "betas": (0.7, 0.9), "eps": 1e-4},
        ],
        lr=0.01,
    )


def adamw(model: Any) -> Any:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


OPTIMIZERS = {"adamw": adamw, "groups": in_groups}


@dataclass(frozen=True)
class Scenario:
    """A loop of several processes.

    Parameters
    ----------
    batches : tuple of tuple of int
        Each process's number of samples, in each step; cut off, or begun again, for the processes there are.
    wrapped : bool
        Whether the attribution is given the DistributedDataParallel, or the module inside.
    counted : bool
        Whether the validation samples are shared out unevenly, and their numbers given; else all have all of them.
    one_by_one : bool
        Whether each validation sample has a forward pass of its own: so many in one process and so many in another.
    alone : bool
        Whether the first process alone uses the second branch of `Branches`.
    again : bool
        Whether the last process has the first one's first sample, too, as DistributedSampler does.
    second : float or None
        Half of the largest second moment before the first step, which is then step 5; None starts at step 1.
    """

    model: str = "perceptron"
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    clip: float | None = None
    parts: int = 1
    batches: tuple[tuple[int, ...], ...] = ((3, 2, 1, 3), (1, 4, 2, 2), (2, 1, 3, 1))
    wrapped: bool = True
    counted: bool = False
    one_by_one: bool = False
    alone: bool = False
    again: bool = False
    dtype: torch.dtype = torch.float64
    autocast: bool = False
    second: float | None = None

    def shards(self, world: int, step: int) -> list[list[int]]:
        """Return the samples of each process."""
        generator = torch.Generator().manual_seed(step)
        left = torch.randperm(COUNT, generator=generator).tolist()
        shards = []
        for size in (self.batches[step] * world)[:world]:
            shards.append(left[:size])
            left = left[size:]
        if self.again:
            shards[-1].append(shards[0][0])
        return shards

    def valid(self, world: int, rank: int) -> list[int]:
        """Return the validation samples of a process."""
        if not self.counted:
            return list(range(VALID))
        ends = [0, 5, 8] if world == 2 else [0, 3, 5, 6, 8]
        return list(range(ends[rank], ends[rank + 1]))

    def loop(self, dtype: torch.dtype = torch.float64, **options: Any) -> Loop:
        """Return the loop of one process; each of its samples has a second number, for one that comes twice."""
        loop = Loop(
            self.model,
            OPTIMIZERS[self.optimizer],
            clip=self.clip,
            change=lambda model: model.to(dtype),
            options=self.options | options,
            count=2 * COUNT,
        )
        _, inputs, targets = MODELS[self.model]
        loop.valid_x, loop.valid_y = inputs(VALID), targets(VALID)
        for tensor in (loop.x, loop.y, loop.weights):
            tensor[COUNT:] = tensor[:COUNT]
        for name in ("x", "valid_x", "weights"):
            if getattr(loop, name).is_floating_point():
                setattr(loop, name, getattr(loop, name).to(dtype))
        if self.second is not None:
            start_with_moments(loop, self.second)
        return loop


def start_with_moments(loop: Loop, second: float) -> None:
    """Begin at step 5, with a second moment from `second` to twice as much."""
    generator = torch.Generator().manual_seed(1)
    for p in loop.model.parameters():
        m, v = (torch.rand(p.shape, generator=generator).to(p.dtype) for _ in range(2))
        loop.adam.state[p] = {"step": torch.tensor(4.0), "exp_avg": (m - 0.5) / 8, "exp_avg_sq": second * v + second}


class Shard:
    """A process's own loop."""

    def __init__(self, scenario: Scenario, rank: int, world: int) -> None:
        self.scenario, self.rank, self.world = scenario, rank, world
        self.loop = loop = scenario.loop(scenario.dtype, process_group=distributed.group.WORLD)
        loop.attribution.detach()
        self.ddp = DistributedDataParallel(loop.model, find_unused_parameters=scenario.alone)
        model, group = (self.ddp, None) if scenario.wrapped else (loop.model, distributed.group.WORLD)
        loop.attribution = Attribution(
            model,
            loop.adam,
            validation=self.validation,
            n_samples=COUNT,
            keep_step_scores=True,
            process_group=group,
            **scenario.options,
        )

    def validation(self) -> Any:
        loop, rows = self.loop, self.scenario.valid(self.world, self.rank)
        model = self.ddp if self.scenario.wrapped else loop.model
        both, loop.model.both = getattr(loop.model, "both", None), True
        passes = torch.tensor(rows).split(1 if self.scenario.one_by_one else VALID)
        loss = torch.cat([loop.each(model(loop.valid_x[some]), loop.valid_y[some]) for some in passes]).mean()
        loop.model.both = both
        return (loss, len(rows)) if self.scenario.counted else loss

    def passes(self, index: list[int]) -> None:
        """Run the backward passes of a step, whose loss is the mean over this process's samples."""
        loop, parts = self.loop, torch.tensor(index, dtype=torch.long).tensor_split(self.scenario.parts)
        loop.model.both = not self.scenario.alone or self.rank == 0
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            low = torch.autocast("cpu", torch.bfloat16, enabled=self.scenario.autocast)
            with low, nullcontext() if last else self.ddp.no_sync(), loop.attribution.samples(part):
                rows = part if len(part) else torch.tensor([0])  # no samples: any row, and 0 times its loss
                losses = loop.weights[rows] * loop.each(self.ddp(loop.x[rows]), loop.y[rows])
                (losses.sum() / len(index) if len(part) else 0 * losses.sum()).backward()

    def step(self, number: int) -> None:
        self.passes(self.scenario.shards(self.world, number)[self.rank])
        if self.scenario.clip is not None:
            nn.utils.clip_grad_norm_(self.loop.model.parameters(), self.scenario.clip)
        self.loop.adam.step()
        self.loop.adam.zero_grad()

    def run(self) -> list[Any]:
        """Return the scores after each step, and SGD's; the parameters in the end; this process's own part."""
        found: list[Any] = []
        for number in range(len(self.scenario.batches)):
            self.step(number)
            run = self.loop.attribution.result()
            found.append((run.scores, run.sgd_scores, run.seen, run.history["factor"][-1]))
        return [found, run, self.loop.attribution.result(gather=False)]


def in_one_process(scenario: Scenario, world: int) -> list[Any]:
    """Return what `Shard.run` returns first, with the oracle's step before each, of the loop in one process."""
    loop, found = scenario.loop(), []
    valid = [row for rank in range(world if scenario.counted else 1) for row in scenario.valid(world, rank)]
    loop.valid_x, loop.valid_y = loop.valid_x[valid], loop.valid_y[valid]
    weights = loop.weights.clone()
    for number in range(len(scenario.batches)):
        shards = scenario.shards(world, number)
        if scenario.again:
            shards[-1][-1] += COUNT
        for shard in shards:
            loop.weights[shard] = weights[shard] / (max(len(shard), 1) * world)
        index = torch.tensor([i for shard in shards for i in shard])
        step = loop.oracle_step(index)
        for rank, shard in enumerate(shards):
            loop.model.both = not scenario.alone or rank == 0
            if shard:
                loop.passes(torch.tensor(shard))
        loop.model.both = True
        if scenario.clip is not None:
            nn.utils.clip_grad_norm_(loop.model.parameters(), scenario.clip)
        loop.adam.step()
        loop.adam.zero_grad()
        run = loop.attribution.result()
        sums = [a.reshape(2, COUNT).sum(axis=0) for a in (run.scores, run.sgd_scores, run.seen)]
        found.append((*sums, run.history["factor"][-1], step))
    return [found, run]


# --- processes -------------------------------------------------------------------------------------------------------


def start(rank: int, world: int, folder: str, jobs: dict[str, tuple[Any, ...]]) -> None:
    """Join the group; call ``function(rank, world, *args)`` of each job, and leave its result, or error, in a file."""
    torch.set_num_threads(1)
    sketch.EXACT_SQUARES = 0  # so that short runs have sketches
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", store, timedelta(seconds=120), world, rank)
    for name, (function, *args) in jobs.items():
        try:
            found = function(rank, world, *args)
        except Exception as error:
            found = error_of(error)
        Path(folder, f"{name} {rank}").write_bytes(pickle.dumps(found))
    os._exit(0)  # no destructor waits for a process that was killed


def error_of(error: BaseException) -> tuple[str, str]:
    return type(error).__name__, str(error)


def all_runs(rank: int, world: int, scenarios: dict[str, Scenario]) -> dict[str, Any]:
    return {name: Shard(scenario, rank, world).run() for name, scenario in scenarios.items()}


def resumed(rank: int, world: int, scenario: Scenario) -> list[Any]:
    """Return the run of a loop, that of one that was stopped and resumed, and the scores of the state between."""
    whole = Shard(scenario, rank, world).run()[1]
    first, second = (Shard(scenario, rank, world) for _ in range(2))
    first.step(0)
    first.step(1)
    state = first.loop.attribution.state_dict()
    second.loop.model.load_state_dict(first.loop.model.state_dict())
    second.loop.adam.load_state_dict(first.loop.adam.state_dict())
    second.loop.attribution.load_state_dict(state)
    second.step(2)
    return [whole, second.loop.attribution.result(), state["totals"]["scores"].tolist()]


def alone(rank: int, world: int) -> Any:
    """Return the run of a loop in a group of its own, which has one process."""
    groups = [distributed.new_group([one]) for one in range(world)]
    loop = Scenario().loop(process_group=groups[rank])
    loop.attribution.detach()
    wrapped = DistributedDataParallel(loop.model, process_group=groups[rank])
    loop.attribution = Attribution(wrapped, loop.adam, validation=loop.validation, n_samples=2 * COUNT)
    return two_steps(loop)


def two_steps(loop: Loop) -> Any:
    for index in torch.arange(10).split(5):
        loop.step(index)
    return loop.attribution.result()


def page(rank: int, world: int, text: str) -> Any:
    """Run the script of a page, whose group is there already, and return the run that it ends with."""
    init, destroy = distributed.init_process_group, distributed.destroy_process_group
    distributed.init_process_group = distributed.destroy_process_group = lambda *_: None
    names: dict[str, Any] = {}
    try:
        exec(text, names)
    finally:
        distributed.init_process_group, distributed.destroy_process_group = init, destroy
    return names["run"]


# --- mistakes --------------------------------------------------------------------------------------------------------


def edit(shard: Shard) -> None:
    shard.passes([0, 1])
    if shard.rank == 1:
        next(shard.loop.model.parameters()).detach().add_(1)
    shard.loop.adam.step()


def validation_of_one(returned: Any) -> Callable[[Shard], None]:
    """Return a mistake: what the validation of one process returns, made of the right loss."""

    def mistake(shard: Shard) -> None:
        right = shard.loop.attribution._stack.loss
        object.__setattr__(shard.loop.attribution._stack, "loss", lambda: returned(right()))
        if shard.rank == 0:
            object.__setattr__(shard.loop.attribution._stack, "loss", right)
        shard.step(1)

    return mistake


def failing(loss: Any) -> Any:
    raise OSError("no space left on the device")


def scaled(shard: Shard) -> None:
    shard.passes([0, 1])
    for p in shard.loop.model.parameters():
        p.grad.mul_(1 - 0.5 * shard.rank)
    shard.loop.adam.step()


def without_a_gradient(shard: Shard) -> None:
    shard.passes([0, 1])
    if shard.rank == 1:
        shard.loop.model[0].weight.grad = None
    shard.loop.adam.step()


def other_settings(shard: Shard) -> None:
    attribution = shard.loop.attribution
    attribution._settings = replace(attribution._settings, check_every=attribution._settings.check_every + shard.rank)
    shard.step(1)


def old_state(shard: Shard) -> None:
    state = shard.loop.attribution.state_dict()
    shard.step(1)
    if shard.rank == 1:
        shard.loop.attribution.load_state_dict(state)
    shard.step(2)


def rounded_gradients(shard: Shard) -> None:
    shard.ddp.register_comm_hook(None, fp16_compress_hook)
    shard.step(1)


def no_samples(shard: Shard) -> None:
    shard.passes([])
    shard.loop.adam.step()


def other_uses(shard: Shard) -> None:
    model = shard.loop.model
    if shard.rank == 1:  # all modules twice
        once = model.forward
        model.forward = lambda x: once(x) + once(2 * x)
    shard.step(1)


def uneven_inputs(shard: Shard) -> None:
    with Join([shard.ddp]):
        shard.step(1)


def inner_module(shard: Shard) -> None:
    Attribution(shard.loop.model, shard.loop.adam, validation=shard.validation, n_samples=COUNT)


def others_group(shard: Shard) -> None:
    group = distributed.new_group([1 - shard.rank])
    distributed.new_group([shard.rank])
    loop = shard.loop
    Attribution(loop.model, loop.adam, validation=shard.validation, n_samples=COUNT, process_group=group)


def of_model(shard: Shard, model: Any) -> None:
    group = distributed.group.WORLD
    Attribution(model, adamw(model), validation=shard.validation, n_samples=COUNT, process_group=group)


def each_validation_sample(shard: Shard) -> None:
    unsupported(shard, per_validation=True)


def forward_mode(shard: Shard) -> None:
    unsupported(shard, contraction="forward", slope="secant")


def verified(shard: Shard) -> None:
    unsupported(shard, verify_ghost=True, slope="secant")


def recomputed(shard: Shard) -> None:
    unsupported(shard, recompute=True)


def unsupported(shard: Shard, **options: Any) -> None:
    Attribution(shard.ddp, shard.loop.adam, validation=shard.validation, n_samples=COUNT, **options)


def synchronised_norm(shard: Shard) -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    Attribution(
        model, adamw(model), validation=shard.validation, n_samples=COUNT, process_group=shard.ddp.process_group
    )


def fully_sharded(shard: Shard) -> None:
    model = fully_shard(nn.Linear(4, 4), mesh=init_device_mesh("cpu", (shard.world,)))
    Attribution(
        model, adamw(model), validation=shard.validation, n_samples=COUNT, process_group=shard.ddp.process_group
    )


MISTAKES: dict[str, Callable[[Shard], None]] = {
    "edit": edit,
    "failing validation": validation_of_one(failing),
    "validation not finite": validation_of_one(lambda loss: loss * float("nan")),
    "sizes in one": validation_of_one(lambda loss: (loss, 3)),
    "no size": validation_of_one(lambda loss: (loss, 0)),
    "scaled": scaled,
    "without a gradient": without_a_gradient,
    "other settings": other_settings,
    "old state": old_state,
    "rounded gradients": rounded_gradients,
    "no samples": no_samples,
    "other uses": other_uses,
    "uneven inputs": uneven_inputs,
    "inner module": inner_module,
    "others' group": others_group,
    "each validation sample": each_validation_sample,
    "forward mode": forward_mode,
    "verified": verified,
    "recomputed": recomputed,
    "synchronised norm": synchronised_norm,
    "fully sharded": fully_sharded,
}


def all_mistakes(rank: int, world: int) -> dict[str, tuple[str, str] | None]:
    """Return the error of each mistake in this process."""
    found: dict[str, tuple[str, str] | None] = {}
    for name, mistake in MISTAKES.items():
        shard = Shard(Scenario(options={"variance": "rank_one"}), rank, world)
        shard.step(0)
        try:
            mistake(shard)
            found[name] = None
        except Exception as error:
            found[name] = error_of(error)
    return found


def killed(rank: int, world: int, when: str) -> None:
    """Kill one process before its backward pass or before its step."""
    shard = Shard(Scenario(), rank, world)
    shard.step(0)
    if when == "step":
        shard.passes([0, 1])
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    shard.step(1) if when == "backward" else shard.loop.adam.step()
