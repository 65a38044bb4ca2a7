"""Runs of stacked models and their scores, against the oracle on a perceptron, and retraining on a language model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402

from adamshap import reference  # noqa: E402
from adamshap.reference.contract import Adam, Array, Batch, Network, Schedule, batch_order  # noqa: E402
from adamshap.reference.weighting import weighted_steps  # noqa: E402
from adamshap.torch.bench.model import Model, Sizes  # noqa: E402
from adamshap.verify.claims.language import stacked, trajectory  # noqa: E402
from adamshap.verify.claims.language.stacked import Data, Flat  # noqa: E402
from adamshap.verify.claims.language.trajectory import Run  # noqa: E402
from adamshap.verify.tolerance import rounding  # noqa: E402

NETWORK = Network((3, 5, 4), "tanh", "cross_entropy")
LENGTH: dict[str, Any] = {"batch_size": 4, "epochs": 3, "seed": 1}
OPTIMISERS = {
    "AdamW": Adam(lr=0.02, weight_decay=0.1),
    "warm-up": Schedule(Adam(lr=0.02, betas=(0.8, 0.95), eps=1e-4), "linear", warmup=3, steps=9),
}


def batch(count: int, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    return Batch(generator.normal(size=(count, 3)), generator.integers(4, size=count))


TRAIN, VALID = batch(12, 0), (batch(5, 1), batch(6, 2))


def close(a: object, b: object, operations: float = 1e6) -> bool:
    size = np.abs(np.asarray(b)).max()
    return bool(np.all(np.abs(np.asarray(a) - b) <= rounding(np.full(np.shape(b), size), operations)))


def data_of(samples: Batch) -> Data:
    return torch.tensor(samples.x), torch.tensor(samples.y)


def perceptron() -> Flat:
    params = NETWORK.init(LENGTH["seed"])

    def losses(given: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        hidden = torch.tanh(x @ given["0.weight"].T + given["0.bias"])
        return functional.cross_entropy(hidden @ given["1.weight"].T + given["1.bias"], y, reduction="none")

    start = torch.cat([torch.from_numpy(p).flatten() for p in params.values()])
    return Flat(losses, {name: p.shape for name, p in params.items()}, start)


def order(count: int) -> Tensor:
    return torch.tensor(np.array([index for _, index in batch_order(count, **LENGTH)]))


def run_of(optimiser: Adam | Schedule) -> Run:
    return trajectory.recorded(perceptron(), optimiser, data_of(TRAIN), order(TRAIN.n))


def oracle_run(optimiser: Adam | Schedule, valid: Batch, **options: Any) -> Any:
    return reference.attribute(NETWORK, optimiser, TRAIN, valid, **LENGTH, **options)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_step_scores_are_those_of_the_oracle(name: str) -> None:
    optimiser = OPTIMISERS[name]
    run = run_of(optimiser)
    found = trajectory.step_scores(run, [data_of(valid) for valid in VALID])
    for column, valid in enumerate(VALID):
        for slope in trajectory.SLOPES:
            oracle = oracle_run(optimiser, valid, slope=slope, nodes=trajectory.NODES, keep_step_scores=True)
            assert close(found[slope][..., column], oracle.step_scores), slope
            assert close(found[trajectory.SGD][..., column], oracle.step_sgd_scores)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("slope", ["secant", "random_order"])
def test_carried_scores_are_those_of_the_oracle_and_add_up_to_the_fall(name: str, slope: str) -> None:
    optimiser = OPTIMISERS[name]
    run = run_of(optimiser)
    found = trajectory.carried(run, [data_of(valid) for valid in VALID], [slope])[slope]
    for column, valid in enumerate(VALID):
        oracle = oracle_run(optimiser, valid, slope=slope, nodes=trajectory.NODES, credit="carry")
        assert close(found[:, column], oracle.scores)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_unrolling_with_the_hessian_is_the_metagradient(name: str) -> None:
    run = run_of(OPTIMISERS[name])
    data = [data_of(valid) for valid in VALID]
    found = trajectory.unrolled(run, data)
    others = [trajectory.unrolled(run, data, curvature) for curvature in ("fisher", "none")]
    for column, valid in enumerate(VALID):
        wanted = reference.metagradient(oracle_run(OPTIMISERS[name], valid))
        assert close(found[:, column], wanted)
        assert not any(close(other[:, column], wanted) for other in others)


def test_a_run_of_one_step_has_the_oracle_s_influence_for_any_curvature() -> None:
    index = order(TRAIN.n)[:1]
    adam = Adam(lr=0.02, eps=1e-2)  # with a small ε the first step's influence is what two terms leave of each other
    run = trajectory.recorded(perceptron(), adam, data_of(TRAIN), index)
    once = reference.attribute(NETWORK, adam, TRAIN, VALID[0], **{**LENGTH, "epochs": 1}, steps=1)
    for curvature in ("hessian", "fisher", "none"):
        assert close(trajectory.unrolled(run, [data_of(VALID[0])], curvature)[:, 0], reference.metagradient(once))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_retraining_without_a_sample_is_the_oracle_s(name: str) -> None:
    optimiser, left_out = OPTIMISERS[name], np.array([0, 7, 11])
    everyone = order(TRAIN.n)[:, None].repeat(1, 4, 1)
    weight = torch.full(everyone.shape, 1 / LENGTH["batch_size"], dtype=torch.float64)
    for copy, sample in enumerate(left_out):
        weight[:, copy][everyone[:, copy] == sample] = 0
    theta = stacked.trained(perceptron(), optimiser, data_of(TRAIN), everyone, weight)
    losses = stacked.mean_losses(perceptron(), theta, data_of(VALID[0])).numpy()
    wanted = reference.retrained(oracle_run(optimiser, VALID[0]), left_out)
    assert close(losses[:3] - losses[3], wanted)


# --- a language model -------------------------------------------------------------------------------------------------


def language_model() -> tuple[Flat, Data, Data, Tensor]:
    torch.manual_seed(0)
    model = Model(Sizes(layers=2, heads=2, width=8, vocabulary=11, context=6, n=4)).double()
    ids = torch.randint(11, (16, 7))
    both = ids[:, :-1], ids[:, 1:]
    index = torch.from_numpy(np.array([i for _, i in batch_order(12, batch_size=4, epochs=4, seed=0)]))
    return Flat.of(model), (both[0][:12], both[1][:12]), (both[0][12:], both[1][12:]), index


def final_loss(flat: Flat, adam: Adam, data: Data, valid: Data, index: Tensor, omega: Array) -> float:
    weight = torch.from_numpy(omega)[index] / index.shape[1]
    theta = stacked.trained(flat, adam, data, index[:, None], weight[:, None])
    return float(stacked.mean_losses(flat, theta, valid)[0])


def test_the_metagradient_of_a_language_model_is_the_slope_of_retraining() -> None:
    flat, data, valid, index = language_model()
    adam = Adam(lr=1e-2, eps=1e-4, weight_decay=0.1)
    found = trajectory.unrolled(trajectory.recorded(flat, adam, data, index), [valid])[:, 0]
    h, direction = 1e-3, np.random.default_rng(0).normal(size=12)

    def change(step: float) -> float:
        ends = [final_loss(flat, adam, data, valid, index, 1 + sign * step * direction) for sign in (1, -1)]
        return (ends[1] - ends[0]) / (2 * step)

    extrapolated = (4 * change(h / 2) - change(h)) / 3  # what is left is of fourth order in h
    assert abs(found @ direction - extrapolated) < 1e-4 * abs(extrapolated)


def test_copies_train_as_alone_and_tied_weights_stay_tied() -> None:
    flat, data, valid, index = language_model()
    assert "out.weight" not in flat.shapes
    adam = Adam(lr=1e-2)
    masks = torch.from_numpy(np.random.default_rng(0).integers(2, size=(19, 12)).astype(float))
    weight = torch.stack([mask[index] for mask in masks], dim=1) / 4
    everyone = index[:, None].repeat(1, len(masks), 1)
    together = stacked.mean_losses(flat, stacked.trained(flat, adam, data, everyone, weight), valid).numpy()
    alone = [final_loss(flat, adam, data, valid, index, mask.numpy()) for mask in masks]
    assert close(together, alone, 1e8)


def test_sums_of_steps_are_weighted_like_a_run_s() -> None:
    run = run_of(OPTIMISERS["AdamW"])
    steps = trajectory.step_scores(run, [data_of(VALID[0])])["secant"]
    oracle = oracle_run(OPTIMISERS["AdamW"], VALID[0], slope="secant", keep_step_scores=True)
    for weighting in ("sum", "unit"):
        found = weighted_steps(run.index.numpy(), steps[..., 0], run.count, weighting)
        assert close(found, reference.weighted(oracle, weighting))
