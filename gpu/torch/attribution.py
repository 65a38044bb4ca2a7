"""Attribution of a PyTorch training loop, beside the loop: `Attribution`."""

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from adamshap.gpu.kept_gradients import KeptGradients
from adamshap.gpu.products import refuse_score_dtype
from adamshap.reference.contract import (
    Array,
    CompletedSteps,
    Contraction,
    Denominator,
    Estimator,
    Gradient,
    MarginalKind,
    Run,
    ScoreDtype,
    ScoreSlope,
    Variance,
    of_kind,
    refuse,
)
from adamshap.torch.captures.hooks import Hooks
from adamshap.torch.captures.recompute import check_again
from adamshap.torch.captures.roundoff import joined
from adamshap.torch.checks.mistakes import (
    checked_index,
    gradients_of,
    modes_of,
    refuse_closure,
    versions_of_gradients,
)
from adamshap.torch.checks.steps import check_parameters
from adamshap.torch.forward_mode.closures import check_losses
from adamshap.torch.forward_mode.derivatives import Derivatives
from adamshap.torch.forward_mode.step import step_of
from adamshap.torch.forward_mode.verification import refuse_low_dtypes
from adamshap.torch.memory import array_of, at_work, backend_of, memory_of, refuse_graph_capture
from adamshap.torch.optimizer import (
    adam_of,
    check_optimizer,
    hook_steps,
    hyperparameters_of,
    is_skipped,
    on_host,
    precision_of,
    refuse_unknown_gradients,
    scale_of,
    state_of,
    trainable,
)
from adamshap.torch.passes import StepPasses
from adamshap.torch.pending import Pending
from adamshap.torch.processes import OtherProcessError, Processes, WholeBatch, unwrapped
from adamshap.torch.scoring import Given, Scorer, context_of, products_of
from adamshap.torch.settings import Settings, check_validation
from adamshap.torch.sources import source_of
from adamshap.torch.totals import Totals, check_settings
from adamshap.torch.validation import ValidationStack

__all__ = ["Attribution"]


class Awaited(NamedTuple):
    """Parameters before a step, and after it by the engine."""

    before: dict[str, Array]
    after: Mapping[str, Array]


