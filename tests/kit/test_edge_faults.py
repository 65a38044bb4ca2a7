"""Every known mistake at edges is caught, by the property named here; and the tenth held out is a tenth."""

import pytest

from adamshap.verify.checking import check
from adamshap.verify.edges.properties import EDGE_PROPERTIES
from adamshap.verify.faults import EDGE_FAULTS, FAULTS, LAYER_FAULTS, Fault
from adamshap.verify.properties import PROPERTIES

BY_NAME = {one.name: one for one in (*PROPERTIES, *EDGE_PROPERTIES)}

FOUND_BY = {
    "relu-derivative-one": "edge-kink-2-layers-update",
    "relu-derivative-half": "edge-kink-2-layers-update",
    "t-int8": "edges-update",
    "t-int16": "edge-t-32768-beta2-near-1-update",
    "t-int32": "edge-t-2147483649-beta2-near-1-update",
    "t-float32": "edge-t-16777217-beta2-near-1-update",
    "t-clamped": "edge-t-32768-beta2-near-1-update",
    "rest-of-32-rows": "edge-outputs-33-update",
    "rest-of-128-rows": "edge-outputs-129-update",
    "rest-of-64-columns": "edge-input-65-update",
    "rest-of-256-columns": "edge-input-257-update",
    "rest-of-32-samples": "edge-n-33-update",
    "rest-of-128-samples": "edge-n-129-update",
    "rest-of-256-samples": "edge-n-257-update",
    "rest-of-64-validation-samples": "edge-n_val-65-random_order",
    "names-as-strings": "edge-depth-11-random_order",
    "eps-zero-unset": "edge-eps-eps=0.0-update",
    "lr-zero-unset": "edge-lr-lr=0.0-update",
    "beta-zero-unset": "edge-betas-betas=(0.0,0.999)-update",
    "decay-beyond-one": "edge-weight_decay-weight_decay=6.0,lr=0.25-update",
    "equal-validation-merged": "edge-equal-two-equal-validation-samples-random_order",
    "equal-validation-inputs-merged": "edge-equal-equal-validation-inputs-with-other-labels-random_order",
    "in-place": "edge-layout-writeable-update",
    "memory-order": "edge-layout-fortran-update",
    "same-buffer": "memory-random_order",
    "cached-by-shape": "memory-update",
    "pruned": "edge-zero-parameters-at-0-update",
    "square-gradient-transposed": "edges-update",
    "weights-along-outputs": "edges-update",
    "square-scores-transposed": "edges-per_validation",
    "layers-by-first-digit": "edge-depth-11-update",
    "slope-zero-where-equal": "edges-scores",
    "lazy": "edge-zero-inputs-at-0-update",
    "fresh-without-momentum": "edge-zero-m-at-0-update",
    "small-as-zero": "edge-size-tiny-inputs-update",
    "deviation-floor": "edge-equal-equal-samples-random_order",
    "members-uint8": "edge-n-257-utility",
    "labels-int8": "edge-classes-257-update",
    "equal-samples-merged": "edge-equal-equal-samples-update",
    "zero-samples-not-counted": "edge-zero-one-sample-at-0-update",
    "validation-without-training-samples": "edge-equal-some-validation-samples-are-training-samples-random_order",
    "n-uint8": "edge-n-257-update",
    "n-uint16": "edge-n-65537-update",
    "one-validation-sample-squeezed": "edge-n_val-1-random_order",
    "small-root-unset": "edge-eps-eps=0.0-update",
    "decay-skipped-at-zero": "edge-weight_decay-weight_decay=4.0,lr=0.25-update",
    "numbers-16-bit": "edge-matrix-257x257-update",
}


@pytest.mark.parametrize("fault", EDGE_FAULTS, ids=lambda fault: fault.name)
def test_every_mistake_at_an_edge_is_caught(fault: Fault) -> None:
    (outcome,) = check(fault.implementation(), [BY_NAME[FOUND_BY[fault.name]]], shrink_seconds=0)
    assert outcome.status == "failed"


def test_the_catalogue_of_edges_is_well_formed() -> None:
    every = (*FAULTS, *LAYER_FAULTS, *EDGE_FAULTS)
    assert len({fault.name for fault in every}) == len(every)
    assert len({fault.sentence for fault in every}) == len(every)
    assert set(FOUND_BY) == {fault.name for fault in EDGE_FAULTS}
    assert len(EDGE_FAULTS) >= 30


def test_about_a_tenth_is_held_out() -> None:
    every = (*FAULTS, *LAYER_FAULTS, *EDGE_FAULTS)
    assert 0.05 < sum(fault.held_out for fault in every) / len(every) < 0.15
