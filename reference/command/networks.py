"""The network of a run: a multilayer perceptron, a transformer for text or a convolutional network for images."""

from collections.abc import Mapping
from typing import Any, get_args

from adamshap.reference.command import images
from adamshap.reference.command.datasets import Dataset
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.job import ModelName, Options
from adamshap.reference.contract import Loss, Network, Sequential, convnet, transformer

DEFAULTS: dict[ModelName, dict[str, Any]] = {
    "mlp": {"hidden": (64, 64), "activation": "tanh"},
    "convnet": {"width": 8, "depth": 2, "activation": "relu"},
    "transformer": {
        "width": 32,
        "depth": 2,
        "heads": 2,
        "context": 64,
        "activation": "gelu",
        "examples": "passage",
        "tokens": "characters",
    },
}
"""The options of each model, at their defaults."""


def options_of(model: ModelName, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `model`: the `given` ones, where None stands for the default.

    Raises
    ------
    CommandError
        An option is given that the model does not have.
    """
    own = DEFAULTS[model]
    for name, value in given.items():
        if value is not None and name not in own:
            models = " or ".join(other for other in get_args(ModelName) if name in DEFAULTS[other])
            raise CommandError(f"--{name}: got it with the model {model}; needs --model {models}")
    return own | {name: value for name, value in given.items() if value is not None}


def network(options: Options, dataset: Dataset) -> Network | Sequential:
    """Return the network for `options` and `dataset`.

    Raises
    ------
    CommandError
        The model does not fit the data.
    """
    outputs = len(dataset.classes) or len(dataset.targets)
    loss: Loss = "mse" if dataset.task == "regression" else "cross_entropy"
    if dataset.text is not None:
        if options.width % options.heads:
            raise CommandError(f"--heads: got {options.heads}; needs a divisor of the width, {options.width}")
        return transformer(
            vocab=1 + len(dataset.text.vocabulary),
            context=dataset.x.shape[1],
            width=options.width,
            depth=options.depth,
            heads=options.heads,
            activation=options.activation,
        )
    if options.model == "mlp":
        return Network((dataset.x.shape[1], *options.hidden, outputs), options.activation, loss)
    if dataset.image_shape is None:
        raise CommandError(
            f"--model: got 'convnet' with {dataset.name!r}, whose examples are no images; needs digits, or arrays x of"
            " shape (N, height, width) or (N, channels, height, width)"
        )
    return convnet(
        image=images.size_of(dataset.image_shape),
        channels=_channels(options.width, options.depth),
        outputs=outputs,
        activation=options.activation,
        loss=loss,
    )


def shown(options: Mapping[str, Any], described: Mapping[str, Any]) -> str:
    """Return a phrase on the network, from the ``options`` and the ``network`` of a run's config."""
    if "sizes" in described:
        return "network " + "-".join(map(str, described["sizes"]))
    if options["model"] == "transformer":
        blocks, heads = (
            f"{options[n]} {what}{'s' * (options[n] > 1)}" for n, what in (("depth", "block"), ("heads", "head"))
        )
        return f"transformer of {blocks}, width {options['width']}, {heads}, context {options['context']}"
    channels = "-".join(map(str, _channels(options["width"], options["depth"])))
    return f"convolutional network of {channels} channels"


def _channels(width: int, depth: int) -> list[int]:
    """Return the channels of each convolution: twice those of the one before."""
    return [width * 2**layer for layer in range(depth)]
