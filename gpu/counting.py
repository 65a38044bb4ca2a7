"""The two ways of counting steps, by number from 1 and by the count of completed ones, and every conversion."""

from adamshap.reference.contract import CompletedSteps, StepNumber

__all__ = ["FIRST_STEP", "NO_STEPS", "completed_after", "completed_before", "following", "next_step"]

FIRST_STEP = StepNumber(1)
NO_STEPS = CompletedSteps(0)


def next_step(completed: CompletedSteps) -> StepNumber:
    """Return the number of the step after `completed` completed ones."""
    return StepNumber(completed + 1)


def following(t: StepNumber) -> StepNumber:
    """Return the number of the step after step `t`."""
    return StepNumber(t + 1)


def completed_before(t: StepNumber) -> CompletedSteps:
    """Return the number of steps completed before step `t`."""
    return CompletedSteps(t - 1)


def completed_after(t: StepNumber) -> CompletedSteps:
    """Return the number of steps completed once step `t` is."""
    return CompletedSteps(t)
