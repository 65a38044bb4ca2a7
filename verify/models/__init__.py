"""The kinds of models: the only part of the kit that depends on them. All other modules use `kind_of` a model.

A new kind needs a module here, listed in `KINDS`, and one that draws its models with Hypothesis; they are separate,
since test vectors are read without Hypothesis.
"""

from adamshap.reference.contract import Model, one_of
from adamshap.verify.models.kind import Draws, ModelKind
from adamshap.verify.models.perceptron import Perceptrons
from adamshap.verify.models.sequential import Sequentials

__all__ = ["KINDS", "PERCEPTRON", "SEQUENTIAL", "Draws", "ModelKind", "kind_named", "kind_of"]

PERCEPTRON = "perceptron"
"""The kind of a case that names none."""

SEQUENTIAL = "sequential"
"""The kind of stacks of layers."""

KINDS: dict[str, ModelKind] = {PERCEPTRON: Perceptrons(), SEQUENTIAL: Sequentials()}


def kind_of(model: Model) -> ModelKind:
    """Return the kind of a model."""
    return kind_named(model.kind)


def kind_named(name: object) -> ModelKind:
    """Return the kind with a name, as in `Model.kind`."""
    return KINDS[one_of("kind", name, tuple(KINDS))]
