"""Cases without a right answer: an implementation that returns a number for one of them is wrong."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

from adamshap.reference.contract import Attention, Conv2d, Embedding, Flatten, Linear, Network, Positions, Sequential
from adamshap.verify.cases import case_to_json
from adamshap.verify.implementation import Query
from adamshap.verify.json_values import Json
from adamshap.verify.models import SEQUENTIAL
from adamshap.verify.vectors.random_steps import random_step
from adamshap.verify.vectors.vector import Refusal

__all__ = ["refusals"]

Change = Callable[[Json], None]

SEED = 20_000
"""Seed of the steps that the cases are changed from."""


def refusals() -> Iterator[Refusal]:
    """Yield all cases; each differs from a right one in one place."""
    of_bases = ((_perceptron(), _PERCEPTRON), (_tokens(), _TOKENS), (_image(), _IMAGE), (_optimiser(), _OPTIMISER))
    for base, changes in of_bases:
        for name, field, reason, change in changes:
            case = deepcopy(base)
            change(case)
            yield Refusal(f"must_refuse-{name}", case, field, reason)


def _case(model: Any, kind: str = SEQUENTIAL) -> Json:
    step = random_step(SEED, kind=kind, model=model, max_n=3, max_n_val=2, states=("ordinary",))
    return case_to_json(step, Query("scores", {"slope": "linearized", "gradient": "start"}))


def _perceptron() -> Json:
    return _case(Network((2, 3, 2), "tanh", "cross_entropy"), "perceptron")


def _tokens() -> Json:
    layers = (Embedding(4, 2), Positions(3, 2), Attention(2), Linear(2, 4))
    return _case(Sequential(layers))


def _image() -> Json:
    return _case(Sequential((Conv2d(2, 2, (2, 2)), Flatten(), Linear(2, 3))))


def _optimiser() -> Json:
    case = _perceptron()
    settings = {**case.pop("adam"), "weight_decay": 0.0, "l2": 0.1}
    case["optimizer"] = {
        "adam": settings,
        "groups": [{"params": ["0.bias"], "adam": dict(settings)}],
        "schedule": {"shape": "cosine", "warmup": 1, "steps": 10_000, "floor": 0.1},
        "clip": {"norm": 0.1, "eps": 1e-06},
    }
    return case


# --- changes ---------------------------------------------------------------------------------------------------------


def _put(*path: Any, value: Any) -> Change:
    """Return the change that sets one place of the case."""

    def change(case: Json) -> None:
        place: Any = case
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def _drop(*path: Any) -> Change:
    """Return the change that removes one place of the case."""

    def change(case: Json) -> None:
        place: Any = case
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


def _transpose(*path: Any) -> Change:
    """Return the change that transposes a matrix of the case."""

    def change(case: Json) -> None:
        place: Any = case
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = [list(column) for column in zip(*place[path[-1]], strict=True)]

    return change


def _both(first: Change, second: Change) -> Change:
    def change(case: Json) -> None:
        first(case)
        second(case)

    return change


def _every_label(case: Json, label: int) -> None:
    case["train"]["y"][0] = [label] * len(case["train"]["y"][0])


def _wider(case: Json) -> None:
    case["train"]["x"] = [[*row, 1.0] for row in case["train"]["x"]]


def _one_pixel(case: Json) -> None:
    case["train"]["x"] = [[[[0.5]], [[1.5]]] for _ in case["train"]["x"]]


def _longer(case: Json, length: int) -> None:
    for batch in ("train", "valid"):
        n = len(case[batch]["x"])
        case[batch] = {"x": [[0] * length] * n, "y": [[0] * length] * n}


def _interacting(case: Json) -> None:
    norm = {"kind": "batch_norm", "width": 2}
    case["network"]["layers"].insert(1, norm)
    case["network"]["names"] = [str(i) for i in range(len(case["network"]["layers"]))]


_BETA = "with β = 1 the moments never change, and 1 − β^t is 0"
_PERCEPTRON: tuple[tuple[str, str, str, Change], ...] = (
    ("beta1-is-1", "adam.betas", _BETA, _put("adam", "betas", 0, value=1.0)),
    ("beta2-is-1", "adam.betas", _BETA, _put("adam", "betas", 1, value=1.0)),
    ("beta1-negative", "adam.betas", "β1 is a share of the old moment", _put("adam", "betas", 0, value=-0.9)),
    ("beta2-above-1", "adam.betas", "β2 is a share of the old moment", _put("adam", "betas", 1, value=1.5)),
    ("lr-negative", "adam.lr", "Adam with a negative η climbs", _put("adam", "lr", value=-0.001)),
    (
        "eps-negative",
        "adam.eps",
        "a negative ε may make the denominator 0",
        _put("adam", "eps", value=-1e-8),
    ),
    ("eps_root-negative", "adam.eps_root", "the root of a negative number", _put("adam", "eps_root", value=-1e-8)),
    ("decay-negative", "adam.weight_decay", "λ < 0 makes the weights grow", _put("adam", "weight_decay", value=-0.1)),
    ("amsgrad", "adam", "AMSGrad's largest second moment is not in the case", _put("adam", "amsgrad", value=True)),
    (
        "step-negative",
        "state.step",
        "Adam has taken a number of steps, 0 or more",
        _put("state", "step", value=-1),
    ),
    ("step-fraction", "state.step", "Adam has taken a whole number of steps", _put("state", "step", value=2.5)),
    ("v-negative", "state.v", "v is a mean of squares", _put("state", "v", "0.bias", 0, value=-1e-4)),
    ("moment-missing", "state", "a parameter has no first moment", _drop("state", "m", "0.bias")),
    ("parameter-missing", "params", "the network has this parameter", _drop("params", "1.bias")),
    ("weight-transposed", "params", "a weight has d_out rows of d_in", _transpose("params", "0.weight")),
    ("inputs-too-wide", "train.x", "the network takes two inputs", _wider),
    ("label-too-large", "train.y", "there are two classes, 0 and 1", _put("train", "y", 0, value=2)),
    ("label-negative", "valid.y", "there are two classes, 0 and 1", _put("valid", "y", 0, value=-1)),
    ("label-fraction", "train.y", "a label is the number of a class", _put("train", "y", 0, value=0.5)),
    ("labels-too-few", "train.y", "each sample has a label", _drop("train", "y", -1)),
    ("no-validation", "valid", "the loss of no sample is undefined", _put("valid", value={"x": [], "y": []})),
    ("reduction-unknown", "reduction", "it is mean or sum", _put("reduction", value="none")),
    ("slope-unknown", "options.slope", "there is no such slope", _put("options", "slope", value="raw")),
    ("nodes-zero", "options.nodes", "a rule of quadrature has a node", _put("options", "nodes", 0, value=0)),
    (
        "previous-at-1",
        "options.denominator",
        "before the first step there is no previous second moment",
        _both(_put("options", "denominator", value="previous"), lambda case: _fresh(case)),
    ),
    (
        "coalition-too-short",
        "options.coalition",
        "it says of each sample whether it is in the coalition",
        lambda case: case.update(function="utility", options={"coalition": [True] * (len(case["train"]["x"]) + 1)}),
    ),
)

_TOKENS: tuple[tuple[str, str, str, Change], ...] = (
    ("nothing-counted", "train.y", "the mean loss of no position is undefined", partial(_every_label, label=-100)),
    ("token-too-large", "train.x", "the vocabulary has four tokens, 0 to 3", _put("train", "x", 0, 0, value=4)),
    ("token-negative", "train.x", "the vocabulary has four tokens, 0 to 3", _put("train", "x", 0, 0, value=-1)),
    ("sequence-too-long", "train.x", "there are three learned positions", partial(_longer, length=4)),
    (
        "heads",
        "network.layers",
        "2 is no multiple of three heads",
        _put("network", "layers", 2, "heads", value=3),
    ),
    ("samples-interact", "network.layers", "a sample of a batch norm has no loss of its own", _interacting),
)

_IMAGE: tuple[tuple[str, str, str, Change], ...] = (
    (
        "groups",
        "network.layers",
        "2 is no multiple of three groups",
        _put("network", "layers", 0, "groups", value=3),
    ),
    ("kernel", "train.x", "a kernel of 2 by 2 is larger than the image", _one_pixel),
    ("stride-zero", "network.layers", "a stride is at least 1", _put("network", "layers", 0, "stride", value=[0, 1])),
)

_OPTIMISER: tuple[tuple[str, str, str, Change], ...] = (
    ("clip-zero", "optimizer.clip.norm", "nothing is left of the gradient", _put("optimizer", "clip", "norm", value=0)),
    ("clip-negative", "optimizer.clip.norm", "a norm is not negative", _put("optimizer", "clip", "norm", value=-1.0)),
    (
        "two-decays",
        "optimizer.adam.l2",
        "no library has decay inside the gradient and outside it",
        _put("optimizer", "adam", "weight_decay", value=0.1),
    ),
    (
        "group-twice",
        "optimizer.groups",
        "a parameter has one set of settings",
        lambda case: case["optimizer"]["groups"].append(dict(case["optimizer"]["groups"][0])),
    ),
    (
        "group-unknown",
        "optimizer.groups",
        "there is no such parameter",
        _put("optimizer", "groups", 0, "params", value=["2.bias"]),
    ),
    (
        "group-missing",
        "optimizer.adam",
        "most parameters have no settings",
        _put("optimizer", "adam", value=None),
    ),
    (
        "schedule-too-short",
        "optimizer.schedule.shape",
        "there is no factor for this step",
        _put("optimizer", "schedule", value={"shape": [1.0], "warmup": 0, "steps": None, "floor": 0.0}),
    ),
)


def _fresh(case: Json) -> None:
    case["state"]["step"] = 0
    for moments in (case["state"]["m"], case["state"]["v"]):
        for name, values in moments.items():
            moments[name] = _zeros(values)


def _zeros(values: Any) -> Any:
    return [_zeros(each) for each in values] if isinstance(values, list) else 0.0
