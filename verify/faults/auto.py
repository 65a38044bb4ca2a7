"""Mistakes in the slope "auto": when the random order is needed."""

from collections.abc import Callable
from typing import Any

from adamshap.reference import slopes
from adamshap.reference.adam import Coefficients
from adamshap.reference.contract import Array
from adamshap.verify.faults.fault import Fault, Wrap, computes_with


def _weighs(make: Callable[[Any], Callable[[Coefficients, Array], float]]) -> Wrap:
    """Return a fault in λ, the weight of the random order."""
    return computes_with(slopes.random_order_weight, make)


def _of_each_coordinate(given: slopes.SlopeInput) -> Array:
    """Return the slope with a λ for each coordinate, by its own share squared."""
    own = given.c.q * given.g**2
    share = own / (given.c.kappa + own + (own == 0))
    low, high = slopes.LEAST_SHARE, slopes.FULL_SHARE
    weight = ((share**2 - low) / (high - low)).clip(0, 1)
    wrong: Array = (1 - weight) * slopes.secant(given) + weight * slopes.random_order(given)
    return wrong


FAULTS: tuple[Fault, ...] = (
    Fault(
        "auto-is-secant",
        "`auto` without the random order",
        "a threshold that nothing reaches",
        _weighs(lambda right: lambda c, g: 0.0),
    ),
    Fault(
        "auto-is-random-order",
        "`auto` with the random order everywhere",
        "a threshold below everything",
        _weighs(lambda right: lambda c, g: 1.0),
    ),
    Fault(
        "auto-switches",
        "`auto` with one of its two slopes, without a mean of both between the thresholds",
        "an if for a blend",
        _weighs(lambda right: lambda c, g: float(right(c, g) > 0.5)),
    ),
    Fault(
        "auto-for-each-coordinate",
        "`auto` decided for each coordinate by itself, not for the parameter",
        "a fused elementwise kernel",
        computes_with(slopes.auto, lambda right: _of_each_coordinate),
    ),
)
