"""One training step, before it is taken.

Letters, here and everywhere: ``n`` samples of a batch, ``n_val`` validation samples, ``N`` samples of a data set,
``d_in`` and ``d_out`` the widths of a layer's input and output.

===========  ===========================  =======================================================
paper        name                         meaning
===========  ===========================  =======================================================
θ            ``Step.params``              parameters before the step
m, v         ``AdamState.m``, ``.v``      Adam's moments before the step
t            ``AdamState.next_step``      number of the step that is taken
η, β1, β2    ``Adam.lr``, ``.betas``      learning rate, decay of the two moments; `Step.settings`
ε, ε_root    ``Adam.eps``, ``.eps_root``  added outside and inside the square root
λ            ``Adam.weight_decay``        decoupled weight decay
B            ``Step.train``               the step's batch; a coalition S is a boolean mask over it
L            loss on ``Step.valid``       mean validation loss
===========  ===========================  =======================================================
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from adamshap.reference.contract.arrays import Params, named_arrays, on_host
from adamshap.reference.contract.batch import Batch
from adamshap.reference.contract.checks import of_kind, one_of
from adamshap.reference.contract.model import Model, model_of, real_parts
from adamshap.reference.contract.optimiser import Adam, AdamState, Optimiser, StepNumber, optimiser_in, optimiser_of
from adamshap.reference.contract.refusal import refuse

__all__ = ["REDUCTIONS", "Reduction", "Step", "float64_step"]

Reduction = Literal["mean", "sum"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)


@dataclass(frozen=True, eq=False)
class Step:
    """One training step, before it is taken, and its validation samples.

    Parameters
    ----------
    net : Network
        The model, of this or any other class with the methods of `Model`.
    params : dict of arrays
        θ, with exactly the names and shapes of ``net.shapes``.
    adam : Adam
        One set of settings, or an `Optimiser` with a set for each parameter and step.
    state : AdamState
        Moments of the same names and shapes.
    train : Batch
        B, the n training samples.
    valid : Batch
        n_val samples; L is their mean loss, for either `reduction`.
    reduction : {"mean", "sum"}
        Whether a sample contributes ``∇ℓ/n`` or ``∇ℓ`` to the batch gradient. The divisor stays n for every coalition.
    """

    net: Model
    params: Params
    adam: Optimiser
    state: AdamState
    train: Batch
    valid: Batch
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        model_of("Step.net", self.net)
        optimiser_of("Step.adam", self.adam, StepNumber(1), ())
        for field, kind in {"state": AdamState, "train": Batch, "valid": Batch}.items():
            of_kind(f"Step.{field}", getattr(self, field), kind)
        one_of("Step.reduction", self.reduction, REDUCTIONS)
        shapes = self.net.shapes
        optimiser_of("Step.adam", self.adam, self.state.next_step, shapes)
        object.__setattr__(self, "params", named_arrays("Step.params", self.params, shapes))
        if {name: m.shape for name, m in self.state.m.items()} != shapes:
            have = {name: m.shape for name, m in self.state.m.items()}
            refuse("Step.state", f"names and shapes {have}", f"those of the network, {shapes}")
        for field in ("train", "valid"):
            self.net.check_batch(f"Step.{field}", getattr(self, field))

    @property
    def n(self) -> int:
        """Number of training samples, the size of B."""
        return self.train.n

    @property
    def n_val(self) -> int:
        """Number of validation samples."""
        return self.valid.n

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the step: float32 if θ, m or v has fewer bits than float64; the data's dtype does not matter."""
        arrays = [a for group in (self.params, self.state.m, self.state.v) for a in group.values()]
        narrow = any(a.dtype.kind == "f" and a.dtype.itemsize < 8 for a in arrays)
        return np.dtype(np.float32 if narrow else np.float64)

    def settings(self, name: str) -> Adam:
        """Return Adam's settings of this step for one parameter.

        Parameters
        ----------
        name : str
            Name of the parameter.

        Returns
        -------
        Adam
            Its η, β1, β2, ε, ε_root and λ.
        """
        return self.adam.at(self.state.next_step, name)

    def as_float64(self) -> "Step":
        """Return this step with NumPy arrays, all real ones in float64.

        Returns
        -------
        Step
            The step itself if it already has them. Adam's settings are still those for this step's `dtype`.
        """
        adam = optimiser_in(self.adam, self.dtype)
        groups = (self.params, self.state.m, self.state.v)
        data = [self._real_or_not(batch) for batch in (self.train, self.valid)]
        reals = [a for group in groups for a in group.values()] + [a for part in data for a, real in part if real]
        integers = [a for part in data for a, real in part if not real]
        if all(a.dtype == np.float64 for a in reals) and all(isinstance(a, np.ndarray) for a in (*reals, *integers)):
            return self if adam == self.adam else replace(self, adam=adam)
        params, m, v = ({name: on_host(a).astype(np.float64) for name, a in group.items()} for group in groups)
        train, valid = (
            Batch(*(on_host(a).astype(np.float64) if real else on_host(a) for a, real in part)) for part in data
        )
        state = AdamState(self.state.step, m, v)
        return Step(self.net, params, adam, state, train, valid, self.reduction)

    def _real_or_not(self, batch: Batch) -> list[tuple[Any, bool]]:
        """Return x and y, each with whether the model uses it as real numbers."""
        real = real_parts(self.net, batch)
        return [(batch.x, "x" in real), (batch.y, "y" in real)]


def float64_step(step: object) -> Step:
    """Return ``step.as_float64()``; refuse anything but a `Step`."""
    return of_kind("step", step, Step).as_float64()
