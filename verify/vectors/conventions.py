"""Other conventions of the method that libraries follow: the variants that some test vectors accept.

A vector of the group "acceptable" reports which convention an implementation follows. The other vectors state theirs in
the case, and accept no other.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import autograd.numpy as anp
import numpy as np

from adamshap.reference import losses
from adamshap.reference.adam import bias_correction
from adamshap.reference.contract import NOT_COUNTED, Array, Clipped, Step
from adamshap.verify.replacing import replaced
from adamshap.verify.steps import adam_of

__all__ = ["CONVENTIONS", "Convention"]


@dataclass(frozen=True)
class Convention:
    """One convention.

    Parameters
    ----------
    name : str
        Name in vectors and reports.
    sentence : str
        Completion of "your answers follow ...".
    source : str
        Who does it like this.
    change : callable
        Function from a step to the one that the oracle would have to get for the same answers.
    within : callable
        Context in which the oracle computes by this convention.
    """

    name: str
    sentence: str
    source: str
    change: Callable[[Step], Step] = lambda step: step
    within: Callable[[], AbstractContextManager[None]] = nullcontext


def _with_eps_before_correction(step: Step) -> Step:
    adam = adam_of(step)
    return replace(
        step, adam=replace(adam, eps=adam.eps / np.sqrt(bias_correction(adam.betas[1], step.state.next_step)))
    )


def _clipped_as_by_pytorch(step: Step) -> Step:
    assert isinstance(step.adam, Clipped)
    return replace(step, adam=replace(step.adam, eps=1e-6))


@contextmanager
def _mean_over_the_tokens_of_the_batch() -> Iterator[None]:
    right = losses.mean_cross_entropy

    def mean_cross_entropy(logits: Any, labels: Array) -> Any:
        counted = (labels != NOT_COUNTED).sum(axis=1)
        return right(logits, labels) * anp.array(counted / counted.mean())

    with replaced("mean_cross_entropy", right, mean_cross_entropy):
        yield


CONVENTIONS: tuple[Convention, ...] = (
    Convention(
        "epsilon-before-correction",
        "Keras's ε, which is added to √v before its bias correction: ε/√(1 − β2^t) for ε",
        "Keras (TensorFlow)",
        _with_eps_before_correction,
    ),
    Convention(
        "mean-over-the-batch-s-tokens",
        "the mean over all counted tokens of a batch, which weighs a sample by its number of tokens",
        "cross_entropy of PyTorch over (n T, vocab), Hugging Face's models",
        within=_mean_over_the_tokens_of_the_batch,
    ),
    Convention(
        "clip-epsilon-of-pytorch",
        "PyTorch's clipping, which divides by ‖g‖ + 1e-6",
        "torch.nn.utils.clip_grad_norm_",
        _clipped_as_by_pytorch,
    ),
)
"""The conventions by which `plan_v2` has vectors that accept another answer."""