class Attribution:
    """Scores the samples of a PyTorch loop, at each ``optimizer.step()``.

    The loop keeps its model, loss, optimiser, clipping, schedule and loader. x_i is what the loop's own backward pass
    gives: class weights, label smoothing and weights of samples are in it. The scores of a step are
    ``⟨Γ ⊙ S, f x_i⟩`` (docs/method.md), where f is the factor of clipping and of scaling between the backward pass
    and the step, which is found from ``p.grad``.

    Parameters
    ----------
    model : torch.nn.Module
        Its trainable parameters in float32 or float64, on the CPU or on one CUDA device, of modules that are
        registered (docs/torch.md). Or a DistributedDataParallel of one: each of several processes has an attribution.
    optimizer : torch.optim.Adam or torch.optim.AdamW
        Optimiser of all trainable parameters of the model, in any number of groups.
    validation : callable
        Function without arguments that returns the mean validation loss as a tensor, or with `per_validation` the
        losses (n_val,). It may return (mean, number of samples), by which the losses of several processes are weighted
        (else evenly). It is called at θ, and with moved parameters at the points that `gradient` needs; random state
        and modes are put back afterwards: call ``model.eval()`` in it to be without dropout.
    n_samples : int
        N, the number of training samples: those that ``samples(index)`` counts.
    slope : {"sgd", "frozen", "linearized", "tangent", "secant", "random_order", "auto", "two_term"}
        S, as for `adamshap.gpu.scores`: keep the default, or take the faster "secant", unless docs/choose.md says
        otherwise. "two_term" only where a sample has one position.
    gradient : {"start", "midpoint", "path"}
        Γ, as for `adamshap.gpu.scores`: keep "midpoint".
    efficient : bool
        As for `adamshap.gpu.scores`: distribute what the scores leave of the step's decrease of the loss.
    per_validation : bool
        One score for each validation sample's own loss, (N, n_val): `validation` returns the losses (n_val,). Takes
        memory for n_val gradients.
    nodes : tuple of two ints, optional
        (path, normal), as for `adamshap.gpu.scores`.
    denominator : {"exact", "previous"}
        For "linearized"; "previous" not at the first step.
    kind : {"first", "last", "shapley"}
        For "two_term".
    rank : int, optional
        Rank of the sketch of P, its basis kept from step to step; Adam's first sixteen steps, usually, are exact
        (docs/choose.md). None is exact.
    variance : {"exact", "rank_one"}
        σ² of "random_order", "auto" and "two_term".
    score_dtype : {"bfloat16", "tf32", "float16"}, optional
        Precision of the contraction with P, for a model in float32: "bfloat16" on the host, about twice as fast where
        the processor has it (AVX512-BF16, AMX), the others on a CUDA device. None is the model's.
    contraction : {"ghost", "forward"}
        "forward" for a model of any modules, without captures: each score is the derivative of the sample's loss, from
        the function `losses` of `samples`. Not with "random_order", "two_term", `rank` and `score_dtype`.
    with_sgd : bool
        Whether SGD's scores are computed too, which costs a validation pass at θ and a contraction; else they are NaN.
    check_every : int
        Number of steps from one full self-check to the next; the first two steps are always checked. Every step
        compares the gradients of the vectors (biases, gains), and the sum of SGD's scores with that of the gradients.
    recompute : bool
        Keep no captures: ``samples(index, again=…)`` takes a function that runs the passes again, for the scores.
    micro_batch : int, optional
        With `recompute`, number of samples that go through the model again at a time; `again` then takes a slice of the
        block's rows. The loop's own passes have as many samples as the loop gives them.
    samples_axis : mapping of str to int, optional
        Axis of the samples, 0 or 1, in inputs and outputs of some modules and of the modules inside them, by their
        names in the model ("" is the model). By default it is 0, and 1 in PyTorch's attention and recurrent layers
        and transformers with ``batch_first=False``.
    verify_ghost : bool
        Whether the full self-check also compares each sample's score by captures with that of "forward". It needs
        `losses`, and takes the validation passes of the step again and what such a check of "forward" takes.
    keep_step_scores : bool
        Keep each step's scores, as ``Run.step_scores``, ``step_sgd_scores`` and ``step_index``, for
        `adamshap.reference.weighted`; memory for all scores of all steps.
    validation_every : int
        Number of steps k for which a validation gradient is kept, as by `adamshap.gpu.attribute`: `validation` is
        called in steps 1, 1 + k, 1 + 2k, …, and where a parameter takes part that the last such step did not have. Not
        with "path" or `efficient`.
    process_group : torch.distributed.ProcessGroup, optional
        Processes whose gradients are averaged or added, where `model` is not the DistributedDataParallel that does it.

    Raises
    ------
    ValueError, TypeError
        A bad argument; a trainable parameter, module or setting that is not supported, by its name.

    Examples
    --------
    >>> attribution = Attribution(
    ...     model, optimizer, validation=lambda: loss_of(model(valid_x), valid_y), n_samples=len(data)
    ... )  # doctest: +SKIP
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        validation: Callable[[], torch.Tensor],
        n_samples: int,
        slope: ScoreSlope = "random_order",
        gradient: Gradient = "midpoint",
        efficient: bool = False,
        per_validation: bool = False,
        nodes: tuple[int, int] | None = None,
        denominator: Denominator = "exact",
        kind: MarginalKind = "shapley",
        rank: int | None = None,
        variance: Variance = "exact",
        score_dtype: ScoreDtype | None = None,
        contraction: Contraction = "ghost",
        with_sgd: bool = True,
        check_every: int = 50,
        recompute: bool = False,
        micro_batch: int | None = None,
        samples_axis: Mapping[str, int] | None = None,
        verify_ghost: bool = False,
        keep_step_scores: bool = False,
        validation_every: int = 1,
        process_group: Any = None,
    ) -> None:
        of_kind("model", model, torch.nn.Module)
        self._processes, model = Processes.of(model, process_group), unwrapped(model)
        check_optimizer(optimizer)
        check_validation(validation)
        estimator = Estimator(
            slope,
            gradient,
            efficient,
            per_validation,
            nodes,
            denominator,
            kind,
            variance,
            rank,
            score_dtype,
            contraction,
        )
        self._settings = settings = Settings.of(
            estimator,
            n_samples=n_samples,
            with_sgd=with_sgd,
            check_every=check_every,
            recompute=recompute,
            micro_batch=micro_batch,
            verify_ghost=verify_ghost,
            keep_step_scores=keep_step_scores,
            validation_every=validation_every,
        )
        self._processes.refuse_parts(estimator, settings.verify_ghost, settings.recompute)
        self._totals = Totals.of(
            settings.n_samples, with_sgd=settings.with_sgd, keep_step_scores=settings.keep_step_scores
        )
        self._named = trainable(model, optimizer)
        adam_of(optimizer, self._named)  # refuses settings that are not Adam's
        self._model, self._optimizer = model, optimizer
        backend = backend_of(self._named)
        refuse_score_dtype(estimator, backend, in_a_loop=True)
        self._device = next(iter(self._named.values())).device
        n_val = 0 if estimator.per_validation else None
        self._stack = ValidationStack(model, validation, self._named, n_val=n_val, processes=self._processes)
        context = context_of(backend, self._stack)
        kept = None
        if settings.validation_every > 1:
            kept = KeptGradients(settings.validation_every, 1, settings.with_sgd)
        self._scorer = Scorer(context, estimator, settings.with_sgd, self._processes, kept)
        self._derivatives = Derivatives(model)
        names = {id(p): name for name, p in self._named.items()}
        self._source = source_of(settings, context, names, samples_axis, self._derivatives, self._processes)
        self._hooks = self._source.hooks
        self._step_hooks = hook_steps(optimizer, self._before_step, self._after_step)
        weakref.finalize(self, _remove, self._hooks, self._step_hooks).atexit = False
        self._pending = Pending(model, self._named, self._source)
        self._awaited: Awaited | None = None
        self._skipped = False
        self._broken: str | None = None

    # --- the loop ----------------------------------------------------------------------------------------------------

    @contextmanager
    def samples(
        self,
        index: Any,
        losses: Callable[[], torch.Tensor] | None = None,
        *,
        again: Callable[..., Any] | None = None,
    ) -> Iterator[None]:
        """Capture the forward and backward passes inside: those of some samples, one row each, in this order.

        Several before one ``optimizer.step()`` are accumulation: the step's batch is all of them.

        Parameters
        ----------
        index : integers (n,)
            Numbers of the samples, from 0 to N − 1: a tensor, an array or a list. Empty, in one of several processes,
            around the passes of no samples (or of one whose loss is multiplied by 0).
        losses : callable, optional
            Function without arguments that returns the losses (n,) of these samples, of whose sum the block's backward
            pass takes the gradient up to a factor of the whole step. It is called at ``optimizer.step()``, several
            times, with the random numbers from the block's beginning on. With contraction "forward" and `verify_ghost`
            it has to be given.
        again : callable, optional
            With ``recompute=True``, function without arguments that runs the forward and backward pass inside again. It
            is called in ``optimizer.step()``, with the same random numbers; p.grad stays as it is. With `micro_batch`,
            function of a slice: it runs these rows of the block, with the weights in the loss that they have in it.

        Yields
        ------
        None
            For a ``with`` statement around forward and backward pass.

        Raises
        ------
        ValueError, TypeError
            A bad index, or a mistake of the loop.
        """
        self._refuse_broken()
        self._hooks.refuse_detached()
        refuse_graph_capture(self._device)
        check_again(again, self._settings.recompute, self._settings.micro_batch)
        if self._hooks.block is not None:
            refuse("attribution.samples", "a call inside another", "one after the other, for accumulation")
        checked = checked_index(index, len(self._totals.seen), may_be_empty=self._processes.several)
        self._processes.refuse_uneven_inputs()
        check_losses(losses, needed=self._settings.needs_losses)
        with self._broken_by(ValueError, reason="gradients were edited after optimizer.step()"):
            self._pending.refuse_late_edits(self._totals.steps)
        block = self._pending.begin(checked, losses, checked=self._is_checked)
        try:
            with self._processes.connected(), self._source.open(block, again, checked=self._is_checked):
                yield
            block.modes, block.left = modes_of(self._model), versions_of_gradients(self._named)
        except BaseException:
            if not self._pending.drop(block):
                self._broken = "a pass failed between others of a step, with recompute=True"
            raise

    def result(self, *, gather: bool = True) -> Run:
        """Return the run so far. Of several processes, all of them call it, and each gets the whole run.

        Parameters
        ----------
        gather : bool
            False: ``scores``, ``sgd_scores`` and ``seen`` of this process's part alone, whose sums over the processes
            are the run's. The others need not call it.

        Returns
        -------
        Run
            Scores, SGD's scores (NaN without `with_sgd`) and ``seen`` of all N samples; ``history`` has ``factor``, f
            of each step, and with `with_sgd` or gradient "start" ``valid_loss``, NaN in a step with a kept validation
            gradient; with contraction "forward"
            ``forward_passes`` of the batch in each step, and ``forward_error``, the estimated error of the scores by
            differences over the largest, 0 where there are none; parameters and state of the optimiser by the model's
            names.

        Raises
        ------
        ValueError
            After a mistake of the loop that was refused: the scores are not complete.
        """
        self._refuse_broken()
        self._pending.refuse_other_step()
        backend = self._scorer.context.backend
        memory_of(self._device).wait(self._device)  # for steps on other streams than the present one
        with at_work(self._device):
            self._settle()
            theta, state = on_host(backend, self._optimizer, self._named)
        totals = self._gathered() if gather else self._totals
        return Run(
            initial_params=dict(totals.initial) or {name: array.copy() for name, array in theta.items()},
            params=theta,
            state=state,
            scores=totals.scores.copy(),
            sgd_scores=totals.sgd_scores.copy(),
            seen=totals.seen.copy(),
            history=totals.complete_history(),
            **({} if totals.record is None else totals.record.arrays()),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the attribution's state between two steps, for ``torch.save`` beside the model's and the optimiser's.

        Of several processes, all of them call it and get the same state, that of the whole run: one saves it, and as
        many processes or fewer or more may load it.

        Returns
        -------
        dict
            Of tensors, numbers and text.

        Raises
        ------
        ValueError
            Between ``samples`` and ``optimizer.step()``, or after a mistake that was refused.
        """
        self._refuse_broken()
        if self._pending.blocks:
            refuse("attribution.state_dict", "a step that has begun", "a call after optimizer.step()")
        memory_of(self._device).wait(self._device)
        with at_work(self._device):
            self._settle()
            own = {"sketches": self._scorer.saved_sketches()} | self._scorer.saved_gradients()
        return {"settings": self._settings.text, "totals": self._gathered().state()} | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state: with the model's and the optimiser's of the same time, as if uninterrupted.

        Of several processes, each loads it.

        Parameters
        ----------
        state : mapping
            From ``state_dict()`` of an attribution with the same estimator and as many samples.

        Raises
        ------
        ValueError, TypeError
            A state of another attribution.
        """
        check_settings(state, self._settings.text)
        self._pending.forget()
        self._totals.load(state["totals"])
        if self._processes.rank > 0:  # the first one continues the sums
            self._totals.clear()
        with at_work(self._device):
            self._scorer.load_sketches(state["sketches"])
            self._scorer.load_gradients(state)

    def _gathered(self) -> Totals:
        """Return the totals of all processes."""
        with self._processes.together(), at_work(self._device):
            self._settle()
            widths, _ = self._processes.agree((self._totals.width,))
        processes = self._processes
        return self._totals.summed(processes.rank, processes.count, int(widths[:, 0].max()), processes.sum_on_host)

    @property
    def differences(self) -> str | None:
        """PyTorch's reason why forward mode takes differences of losses; None while it has forward derivatives."""
        return self._derivatives.differences

    def detach(self) -> None:
        """Remove all hooks from the model and the optimiser; the scores stay."""
        _remove(self._hooks, self._step_hooks)
        self._pending.forget()

    # --- before and after optimizer.step() ---------------------------------------------------------------------------

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Score the samples of the step that is about to be taken."""
        self._refuse_broken()
        with self._broken_by(BaseException):
            block, self._hooks.block = self._hooks.block, None  # the validation passes are not captured
            try:
                with self._processes.together(), at_work(self._device):
                    self._settle()
                    self._skipped = is_skipped(optimizer)
                    if self._skipped:
                        self._pending.forget()
                    else:
                        refuse_closure(args, kwargs)
                        self._score(optimizer)
            finally:
                self._hooks.block = block

    def _score(self, optimizer: Any) -> None:
        step, modules = self._totals.steps + 1, self._hooks.modules
        refuse_unknown_gradients(optimizer, self._named.values())
        self._pending.refuse_mistakes(step)
        whole = self._whole_batch(step)
        gradients = gradients_of(self._named, whole.products, modules, step, scale_of(optimizer))
        named = {name: self._named[name] for name in gradients}
        passes = StepPasses(tuple(self._pending.blocks), named, gradients, step, self._is_checked)
        given = self._given(passes, whole)
        if not self._totals.initial:
            self._totals.initial = {name: p.detach().cpu().numpy().copy() for name, p in self._named.items()}
        backend = self._scorer.context.backend
        with self._scorer.context.at_work():
            result, new = self._scorer.score(given)
            if self._settings.verify_ghost and passes.checked:
                refuse_low_dtypes(joined(block.roundoffs for block in passes.blocks))
                self._scorer.verify(given, step_of(backend, self._derivatives, passes, modules))
        memory = memory_of(self._device)
        if any(block.streams - {memory.stream(self._device)} for block in passes.blocks):
            memory.wait(self._device)  # PyTorch may use the captures' memory again, on the streams that it is of
        self._pending.forget()
        history = given.x.history
        if result.valid_loss is None and self._scorer.knows_losses:
            history = history | {"valid_loss": math.nan}
        self._totals.add(given.index, result, history, backend.host if backend.on_cuda else None)
        if new is not None:
            self._awaited = Awaited({name: given.state.theta[name].copy() for name in gradients}, new.theta)
        self._processes.agree()

    def _whole_batch(self, step: int) -> WholeBatch:
        """Return the uses of the parameters by the samples of the step, in all processes."""
        gradients = [name for name, p in self._named.items() if p.grad is not None]
        shapes = {name: tuple(p.shape) for name, p in self._named.items()}
        settings = f"{self._settings.text}, {len(self._totals.seen)} samples, {self._settings.check_every}, {shapes}"
        products = products_of(self._pending.blocks)
        return self._processes.whole_batch(self._pending.n, products, gradients, step, settings)

    def _given(self, passes: StepPasses, whole: WholeBatch) -> Given:
        """Return what the engine scores, after the check of the gradients."""
        self._settings.estimator.refuse_large_batches(whole.n, len(self._totals.seen))
        x, backend = self._source.of(passes), self._scorer.context.backend
        hyperparameters, t = hyperparameters_of(backend, self._optimizer, passes.named)
        state = state_of(backend, self._optimizer, passes.named, t)
        if self._stack.n_val == 0:
            self._stack = replace(self._stack, n_val=self._totals.counted(self._stack.count()))
        products = {name: whole.products.get(name, 0) for name in passes.gradients}
        stack = replace(self._stack, named=passes.named, products=products)
        index = np.concatenate([block.index for block in passes.blocks])
        completed = CompletedSteps(self._totals.steps)
        return Given(index, whole.n, x, passes.gradients, state, hyperparameters, stack, completed, passes.checked)

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Compare θ⁺ with the engine's."""
        if self._skipped:
            return
        self._totals.steps += 1
        self._pending.end()
        awaited, self._awaited = self._awaited, None
        if awaited is None:
            return
        backend, eps = self._scorer.context.backend, precision_of(self._optimizer)
        with self._broken_by(ValueError, OtherProcessError), self._processes.together(), at_work(self._device):
            got = {name: array_of(self._named[name]) for name in awaited.before}
            check_parameters(backend, awaited.before, awaited.after, got, eps, self._totals.steps)
            self._processes.agree()

    def _settle(self) -> None:
        """Add the results of earlier steps that are still on a device."""
        with self._broken_by(FloatingPointError):
            self._totals.settle()

    # --- loops that were refused -------------------------------------------------------------------------------------

    @property
    def _is_checked(self) -> bool:
        """Whether the coming step is checked in full."""
        return self._settings.checks_after(self._totals.steps)

    def _refuse_broken(self) -> None:
        if self._broken is not None:
            refuse("attribution", f"a loop that was refused before ({self._broken})", "a new Attribution")

    @contextmanager
    def _broken_by(self, *errors: type[BaseException], reason: str | None = None) -> Iterator[None]:
        """Refuse every further use after one of these errors: the scores would not be complete."""
        try:
            yield
        except errors as error:
            self._broken = reason or str(error) or type(error).__name__
            raise


def _remove(hooks: Hooks, of_steps: Iterable[Any]) -> None:
    """Remove all hooks."""
    hooks.remove()
    for handle in of_steps:
        handle.remove()
