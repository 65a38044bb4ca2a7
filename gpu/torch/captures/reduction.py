"""What is left of captures that are not kept: Σ_i x_i of each parameter that is compared, and a bound on its size."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from adamshap.gpu.captures import Capture
from adamshap.torch.checks.gradients import size_of

__all__ = ["Reduced", "Reduction"]


@dataclass
class Reduced:
    """What is left of the uses of one parameter in a block: Σ_i x_i if it is compared, and a bound on Σ_i ‖x_i‖.

    Parameters
    ----------
    name : str
    n : int
        Number of rows.
    total : array, optional
        Σ_i x_i.
    size : array (1, 1)
        Bound on Σ_i ‖x_i‖, if it is compared.
    count : int
        Number of outer products per row.
    sums : callable, optional
        Function that returns Σ_i x_i of every parameter from another pass, if it is needed after all.
    """

    name: str
    n: int
    total: Any = None
    size: Any = 0.0
    count: int = 0
    sums: Callable[[], Mapping[str, "Reduced"]] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The parameter used."""
        return (self.name,)

    @property
    def products(self) -> dict[str, int]:
        """Number of outer products per row, if the parameter is contracted by them."""
        return {self.name: self.count} if self.count else {}

    def sum_of(self, xp: Any, name: str, units: slice) -> Any:
        """Return Σ_i x_i of some units."""
        self._complete()
        return self.total[units]

    def kept(self) -> dict[str, Any]:
        """Return an array whose norm is the bound on Σ_i ‖x_i‖."""
        self._complete()
        return {"x": self.size}

    def _complete(self) -> None:
        if self.total is None and self.sums is not None:
            found = self.sums()[self.name]
            self.total, self.size = found.total, found.size

    def add(self, xp: Any, use: Capture, shape: tuple[int, ...], summed: bool) -> None:
        """Add a use."""
        self.count += use.products.get(self.name, 0)
        if not summed:
            return
        part = use.sum_of(xp, self.name, slice(0, shape[0])).reshape(shape)
        self.total = part if self.total is None else self.total + part
        self.size = self.size + size_of(xp, use, len(shape)).reshape(1, 1)


@dataclass(eq=False)
class Reduction:
    """The captures of one pass, reduced as they come.

    Parameters
    ----------
    xp : module
        NumPy or CuPy.
    n : int
        Number of samples.
    shapes : dict
        Shapes of the parameters.
    summed : collection of str
        The parameters whose Σ_i x_i is wanted.
    found : dict of Reduced
    """

    xp: Any
    n: int
    shapes: Mapping[str, tuple[int, ...]]
    summed: Collection[str]
    found: dict[str, Reduced] = field(default_factory=dict)

    def add(self, use: Capture) -> None:
        """Add a capture."""
        for name in use.names:
            one = self.found.setdefault(name, Reduced(name, self.n))
            one.add(self.xp, use, self.shapes[name], name in self.summed)
