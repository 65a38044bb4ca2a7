"""The one place of the kit that knows kinds of models; everything else asks a model, or its kind by `kind_of`.

Another kind is one more module here, listed in `KINDS`, and one beside it that draws its models with Hypothesis: apart,
since test vectors are read without it.
"""

from adamshap.reference.contract import Model, one_of
from adamshap.verify.models.kind import Draws, ModelKind
from adamshap.verify.models.perceptron import Perceptrons

__all__ = ["KINDS", "PERCEPTRON", "Draws", "ModelKind", "kind_named", "kind_of"]

PERCEPTRON = "perceptron"
"""The kind of a case that names none: the first that there was."""

KINDS: dict[str, ModelKind] = {PERCEPTRON: Perceptrons()}


def kind_of(model: Model) -> ModelKind:
    """Return what the kit knows about models of this kind."""
    return kind_named(model.kind)


def kind_named(name: object) -> ModelKind:
    """Return what the kit knows about a kind of models, by the name that `Model.kind` has."""
    return KINDS[one_of("kind", name, tuple(KINDS))]
