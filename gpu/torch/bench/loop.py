"""The training loop that the benchmark times, plain or with an `Attribution`, and the time of each part of its step."""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from adamshap.gpu.backend import Place
from adamshap.torch.attribution import Attribution
from adamshap.torch.bench.model import Model, Sizes, build, loss_of

__all__ = ["Clock", "Loop"]

LONG = 10**6  # steps from one full self-check to the next: those timed have none
LATE = 1000
NAMES = {
    "forward pass": "validation pass",
    "pass over the parameters": "points of the path",
    "fused pass": "slope and point of Γ",
    "validation gradient": "P",
    "sketch": "computing factors of P",
}


@dataclass
class Clock(Place):
    """The place of a computation that also notes the time of each change of phase."""

    events: list[tuple[str, float, float]] = field(default_factory=list)

    def __setattr__(self, name: str, value: Any) -> None:
        """Note the time of a new phase."""
        super().__setattr__(name, value)
        if name == "phase" and "events" in self.__dict__:
            self.enter(value)

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self.events.append((phase, time.perf_counter(), time.process_time()))

    def parts(self) -> dict[str, tuple[float, float]]:
        """Return wall and processor seconds of each phase since the last call, without the last phase."""
        found: dict[str, tuple[float, float]] = {}
        for (phase, wall, used), (_, wall_after, used_after) in zip(self.events, self.events[1:], strict=False):
            name = NAMES.get(phase, phase)
            before = found.get(name, (0.0, 0.0))
            found[name] = before[0] + wall_after - wall, before[1] + used_after - used
        self.events.clear()
        return found


@dataclass
class Loop:
    """A model in training on one batch of random walks.

    Parameters
    ----------
    model : Model
    optimiser : torch.optim.Optimizer
    train, valid : tuples of tensors
        Inputs and targets (n, T) and (n_val, T).
    attribution : Attribution or None
    clock : Clock
    """

    model: Model
    optimiser: torch.optim.Optimizer
    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    attribution: Attribution | None
    clock: Clock

    @classmethod
    def of(cls, sizes: Sizes, n_val: int, options: dict[str, Any] | None, threads: int) -> "Loop":
        """Return a loop before its first step; without `options` of an `Attribution`, one of plain steps."""
        model, optimiser = build(sizes, "cpu")
        generator = torch.Generator().manual_seed(0)
        walks = torch.randint(0, 3, (n_val + sizes.n, sizes.context + 1), generator=generator).cumsum(1)
        walks %= sizes.vocabulary
        x, y = walks[:, :-1].contiguous(), walks[:, 1:].contiguous()
        valid, train = (x[:n_val], y[:n_val]), (x[n_val:], y[n_val:])
        clock, attribution = Clock(), None
        if options is not None:
            attribution = Attribution(
                model,
                optimiser,
                validation=lambda: loss_of(model)(*valid),
                n_samples=2 * sizes.n,  # "auto" refuses batches of more than half of them
                with_sgd=False,
                check_every=LONG,
                **options,
            )
            scorer = attribution._scorer
            scorer.context = replace(scorer.context, place=clock, parts=threads)
        optimiser.register_step_pre_hook(lambda *_: clock.enter("Adam"))  # after the attribution's
        return cls(model, optimiser, train, valid, attribution, clock)

    def step(self) -> None:
        """Take a step."""
        self.clock.events.clear()
        self.optimiser.zero_grad(set_to_none=True)
        self.clock.enter("forward and backward")
        if self.attribution is None:
            self._pass()
        else:
            with self.attribution.samples(torch.arange(len(self.train[0]))):
                self._pass()
        self.clock.enter("checks")
        self.optimiser.step()
        self.clock.enter("end")

    def ripen(self) -> None:
        """Give the optimiser a late step's number, with the moments, corrected for bias, that it has.

        In a run's first tens of steps "auto" is "random_order" everywhere. Steps are tiny from here on: the one batch's
        gradient, that of a new model, would grow beyond the moments.
        """
        for group in self.optimiser.param_groups:
            group["lr"] *= 1e-6
            for p in group["params"]:
                state = self.optimiser.state[p]
                for name, beta in zip(("exp_avg", "exp_avg_sq"), group["betas"], strict=True):
                    state[name].mul_((1 - beta**LATE) / (1 - beta ** float(state["step"])))
                state["step"].fill_(LATE)

    def _pass(self) -> None:
        loss: Any = loss_of(self.model)(*self.train)
        loss.backward()

    def timed_step(self) -> dict[str, tuple[float, float]]:
        """Take a step and return wall and processor seconds of its parts."""
        self.step()
        return self.clock.parts()
