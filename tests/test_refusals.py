"""Bad input raises an error that names it: the cases of the table, the page, and random ones."""

import math
import runpy
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import NET, PARAMS, REFUSALS, Refusal, X, Y, batch, invoke, step

from adamshap import gpu, reference
from adamshap.reference import Adam, AdamState, Batch, Network

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.call)
def test_bad_input_is_refused_by_name(refusal: Refusal) -> None:
    message = refusal.message()
    assert message.startswith(f"{refusal.field}: got "), message
    assert "; needs " in message


def test_the_page_is_current() -> None:
    """If this fails, run ``python docs/refusals.py``, which also checks that each command ends in one line."""
    page: str = runpy.run_path(str(DOCS / "refusals.py"))["page"]()
    assert (DOCS / "refusals.md").read_text(encoding="utf-8") == page


# --- random bad input ------------------------------------------------------------------------------------------------

NOTHINGS = [
    None,
    True,
    object(),
    ...,
    len,
    1j,
    Decimal(1),
    Fraction(1, 2),
    b"3",
    bytearray(2),
    {1, 2},
    range(0),
    np.bool_(1),
]
NUMBERS = st.one_of(
    st.integers(max_value=-1),
    st.sampled_from(
        [
            math.nan,
            math.inf,
            -math.inf,
            -1e-300,
            -(10**400),
            -(10**5000),
            np.float32("nan"),
            np.float64("-inf"),
            np.int8(-3),
        ]
    ),
)
WORDS = st.text(max_size=8)
ARRAYS = st.sampled_from(
    [
        np.array("x"),
        np.array(np.nan),
        np.zeros((0, 3)),
        np.zeros((2, 2, 2)),
        np.full((5, 3), np.inf),
        np.zeros((5, 3), complex),
        np.zeros((5, 3), object),
        np.zeros((5, 3), bool),
        np.zeros((5, 3), "datetime64[s]"),
        np.zeros((5, 3), [("a", int)]),
    ]
)
THINGS = st.one_of(
    st.sampled_from(NOTHINGS),
    NUMBERS,
    WORDS,
    ARRAYS,
    st.lists(WORDS, max_size=3),
    st.dictionaries(WORDS, NUMBERS, max_size=2),
)


NOT_A_COUNT = THINGS | st.floats() | st.just(0)
NOT_A_RATE = THINGS
NOT_A_CHOICE = THINGS | st.floats() | st.integers()
NOT_A_FLAG = THINGS.filter(lambda thing: not isinstance(thing, bool | np.bool_)) | st.integers() | st.floats()
NOT_A_THING = THINGS | st.integers()
NO_ROWS = NOT_A_THING.filter(lambda thing: not isinstance(thing, np.ndarray) or thing.ndim < 2)

RUN = {"network": NET, "adam": Adam(), "train": batch(), "valid": batch(), "epochs": 1}


def attributed(who: Any, field: str) -> Callable[[Any], object]:
    return lambda value: who.attribute(**(RUN | {field: value}))


def scored(who: Any, field: str) -> Callable[[Any], object]:
    return lambda value: who.scores(step(), **{field: value})


