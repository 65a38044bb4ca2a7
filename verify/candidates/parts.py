"""The inputs that the candidates here support: perceptrons with one set of Adam's settings for all parameters."""

from adamshap.reference.contract import Adam, Network, Step

__all__ = ["adam_of", "network_of"]


def network_of(step: Step) -> Network:
    """Return the step's model."""
    if not isinstance(step.net, Network):
        raise NotImplementedError(f"models of kind {step.net.kind!r}")
    return step.net


def adam_of(step: Step) -> Adam:
    """Return the step's optimiser."""
    if not isinstance(step.adam, Adam):
        raise NotImplementedError("settings by parameter")
    if step.adam.l2:
        raise NotImplementedError("L2 decay")
    return step.adam
