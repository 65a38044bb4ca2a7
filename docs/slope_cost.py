"""Print the processor time of each slope's pass over the parameters, as a multiple of that of Adam's own step.

python docs/slope_cost.py       # the engine's float32 kernels, on one core where the system can pin them
"""

import os
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from adamshap.gpu.arrays import like
from adamshap.gpu.backend import pick_backend
from adamshap.gpu.captures import RootSquares
from adamshap.gpu.kernels.plan import slope_plan
from adamshap.gpu.layers import context_for
from adamshap.gpu.norms import Norms
from adamshap.gpu.parameter_pass import FusedOut, fused_step, take_step
from adamshap.gpu.state import State, StepBatch, StepInput
from adamshap.gpu.two_term import fit_plan, two_slopes
from adamshap.reference.contract import SLOPES, Adam, Network

SIZES, N, T, ROUNDS = (784, 1024, 1024, 10), 64, 10, 15
NODES = {slope: [(4, 4), (2, 4)] if slope == "random_order" else [(4, 4)] for slope in SLOPES}


def least_seconds(take: Callable[[], None]) -> float:
    """Return the minimum processor time of ROUNDS calls, since other work on the machine only adds to it."""
    times = []
    for _ in range(ROUNDS + 1):
        start = time.thread_time()
        take()
        times.append(time.thread_time() - start)
    return min(times[1:])  # the first one compiles


def main() -> None:
    """Time Adam alone, then each slope's fused pass, Adam included."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    generator = np.random.default_rng(0)
    context = context_for(Network(SIZES, "relu"), pick_backend("cpu", "float32"))
    theta, m, v, g, point, slope = (like(context, name) for name in ("theta", "m", "v", "g", "point", "slope"))
    for arrays, scale in ((theta, 0.1), (m, 1e-3), (g, 1e-3)):
        for array in arrays.values():
            array[...] = scale * generator.standard_normal(array.shape)
    for name, array in v.items():
        array[...] = m[name] ** 2 + 1e-8
    state, x = State(theta, m, v, T), np.empty((N, SIZES[0]), np.float32)
    step = StepInput.of(context, Adam(), state, StepBatch(x, None, x, None), 1 / N)
    norms = Norms()
    for name, array in g.items():
        row = np.full(len(array), 1e-3, np.float32)
        norms[name] = RootSquares(row) if array.ndim == 1 else RootSquares(None, row, np.ones_like(array[0]))
    with context.at_work():
        adam = least_seconds(lambda: take_step(context, step.hyperparameters.scalars, state, g, state))
        print(f"Adam alone: {1e9 * adam / sum(a.size for a in g.values()):.1f} ns a parameter")
        for name in SLOPES:
            for nodes in NODES[name]:
                plan = slope_plan(name, nodes, N)
                used, out = norms if plan.needs_spread else None, FusedOut(state, point, slope)
                fused = partial(fused_step, step, plan, g, used, None, 0.5, out)
                print(f"{name} {nodes}: {least_seconds(fused) / adam:.1f}")
        for kind, nodes in (("first", (4, 4)), ("shapley", (2, 4)), ("shapley", (4, 4)), ("shapley", (8, 2))):
            terms = like(context, "first term"), like(context, "second term")
            fit = partial(two_slopes, step, fit_plan(kind, N, nodes), g, norms, terms)
            print(f"two_term {kind} {nodes}: {least_seconds(fit) / adam:.0f} more than sgd")


if __name__ == "__main__":
    main()
