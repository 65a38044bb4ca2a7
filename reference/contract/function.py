"""A model of the user's own: parameters, and a function that returns each sample's loss."""

from collections.abc import Callable, Mapping
from typing import Any

from adamshap.reference.contract.arrays import Params, named_arrays
from adamshap.reference.contract.batch import Batch
from adamshap.reference.contract.checks import check_callable, positive_integer, seed_of, shown
from adamshap.reference.contract.refusal import refuse

__all__ = ["Function"]

Losses = Callable[[Any, Batch], Any]
Init = Mapping[str, Any] | Callable[[int], Mapping[str, Any]]
Gradients = Callable[[Params, Batch], Mapping[str, Any]]


class Function:
    """A model defined by a function for its losses, differentiated by autograd or by a second function.

    Samples must not interact: a sample's loss is the same whichever others are in the batch, unlike with statistics of
    the batch, contrastive losses or dropout. The oracle refuses losses that differ between a batch and a sample alone.

    Parameters
    ----------
    shapes : mapping from str to tuple of int
        Name and shape of each parameter, in their order.
    losses : callable
        ``losses(params, batch)`` returns ℓ(θ; z_i) of each sample, (n,), in operations of ``autograd.numpy``. Integers
        of a batch stay integers.
    init : mapping from str to array, or callable, optional
        The parameters that a run starts with: the same for every seed, or ``init(seed)``.
    gradients : callable, optional
        ``gradients(params, batch)`` returns ∇ℓ(θ; z_i) of each sample, (n, …) by parameter, for losses that autograd
        cannot differentiate, such as those of a PyTorch module in double precision. Everything but `metagradient`,
        which needs second derivatives, works with it.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        losses: Losses,
        init: Init | None = None,
        gradients: Gradients | None = None,
    ) -> None:
        if not isinstance(shapes, Mapping) or not shapes or not all(isinstance(name, str) for name in shapes):
            refuse("Function.shapes", shown(shapes), "a mapping from parameter name to shape, not empty", TypeError)
        self._shapes = {name: _shape(f"Function.shapes[{name!r}]", shape) for name, shape in shapes.items()}
        if not callable(losses):
            refuse("Function.losses", shown(losses), "a function of parameters and a batch", TypeError)
        if init is not None and not callable(init) and not isinstance(init, Mapping):
            refuse("Function.init", shown(init), "a mapping from parameter name to array, or a function", TypeError)
        check_callable("Function.gradients", gradients)
        self._losses, self._init, self._gradients = losses, init, gradients

    def __repr__(self) -> str:  # in the settings of a run, by which its saved states are known: no addresses
        name = getattr(self._losses, "__qualname__", type(self._losses).__qualname__)
        return f"Function({self._shapes}, {getattr(self._losses, '__module__', '')}.{name})"

    @property
    def kind(self) -> str:
        """The kind of model, "function"."""
        return "function"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each parameter."""
        return dict(self._shapes)

    @property
    def losses(self) -> Losses:
        """The function of parameters and a batch."""
        return self._losses

    @property
    def gradients(self) -> Gradients | None:
        """The function that returns each sample's gradient, or None for autograd."""
        return self._gradients

    @property
    def integers(self) -> tuple[str, ...]:
        """The arrays of a batch whose integers are not converted: both."""
        return ("x", "y")

    def init(self, seed: int = 0) -> Params:
        """Return the parameters that a run starts with.

        Parameters
        ----------
        seed : int
            Argument of the function `init`.

        Returns
        -------
        dict of arrays
            In float64, with the names and shapes of `shapes`.
        """
        seed = seed_of(seed)
        if self._init is None:
            refuse("Function.init", None, "the parameters that a run starts with, or a function of a seed")
        given = self._init(seed) if callable(self._init) else self._init
        return {name: p.astype(float) for name, p in named_arrays("Function.init", given, self._shapes).items()}

    def check_batch(self, field: str, batch: Batch) -> None:
        """Accept any batch: its format is up to the function.

        Parameters
        ----------
        field : str
            The batch's name in errors.
        batch : Batch
        """


def _shape(where: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        refuse(where, shown(value), "a tuple of positive integers", TypeError)
    return tuple(positive_integer(f"{where}[{i}]", size) for i, size in enumerate(value))
