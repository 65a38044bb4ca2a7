"""The optimiser of a run: Adam's settings, and the learning rate's schedule."""

from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.job import Options
from adamshap.reference.contract import Adam, Optimiser, Schedule


def optimiser(options: Options, steps: int) -> Optimiser:
    """Return the optimiser that `options` describe, for a run of `steps` steps.

    Raises
    ------
    CommandError
        The warm-up does not end before the run.
    ValueError
        Adam's settings are not finite.
    """
    adam = Adam(options.lr, options.betas, options.eps, weight_decay=options.weight_decay)
    if options.warmup >= steps:
        raise CommandError(
            f"--warmup: got {options.warmup}, for a run of {steps} steps; needs fewer steps than the run"
        )
    if options.schedule == "constant":
        return Schedule(adam, warmup=options.warmup) if options.warmup else adam
    return Schedule(adam, options.schedule, options.warmup, steps)


def betas_of(text: str) -> tuple[float, float]:
    """Return Adam's β1 and β2 from `text`, two numbers separated by a comma.

    Raises
    ------
    CommandError
        They are not two numbers in [0, 1).
    """
    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError:
        numbers = ()
    if len(numbers) != 2 or not all(0 <= number < 1 for number in numbers):
        raise CommandError(
            f"--betas: got {text!r}; needs two numbers of at least 0 and less than 1, separated by a comma: 0.9,0.999"
        )
    return numbers[0], numbers[1]


def shown(options: Options) -> str:
    """Return a phrase on the settings that differ from the defaults; "" without any."""
    default = Adam()
    parts = []
    if options.betas != default.betas:
        parts.append(f"betas {options.betas[0]:g}, {options.betas[1]:g}")
    if options.eps != default.eps:
        parts.append(f"eps {options.eps:g}")
    if options.weight_decay:
        parts.append(f"weight decay {options.weight_decay:g}")
    if options.schedule != "constant" or options.warmup:
        warmup = f" after {options.warmup} steps of warm-up" if options.warmup else ""
        parts.append(f"learning rate {options.lr:g}, {options.schedule}{warmup}")
    return ", ".join(parts)
