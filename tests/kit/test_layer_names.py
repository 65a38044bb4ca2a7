"""The diagnosis names the layer in which a known mistake sits: its captures, its backward pass, or the layer itself."""

import pytest

from adamshap.verify.checking import check
from adamshap.verify.diagnosis import diagnose
from adamshap.verify.faults import LAYER_FAULTS, Fault
from adamshap.verify.implementation import CAPTURED, CAPTURES
from adamshap.verify.layers.properties import LAYER_PROPERTIES
from adamshap.verify.models.sequential import LAYERS
from adamshap.verify.mutation import first_catch

OWN, BACKWARD, FORWARD = "the captures of {} are wrong", "the backward pass of {} is wrong", "forward pass"
"""Where a mistake sits: in a layer's own captures, in its backward pass, or in its outputs."""

SHARED = "every wrong answer is for a stack with "
"""Wrong outputs change the captures of all layers: the layer is one of those that all wrong answers share."""

LAYER_OF: dict[str, tuple[str, str]] = {
    "tied-weight-counted-once": (OWN, "tied_linear"),
    "repeated-tokens-overwritten": (OWN, "embedding"),
    "token-0-as-padding": (OWN, "embedding"),
    "embedding-dropped": (OWN, "embedding"),
    "embedding-scaled": (FORWARD, "embedding"),
    "positions-dropped": (OWN, "positions"),
    "positions-shared-by-samples": (OWN, "positions"),
    "gain-of-the-input": (OWN, "layer_norm"),
    "rms-gain-of-the-input": (OWN, "rms_norm"),
    "norm-over-positions": (FORWARD, "layer_norm"),
    "rms-over-positions": (FORWARD, "rms_norm"),
    "norm-eps-outside": (FORWARD, "layer_norm"),
    "rms-eps-outside": (FORWARD, "rms_norm"),
    "norm-variance-by-d-minus-1": (FORWARD, "layer_norm"),
    "norm-not-centred": (FORWARD, "layer_norm"),
    "rms-centred": (FORWARD, "rms_norm"),
    "norm-statistics-fixed": (BACKWARD, "layer_norm"),
    "in-projection-dropped": (FORWARD, "attention"),
    "mask-off-by-one": (FORWARD, "attention"),
    "no-causal-mask": (FORWARD, "attention"),
    "attention-weights-fixed": (BACKWARD, "attention"),
    "scale-of-the-model": (FORWARD, "attention"),
    "attention-not-scaled": (FORWARD, "attention"),
    "query-and-key-swapped": (FORWARD, "attention"),
    "projection-by-head": (FORWARD, "attention"),
    "residual-branch-only": (BACKWARD, "residual"),
    "residual-identity-only": (BACKWARD, "residual"),
    "positions-summed-at-the-end": (FORWARD, "mean_over_positions"),
    "last-position-at-the-end": (FORWARD, "mean_over_positions"),
    "flattened-channels-last": (FORWARD, "flatten"),
    "convolution-flipped": (FORWARD, "conv2d"),
    "groups-dealt-in-turn": (FORWARD, "conv2d"),
    "convolution-bias-once": (OWN, "conv2d"),
    "last-of-equal-maxima": (FORWARD, "max_pool2d"),
    "average-pool-summed": (FORWARD, "avg_pool2d"),
    "stride-ignored": (OWN, "conv2d"),
    "groups-ignored": (FORWARD, "conv2d"),
}
"""Where each mistake in one kind of layer sits; without a layer's input projection the scores alone are wrong."""

PRODUCTS = ("in_proj_weight of attention", "weight of conv2d", "weight of linear", "weight of tied_linear")

SEVERAL: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            *("positions-summed-separately", "positions-averaged", "last-position-only", "first-position-only"),
            *("positions-reversed", "positions-mixed-between-samples"),
        ),
        PRODUCTS,
    ),
    "bias-of-one-position": ("in_proj_bias of attention", "bias of layer_norm", "bias of linear"),
}
"""The mistakes in captures that several kinds of layers share, with some of these."""

NOT_IN_A_LAYER = {
    *("equal-positions-only", "validation-summed-first", "squares-by-position"),  # of products of two gradients
    *("norm-gains-dropped", "decay-of-matrices-alone"),  # of parameters by their dimension
    *("uncounted-as-token-0", "mean-over-all-positions", "sum-over-positions"),  # of losses
    *("mean-over-the-batch-s-tokens", "labels-shifted-again"),
}

FAULTS = {fault.name: fault for fault in LAYER_FAULTS}
OF_CAPTURES = [one for one in LAYER_PROPERTIES if one.function == CAPTURES]


def found(fault: Fault) -> str:
    """Return the diagnosis's words on the layer, from the captures, or else from the first property that fails."""
    candidate = fault.implementation()
    outcomes = check(candidate, OF_CAPTURES, shrink_seconds=0)
    if all(one.status == "passed" for one in outcomes):
        first = first_catch(fault, LAYER_PROPERTIES).outcome
        assert first is not None
        outcomes = [first]
    diagnosis = diagnose(candidate, outcomes, seconds=0.0)
    assert diagnosis is not None
    assert fault.name in diagnosis.faults
    return diagnosis.layer


@pytest.mark.parametrize("name", LAYER_OF)
def test_the_layer_of_a_mistake_is_named(name: str) -> None:
    how, layer = LAYER_OF[name]
    says = found(FAULTS[name])
    if how == FORWARD and says.startswith(SHARED):
        assert f"{layer} (" in says
        assert 2 * says.count("right ones are too") <= len(LAYERS)  # a list of more than half would name nothing
    else:  # the captures below may be right by chance in the few cases that show a mistake
        assert says.startswith((OWN if how == FORWARD else how).format(layer))


@pytest.mark.parametrize("name", SEVERAL)
def test_the_layers_of_a_shared_mistake_are_listed(name: str) -> None:
    says = found(FAULTS[name])
    assert says.startswith("several: wrong are ")
    assert all(f"{part} ({', '.join(CAPTURED)})" in says for part in SEVERAL[name])


def test_every_mistake_has_its_layer_here() -> None:
    assert LAYER_OF.keys() | SEVERAL.keys() | NOT_IN_A_LAYER == FAULTS.keys()
