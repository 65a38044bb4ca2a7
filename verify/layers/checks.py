"""The checks of single layers' captures, and of a perceptron as a stack of layers."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from adamshap.reference.contract import Activation, Linear, Network, Sequential, Step
from adamshap.verify.implementation import Answer
from adamshap.verify.models.perceptron import network_of
from adamshap.verify.models.places import Place, places_of
from adamshap.verify.oracle import bounds, expected_and_bounds
from adamshap.verify.property import Asker, Case, Check, Disagreement, compare_widening
from adamshap.verify.property_checks import agree
from adamshap.verify.tolerance import DRAWS, MORE_DRAWS

__all__ = ["a_perceptron_is_a_stack", "as_stack", "captures_agree", "wrong_places"]


def captures_agree(what: str) -> Check:
    """Return the check of one kind of numbers of `captures`; its message lists the parameters that are wrong."""

    def agrees(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
        got, (wanted, widening) = ask(case.step, case.query), expected_and_bounds(case.step, case.query, dtype)
        chosen = {name: array for name, array in got.items() if name.startswith(f"{what}.")}
        try:
            return compare_widening(case, chosen, wanted, enumerate(widening, start=-1), DRAWS)
        except Disagreement as error:
            wrong = wrong_places(case, got, wanted, bounds(case.step, case.query, dtype, MORE_DRAWS))
            where = "; ".join(f"{place}: {', '.join(found)}" for place, found in wrong.items())
            message = f"wrong are {where}"
            raise Disagreement(case, error.what, error.got, error.wanted, error.bound, message) from None

    return agrees


def wrong_places(case: Case, got: Answer, wanted: Answer, bound: Answer) -> dict[Place, list[str]]:
    """Return the places of parameters with a wrong answer of `captures`, and which of their numbers are wrong."""
    found: dict[Place, list[str]] = {}
    places = places_of(case.step.net)
    for name, array in got.items():
        what, _, parameter = name.partition(".")
        if not (np.abs(array - wanted[name]) <= bound[name]).all():
            found.setdefault(places[parameter], []).append(what)
    return found


def as_stack(network: Network) -> Sequential:
    """Return the perceptron as a stack of layers with the same names of parameters."""
    layers: list[Linear | Activation] = []
    names: list[str] = []
    for number, (d_in, d_out) in enumerate(zip(network.sizes, network.sizes[1:], strict=False)):
        if number:
            layers.append(Activation(network.activation))
            names.append(f"activation{number - 1}")
        layers.append(Linear(d_in, d_out, network.bias))
        names.append(str(number))
    return Sequential(tuple(layers), tuple(names), network.loss)


def a_perceptron_is_a_stack(ask: Asker, case: Case, dtype: npt.DTypeLike) -> float:
    """Compare the scores of a perceptron with those of the same model as a stack of layers."""
    step: Step = replace(case.step, net=as_stack(network_of(case.step)))
    base, stacked = (ask(one, case.query)["values"] for one in (case.step, step))
    return agree(ask, case, stacked, base, base, case, dtype)
