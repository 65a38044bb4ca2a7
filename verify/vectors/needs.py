"""What an implementation must support to answer a case, by name."""

from adamshap.reference.contract import AUTO, TWO_TERM, Sequential, Step
from adamshap.verify.implementation import Query
from adamshap.verify.models.sequential import each_layer
from adamshap.verify.optimisers import features_of

__all__ = ["needs_of"]


def needs_of(step: Step, query: Query) -> tuple[str, ...]:
    """Return the names, sorted.

    They are ``perceptron`` or the kinds of layers, ``auto`` or ``two_term`` for these slopes, and features of
    optimisers.
    """
    needs = {step.net.kind}
    if isinstance(step.net, Sequential):
        needs = {layer.kind for layer in each_layer(step.net)}
    slopes = {AUTO, TWO_TERM} & {query.options.get("slope")}
    return tuple(sorted(needs | slopes | features_of(step.adam)))
