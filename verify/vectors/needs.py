"""What an implementation must support to answer a case, by name."""

from adamshap.reference.contract import TWO_TERM, Sequential, Step
from adamshap.verify.implementation import Implementation, Query
from adamshap.verify.models.sequential import each_layer
from adamshap.verify.optimisers import FEATURES, features_of

__all__ = ["needs_of", "undeclared_need"]


def needs_of(step: Step, query: Query) -> tuple[str, ...]:
    """Return the names, sorted: ``perceptron`` or the kinds of layers, ``two_term``, and features of optimisers."""
    needs = {step.net.kind}
    if isinstance(step.net, Sequential):
        needs = {layer.kind for layer in each_layer(step.net)}
    if query.options.get("slope") == TWO_TERM:
        needs.add(TWO_TERM)
    return tuple(sorted(needs | features_of(step.adam)))


def undeclared_need(candidate: Implementation, step: Step, query: Query) -> str:
    """Return a sentence about a need that a candidate does not declare; "" if it declares all."""
    declared = {"perceptron"} | candidate.layers | (candidate.supports & set(FEATURES))
    for name in needs_of(step, query):
        if name == TWO_TERM and "kind" not in candidate.extras:
            return "scores has no parameter kind, which goes with the slope two_term"
        if name != TWO_TERM and name not in declared:
            return f"SUPPORTS does not name {name}"
    return ""
