"""The update against torch's Adam and AdamW and optax's adam and adamw, in float64, over many steps."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from adamshap.reference.adam import apply_gradient
from adamshap.reference.contract import Adam, AdamState, Array, Batch, Network, Params, Step
from adamshap.verify.tolerance import assert_within, rounding

STEPS = 200
SETTINGS = [
    Adam(),
    Adam(lr=0.03, betas=(0.8, 0.99), eps=1e-4),
    Adam(betas=(0.0, 0.0)),
    Adam(betas=(0.999, 0.9999), eps=1e-12),
]
DECAYING = [Adam(weight_decay=0.1), Adam(lr=0.02, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.5)]
NET = Network((5, 7, 3))

Trajectory = Callable[[Adam, Params, list[Params]], Iterator[Params]]


def gradients() -> list[Params]:
    """Return gradients of changing scale and sign, with zeros."""
    generator = np.random.default_rng(3)
    return [
        {
            name: generator.standard_normal(shape) * 10 ** generator.uniform(-4, 1) * (generator.random(shape) < 0.9)
            for name, shape in NET.shapes.items()
        }
        for _ in range(STEPS)
    ]


def oracle(adam: Adam, params: Params, gs: list[Params]) -> Iterator[Params]:
    state, batch = AdamState.zeros(params), Batch(np.zeros((1, 5)), np.zeros(1, np.int64))
    for g in gs:
        params, state = apply_gradient(Step(NET, params, adam, state, batch, batch), g)
        yield params


def torch_trajectory(adam: Adam, params: Params, gs: list[Params]) -> Iterator[Params]:
    torch = pytest.importorskip("torch", reason="extra `peers`: torch")
    tensors = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in params.items()}
    kind = torch.optim.AdamW if adam.weight_decay else torch.optim.Adam
    optimizer = kind(
        tensors.values(), lr=adam.lr, betas=adam.betas, eps=adam.eps, weight_decay=adam.weight_decay, foreach=False
    )
    for g in gs:
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(g[name])
        optimizer.step()
        yield {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def optax_trajectory(adam: Adam, params: Params, gs: list[Params]) -> Iterator[Params]:
    jax = pytest.importorskip("jax", reason="extra `peers`: jax")
    optax = pytest.importorskip("optax", reason="extra `peers`: optax")
    with jax.enable_x64(True):
        kind = optax.adamw if adam.weight_decay else optax.adam
        decay = {"weight_decay": adam.weight_decay} if adam.weight_decay else {}
        beta1, beta2 = adam.betas
        optimizer = kind(adam.lr, b1=beta1, b2=beta2, eps=adam.eps, eps_root=adam.eps_root, **decay)
        tree = {name: jax.numpy.asarray(p) for name, p in params.items()}
        state, update = optimizer.init(tree), jax.jit(optimizer.update)
        for g in gs:
            updates, state = update({name: jax.numpy.asarray(g_) for name, g_ in g.items()}, state, tree)
            tree = optax.apply_updates(tree, updates)
            yield {name: np.asarray(p) for name, p in tree.items()}


def bias_condition(adam: Adam) -> float:
    """Return the error, in u, of the usual 1 − β^t for β near 1, at the worst step, t = 1."""
    return max(1.0, *(beta / (1 - beta) for beta in adam.betas))


def assert_same_trajectory(peer: Trajectory, adam: Adam) -> None:
    params, gs = NET.init(1), gradients()
    travelled: Params = {name: np.abs(p) for name, p in params.items()}
    before = params
    for ours, theirs in zip(oracle(adam, params, gs), peer(adam, params, gs), strict=True):
        for name in params:
            travelled[name] = travelled[name] + np.abs(ours[name] - before[name]) * bias_condition(adam)
            assert_within(theirs[name], ours[name], bound(travelled[name]), name)
        before = ours


def bound(travelled: Array) -> Array:
    """Return a bound for a few roundings of the parameter and its update per step: the distance travelled, times u."""
    return rounding(travelled, STEPS)  # type: ignore[no-any-return]


@pytest.mark.parametrize("adam", [*SETTINGS, *DECAYING])
def test_update_is_torch(adam: Adam) -> None:
    assert_same_trajectory(torch_trajectory, adam)


@pytest.mark.parametrize("adam", [*SETTINGS, *DECAYING, Adam(eps_root=1e-6), Adam(eps_root=1e-3, weight_decay=0.1)])
def test_update_is_optax(adam: Adam) -> None:
    assert_same_trajectory(optax_trajectory, adam)
