"""The inputs that the candidates here support: perceptrons and stacks of layers, with one set of Adam's settings."""

from adamshap.reference.contract import Activation, Adam, Layer, Linear, Network, Sequential, Step

__all__ = ["adam_of", "network_of", "stack_of"]


def network_of(step: Step) -> Network:
    """Return the step's model, a perceptron."""
    if not isinstance(step.net, Network):
        raise NotImplementedError(f"models of kind {step.net.kind!r}")
    return step.net


def stack_of(model: object) -> Sequential:
    """Return a model as a stack of layers; a perceptron is one of linear layers and activations."""
    if isinstance(model, Sequential):
        return model
    if not isinstance(model, Network):
        raise NotImplementedError(f"models of kind {getattr(model, 'kind', '?')!r}")
    layers: list[Layer] = []
    names: list[str] = []
    for number, (d_in, d_out) in enumerate(zip(model.sizes, model.sizes[1:], strict=False)):
        layers += [Linear(d_in, d_out, model.bias), Activation(model.activation)]
        names += [f"{number}", f"activation {number}"]
    return Sequential(layers[:-1], names[:-1], model.loss)  # type: ignore[arg-type]


def adam_of(step: Step) -> Adam:
    """Return the step's optimiser."""
    if not isinstance(step.adam, Adam):
        raise NotImplementedError("settings by parameter")
    if step.adam.l2:
        raise NotImplementedError("L2 decay")
    return step.adam