BAD: Mapping[str, tuple[Callable[[Any], object], st.SearchStrategy[Any]]] = {
    # start of the message, the call, and invalid values
    "Network.sizes": (
        Network,
        THINGS | st.integers() | st.tuples(st.integers(1, 5)) | st.tuples(st.just(3), NOT_A_COUNT),
    ),
    "Network.activation": (lambda value: Network((3, 2), value), NOT_A_CHOICE),
    "Network.loss": (lambda value: Network((3, 2), loss=value), NOT_A_CHOICE),
    "Network.bias": (lambda value: Network((3, 2), bias=value), NOT_A_FLAG),
    "seed": (NET.init, THINGS | st.floats()),
    "Adam.lr": (lambda value: Adam(lr=value), NOT_A_RATE),
    "Adam.eps": (lambda value: Adam(eps=value), NOT_A_RATE),
    "Adam.eps_root": (lambda value: Adam(eps_root=value), NOT_A_RATE),
    "Adam.weight_decay": (lambda value: Adam(weight_decay=value), NOT_A_RATE),
    "Adam.betas": (
        lambda value: Adam(betas=value),
        THINGS | st.floats() | st.tuples(st.floats(min_value=1), st.just(0.9)) | st.tuples(st.just(0.9), NOT_A_RATE),
    ),
    "AdamState.step": (lambda value: AdamState(value, PARAMS, PARAMS), THINGS | st.floats()),
    "AdamState m": (lambda value: AdamState(1, value, PARAMS), NOT_A_THING),
    "AdamState.v": (lambda value: AdamState(1, PARAMS, value), NOT_A_THING),
    "Batch.x": (lambda value: Batch(value, Y), NO_ROWS),
    "Batch.y": (lambda value: Batch(X, value), NOT_A_THING),
    "LazyRows.source": (reference.LazyRows, NO_ROWS),
    "LazyRows.index": (lambda value: reference.LazyRows(X, value), NOT_A_THING.filter(lambda thing: thing is not None)),
    "LazyRows.mean": (
        lambda value: reference.LazyRows(X, mean=value),
        NOT_A_THING.filter(lambda thing: thing is not None),
    ),
    "Step.params": (lambda value: step(params=value), NOT_A_THING),
    "Step.params['0.bias']": (lambda value: step(params=PARAMS | {"0.bias": value}), NOT_A_THING),
    "Step.state": (lambda value: step(state=value), NOT_A_THING),
    "Step.train": (lambda value: step(train=value), NOT_A_THING),
    "Step.reduction": (lambda value: step(reduction=value), NOT_A_CHOICE),
    "coalition": (lambda value: reference.utility(step(), value), NOT_A_THING.filter(lambda thing: thing is not True)),
}
for who in (reference, gpu):
    one = who.__name__.split(".")[1]
    BAD |= {  # type: ignore[operator]
        f"slope {one}": (scored(who, "slope"), NOT_A_CHOICE),
        f"gradient {one}": (scored(who, "gradient"), NOT_A_CHOICE),
        f"denominator {one}": (scored(who, "denominator"), NOT_A_CHOICE),
        f"efficient {one}": (scored(who, "efficient"), NOT_A_FLAG),
        f"per_validation {one}": (scored(who, "per_validation"), NOT_A_FLAG),
        f"nodes {one}": (
            scored(who, "nodes"),
            THINGS.filter(lambda thing: thing is not None) | st.integers() | st.tuples(NOT_A_COUNT, st.just(4)),
        ),
        f"step {one}": (who.scores, NOT_A_THING),
        f"network {one}": (attributed(who, "network"), NOT_A_THING),
        f"adam {one}": (attributed(who, "adam"), NOT_A_THING),
        f"train {one}": (attributed(who, "train"), NOT_A_THING),
        f"valid {one}": (attributed(who, "valid"), NOT_A_THING),
        f"epochs {one}": (attributed(who, "epochs"), NOT_A_COUNT),
        f"batch_size {one}": (attributed(who, "batch_size"), NOT_A_COUNT),
        f"seed {one}": (attributed(who, "seed"), THINGS | st.floats()),
        f"resume {one}": (attributed(who, "resume"), NOT_A_THING.filter(lambda thing: thing is not None)),
        f"on_step {one}": (attributed(who, "on_step"), NOT_A_THING.filter(lambda t: t is not None and not callable(t))),
    }


@settings(max_examples=2000)
@given(data=st.data())
def test_random_bad_input_is_refused_by_name(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(BAD)), label="argument")
    call, values = BAD[name]
    value = data.draw(values, label="value")
    with pytest.raises((ValueError, TypeError)) as caught:
        call(value)
    message = str(caught.value)
    assert message.startswith(name.split()[0]), message
    assert ": got " in message
    assert "; needs " in message


BAD_OPTIONS = {
    "--epochs": st.integers(max_value=0).map(str) | WORDS.filter(lambda word: not word.strip().isdecimal()),
    "--batch-size": st.integers(max_value=0).map(str) | st.floats().filter(lambda x: x % 1 != 0).map(str),
    "--seed": st.integers(max_value=-1).map(str) | st.floats().filter(lambda x: x % 1 != 0).map(str),
    "--lr": st.floats(max_value=-1e-300).map(str) | st.sampled_from(["nan", "inf", "-inf", "1e999", "", "0x", "1,5"]),
    "--hidden": st.integers(max_value=0).map(str) | st.lists(st.just("3"), min_size=1).map(lambda s: ",".join(s) + ","),
    "--slope": WORDS,
    "--gradient": WORDS,
    "--flip-labels": st.floats(min_value=1).map(str) | st.floats(max_value=-1e-9).map(str) | WORDS.filter(str.isalpha),
    "--checkpoint-seconds": st.floats(max_value=-1e-9).map(str) | st.just("nan"),
    "--out": st.sampled_from([".", "/", "/dev/null", "/proc/1/x", "a/b/c", "x" * 300, "\0", "/dev/full"]),
    "--resume": WORDS | st.sampled_from(["/", "/dev/null", "x" * 300, "\0"]),
    **dict.fromkeys(("--label", "--sep", "--decimal", "--one-hot", "--drop", "--missing", "--group"), WORDS),
    "DATA": WORDS.filter(lambda word: not word.startswith("-"))
    | st.sampled_from(["/", "/dev/null", "\0", "x" * 300 + ".npz"]),
}


@settings(max_examples=100)
@given(data=st.data())
def test_random_options_of_the_command_end_in_one_line(data: st.DataObject) -> None:
    option = data.draw(st.sampled_from(sorted(BAD_OPTIONS)), label="option")
    value = data.draw(BAD_OPTIONS[option], label="value")
    data_set = () if option in ("DATA", "--resume") else ("wine",)
    result = invoke("attribute", *data_set, value if option == "DATA" else f"{option}={value}")
    assert result.exit_code == 2
    assert result.stderr.startswith("adamshap: ")
    assert len(result.stderr.splitlines()) == 1
