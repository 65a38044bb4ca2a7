"""The description of one edge: which parts of an otherwise ordinary small step are fixed, and at which values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adamshap.verify.models import PERCEPTRON

__all__ = ["Edge"]


@dataclass(frozen=True)
class Edge:
    """One edge, as plain data.

    Parameters
    ----------
    group : str
        The dimension, such as ``n`` or ``eps``.
    label : str
        The place in it, such as ``257``; group and label are the edge's name in reports.
    sizes : dict of int
        Fixed sizes: ``input``, ``hidden``, ``outputs``, ``depth``, ``n``, ``n_val``, ``coalition``; for stacks of
        layers those of `stacks.stack_at`. The others are drawn, and small.
    net : dict
        Fixed fields of the network: ``activation``, ``loss``, ``bias``.
    adam : dict
        Fixed settings of Adam.
    completed : int, optional
        Completed steps; drawn if None.
    arrangements : tuple of str
        Names in `arrangements.ARRANGEMENTS`, applied to the step in this order.
    layout : str
        How the candidate receives the step's arrays: one of `given.LAYOUTS`.
    calls : tuple of str
        Names of the calls (`draws.CALLS`) that it concerns; empty for all.
    model : str
        The kind of models.
    layers : frozenset of str
        The kinds of layers without which a stack cannot be at the edge.
    """

    group: str
    label: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    net: Mapping[str, Any] = field(default_factory=dict)
    adam: Mapping[str, Any] = field(default_factory=dict)
    completed: int | None = None
    arrangements: tuple[str, ...] = ()
    layout: str = "read-only"
    calls: tuple[str, ...] = ()
    model: str = PERCEPTRON
    layers: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Name in reports, such as ``n-257``."""
        return f"{self.group}-{self.label}"
