"""The settings of an `Attribution`, checked when it is constructed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from adamshap.reference.contract import (
    Estimator,
    positive_integer,
    refuse,
    shown,
    true_or_false,
    validation_interval,
)
from adamshap.torch.forward_mode.step import refuse_slope
from adamshap.torch.forward_mode.verification import refuse_unverifiable

__all__ = ["Settings", "check_validation"]

FIRST_CHECKS = 2
"""Steps at the beginning that are checked in full: a forgotten zero_grad() shows at the second."""


@dataclass(frozen=True)
class Settings:
    """The settings of an `Attribution`, as its parameters of these names.

    Parameters
    ----------
    estimator : Estimator
    n_samples : int
    with_sgd : bool
    check_every : int
    recompute : bool
    micro_batch : int or None
    verify_ghost : bool
    keep_step_scores : bool
    validation_every : int
    """

    estimator: Estimator
    n_samples: int
    with_sgd: bool
    check_every: int
    recompute: bool
    micro_batch: int | None
    verify_ghost: bool
    keep_step_scores: bool
    validation_every: int

    @classmethod
    def of(
        cls,
        estimator: Estimator,
        *,
        n_samples: int,
        with_sgd: bool,
        check_every: int,
        recompute: bool,
        micro_batch: int | None,
        verify_ghost: bool,
        keep_step_scores: bool,
        validation_every: int,
    ) -> "Settings":
        """Return the settings; refuse those that are not supported, also together."""
        refuse_slope(estimator)
        if verify_ghost := true_or_false("verify_ghost", verify_ghost):
            refuse_unverifiable(estimator)
        forward = estimator.contraction == "forward"
        if (recompute := true_or_false("recompute", recompute)) and (verify_ghost or forward):
            which = "verify_ghost" if verify_ghost else "contraction 'forward'"
            refuse("recompute", f"True with {which}", "False: no captures are compared, or there are none")
        if micro_batch is not None and not recompute:
            needs = "recompute=True beside it, whose second pass it divides; for the first, accumulate in the loop"
            refuse("micro_batch", shown(micro_batch), needs)
        return cls(
            estimator,
            positive_integer("n_samples", n_samples),
            true_or_false("with_sgd", with_sgd),
            positive_integer("check_every", check_every),
            recompute,
            None if micro_batch is None else positive_integer("micro_batch", micro_batch),
            verify_ghost,
            true_or_false("keep_step_scores", keep_step_scores),
            validation_interval(validation_every, estimator.gradient, efficient=estimator.efficient),
        )

    @property
    def needs_losses(self) -> bool:
        """Whether each block of samples needs the function of its losses."""
        return self.verify_ghost or self.estimator.contraction == "forward"

    def checks_after(self, steps: int) -> bool:
        """Whether the step after so many is checked in full."""
        return steps < FIRST_CHECKS or steps % self.check_every == 0

    @property
    def text(self) -> str:
        """The settings on which the scores depend, which a saved state must share."""
        kept = ", keep_step_scores=True" * self.keep_step_scores  # states of earlier versions do not say False
        every = f", validation_every={self.validation_every}" * (self.validation_every > 1)
        return f"{self.estimator}, with_sgd={self.with_sgd}{kept}{every}"


def check_validation(validation: Callable[[], torch.Tensor]) -> None:
    """Refuse a missing validation function, or one that is no function."""
    if not callable(validation):
        needs = "a function that returns the mean validation loss, called in each step"
        refuse("validation", shown(validation), needs, TypeError)
