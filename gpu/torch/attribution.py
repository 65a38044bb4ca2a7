"""Attribution of a PyTorch training loop, beside the loop: `Attribution`."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from adamshap.reference.contract import (
    AdamState,
    Array,
    CompletedSteps,
    Contraction,
    Denominator,
    Estimator,
    Gradient,
    MarginalKind,
    Run,
    ScoreSlope,
    Variance,
    of_kind,
    positive_integer,
    refuse,
    shown,
    true_or_false,
)
from adamshap.torch.check import Passes, cheapest, check_finite, check_parameters, factor_of
from adamshap.torch.closures import check_losses
from adamshap.torch.derivatives import Derivatives
from adamshap.torch.forward import ForwardStep, GradientHooks, refuse_slope, step_of
from adamshap.torch.hooks import Block, Hooks
from adamshap.torch.memory import array_of, at_work, backend_of, memory_of, refuse_graph_capture
from adamshap.torch.mistakes import (
    checked_index,
    gradients_are_gone,
    gradients_of,
    modes_of,
    refuse_changes,
    refuse_other_step,
    refuse_passes,
    versions_of,
    versions_of_gradients,
)
from adamshap.torch.optimizer import (
    adam_of,
    check_optimizer,
    hyperparameters_of,
    is_skipped,
    precision_of,
    scale_of,
    state_of,
    trainable,
    unknown_gradients,
)
from adamshap.torch.processes import OtherProcessError, Processes, WholeBatch, unwrapped
from adamshap.torch.random_state import random_state
from adamshap.torch.recompute import Recomputation, check_again
from adamshap.torch.roundoff import joined
from adamshap.torch.scoring import Given, Scorer, chunks_of, context_of
from adamshap.torch.totals import Totals, check_settings
from adamshap.torch.validation import ValidationStack
from adamshap.torch.verification import refuse_low_dtypes, refuse_unverifiable

__all__ = ["Attribution"]

FIRST_CHECKS = 2
"""Steps at the beginning that are checked in full: a forgotten zero_grad() shows at the second."""


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
    slope : {"sgd", "frozen", "linearized", "tangent", "secant", "random_order", "two_term"}
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
        Rank of the sketch of P, its basis kept from step to step; None is exact.
    variance : {"exact", "rank_one"}
        σ² of "random_order" and "two_term".
    contraction : {"ghost", "forward"}
        "forward" for a model of any modules, without captures: each score is the derivative of the sample's loss, from
        the function `losses` of `samples`. Not with "random_order", "two_term" and `rank`.
    with_sgd : bool
        Whether SGD's scores are computed too, which costs a validation pass at θ and a contraction; else they are NaN.
    check_every : int
        Number of steps from one full self-check to the next; the first two steps are always checked. Every step
        compares the gradients of the vectors (biases, gains).
    recompute : bool
        Keep no captures: ``samples(index, again=…)`` takes a function that runs the passes again, for the scores.
    micro_batch : int, optional
        Not supported: backward passes are the loop's own, as many in a step as you like.
    samples_axis : mapping of str to int, optional
        Axis of the samples, 0 or 1, in inputs and outputs of some modules and of the modules inside them, by their
        names in the model ("" is the model). By default it is 0, and 1 in PyTorch's attention and recurrent layers
        and transformers with ``batch_first=False``.
    verify_ghost : bool
        Whether the full self-check also compares each sample's score by captures with that of "forward". It needs
        `losses`, and takes the validation passes of the step again and what such a check of "forward" takes.
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
        contraction: Contraction = "ghost",
        with_sgd: bool = True,
        check_every: int = 50,
        recompute: bool = False,
        micro_batch: int | None = None,
        samples_axis: Mapping[str, int] | None = None,
        verify_ghost: bool = False,
        process_group: Any = None,
    ) -> None:
        of_kind("model", model, torch.nn.Module)
        self._processes, model = Processes.of(model, process_group), unwrapped(model)
        check_optimizer(optimizer)
        if not callable(validation):
            needs = "a function that returns the mean validation loss, called in each step"
            refuse("validation", shown(validation), needs, TypeError)
        estimator = Estimator(
            slope, gradient, efficient, per_validation, nodes, denominator, kind, variance, rank, None, contraction
        )
        if micro_batch is not None:
            needs = "None: accumulate in the loop, `samples` around each backward pass, with recompute=True"
            refuse("micro_batch", shown(micro_batch), needs)
        refuse_slope(estimator)
        self._captured, self._verified = estimator.contraction == "ghost", true_or_false("verify_ghost", verify_ghost)
        if self._verified:
            refuse_unverifiable(estimator)
        if true_or_false("recompute", recompute) and (self._verified or not self._captured):
            which = "verify_ghost" if self._verified else "contraction 'forward'"
            refuse("recompute", f"True with {which}", "False: no captures are compared, or there are none")
        self._processes.refuse_parts(estimator, self._verified, recompute)
        self._totals = Totals.of(positive_integer("n_samples", n_samples), true_or_false("with_sgd", with_sgd))
        self._check_every = positive_integer("check_every", check_every)
        self._named = trainable(model, optimizer)
        adam_of(optimizer, self._named)  # refuses settings that are not Adam's
        self._model, self._optimizer = model, optimizer
        backend = backend_of(self._named)
        self._device = next(iter(self._named.values())).device
        n_val = 0 if estimator.per_validation else None
        self._stack = ValidationStack(model, validation, self._named, n_val=n_val, processes=self._processes)
        context = context_of(backend, self._stack)
        self._scorer = Scorer(context, estimator, bool(with_sgd), self._processes)
        self._cheapest = cheapest(context.shapes)
        self._derivatives = Derivatives(model)
        names = {id(p): name for name, p in self._named.items()}
        self._hooks = Hooks(model, names, samples_axis) if self._captured else GradientHooks(model, names)
        self._steps_of_optimizer = (
            optimizer.register_step_pre_hook(_weakly(self, "_before_step")),
            optimizer.register_step_post_hook(_weakly(self, "_after_step")),
        )
        weakref.finalize(self, _remove, self._hooks, self._steps_of_optimizer).atexit = False
        self._recomputed = (
            Recomputation(model, self._hooks, context, self._cheapest, estimator)
            if true_or_false("recompute", recompute)
            else None
        )
        self._blocks: list[Block] = []
        self._begun: dict[str, torch.Tensor] = {}
        self._awaited: tuple[Given, Any] | None = None
        self._left: tuple[torch.Tensor, int] | None = None
        self._skipped = False
        self._broken: str | None = None

    # --- the loop ----------------------------------------------------------------------------------------------------

    @contextmanager
    def samples(
        self,
        index: Any,
        losses: Callable[[], torch.Tensor] | None = None,
        *,
        again: Callable[[], Any] | None = None,
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
            is called in ``optimizer.step()``, with the same random numbers; p.grad stays as it is.

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
        check_again(again, self._recomputed is not None)
        if self._hooks.block is not None:
            refuse("attribution.samples", "a call inside another", "one after the other, for accumulation")
        checked = checked_index(index, len(self._totals.seen), may_be_empty=self._processes.several)
        self._processes.refuse_uneven_inputs()
        check_losses(losses, needed=self._verified or not self._captured)
        self._refuse_late_edits()
        left = self._blocks[-1].left if self._blocks else None
        no_gradients = self._doubtful and gradients_are_gone(self._named, left)
        refuse_other_step(self._blocks, self._named)
        if no_gradients:  # their gradients are gone: those samples have no step
            self._forget()
        if not self._blocks and self._is_checked:
            self._begun = {name: p.detach().clone() for name, p in self._named.items()}
        for earlier in self._blocks:
            if len(twice := np.intersect1d(checked, earlier.index)):
                refuse("index", f"sample {twice[0]} again before the step", "each sample once in a step")
        random = None if losses is None else random_state()
        versions = versions_of(self._named)
        block = Block(checked, versions, probed=self._is_checked, losses=losses, random=random)
        self._blocks.append(block)
        try:
            with self._processes.connected(), self._reduced(block, again), self._capturing(block):
                yield
            block.modes, block.left = modes_of(self._model), versions_of_gradients(self._named)
        except BaseException:
            if block in self._blocks:
                self._blocks.remove(block)
                self._hooks.stray = next(iter(block.reached), self._hooks.stray)  # its gradients are there
                self._forget_failed()
            raise

    def _reduced(self, block: Block, again: Callable[[], Any] | None) -> AbstractContextManager[None]:
        if self._recomputed is None or again is None:
            return nullcontext()
        return self._recomputed.reducing(block, again, checked=self._is_checked)

    def _forget(self) -> None:
        """Forget the samples so far: they have no step."""
        self._blocks.clear()
        self._hooks.stray = None
        if self._recomputed is not None:
            self._recomputed.clear()

    def _forget_failed(self) -> None:
        """Forget a block that failed; what was reduced of it cannot be taken away from other blocks."""
        if self._recomputed is None:
            return
        if self._blocks:
            self._broken = "a pass failed between others of a step, with recompute=True"
        else:
            self._recomputed.clear()

    @contextmanager
    def _capturing(self, block: Block) -> Iterator[None]:
        """Capture into a block; passes of no samples are let through."""
        if block.n:
            with self._hooks.open(block):
                yield
            return
        stray = self._hooks.stray
        yield
        self._hooks.stray = stray

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
            of each step, and with `with_sgd` or gradient "start" ``valid_loss``; with contraction "forward"
            ``forward_passes`` of the batch in each step, and ``forward_error``, the estimated error of the scores by
            differences over the largest, 0 where there are none; parameters and state of the optimiser by the model's
            names.

        Raises
        ------
        ValueError
            After a mistake of the loop that was refused: the scores are not complete.
        """
        self._refuse_broken()
        refuse_other_step(self._blocks, self._named)
        backend = self._scorer.context.backend
        memory_of(self._device).wait(self._device)  # for steps on other streams than the present one
        with at_work(self._device):
            self._settle()
            _, t = hyperparameters_of(backend, self._optimizer, self._named)
            state = state_of(backend, self._optimizer, self._named, t)
            theta, m, v = (
                {name: np.array(backend.host(array)) for name, array in one.items()}
                for one in (state.theta, state.m, state.v)
            )
        totals = self._gathered() if gather else self._totals
        return Run(
            initial_params=dict(totals.initial) or {name: array.copy() for name, array in theta.items()},
            params=theta,
            state=AdamState.unchecked(CompletedSteps(t - 1), m, v),
            scores=totals.scores.copy(),
            sgd_scores=totals.sgd_scores.copy(),
            seen=totals.seen.copy(),
            history=totals.complete_history(),
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
        if self._blocks:
            refuse("attribution.state_dict", "a step that has begun", "a call after optimizer.step()")
        memory_of(self._device).wait(self._device)
        with at_work(self._device):
            self._settle()
            host = self._scorer.context.backend.host
            sketches = [
                (list(names), [(*key, torch.from_numpy(np.array(host(basis)))) for key, basis in sketch.bases.items()])
                for names, sketch in self._scorer.sketches.items()
            ]
        return {"settings": self._settings, "totals": self._gathered().state(), "sketches": sketches}

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
        check_settings(state, self._settings)
        self._forget()
        self._totals.load(state["totals"])
        if self._processes.rank > 0:  # the first one continues the sums
            self._totals.clear()
        with at_work(self._device):
            self._scorer.load_sketches(state["sketches"])

    def _gathered(self) -> Totals:
        """Return the totals of all processes."""
        with self._processes.together(), at_work(self._device):
            self._settle()
            self._processes.agree()
        totals, sum_of = self._totals, self._processes.sum_on_host
        scores, sgd_scores = sum_of(totals.scores), sum_of(totals.sgd_scores)
        return replace(totals, scores=scores, sgd_scores=sgd_scores, seen=sum_of(totals.seen))

    @property
    def _settings(self) -> str:
        return f"{self._scorer.estimator}, with_sgd={self._scorer.with_sgd}"

    @property
    def differences(self) -> str | None:
        """PyTorch's reason why forward mode takes differences of losses; None while it has forward derivatives."""
        return self._derivatives.differences

    def detach(self) -> None:
        """Remove all hooks from the model and the optimiser; the scores stay."""
        _remove(self._hooks, self._steps_of_optimizer)
        self._forget()

    # --- before and after optimizer.step() ---------------------------------------------------------------------------

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Score the samples of the step that is about to be taken."""
        self._refuse_broken()
        try:
            block, self._hooks.block = self._hooks.block, None  # the validation passes are not captured
            try:
                with self._processes.together(), at_work(self._device):
                    self._settle()
                    self._skipped = is_skipped(optimizer)
                    if self._skipped:
                        self._forget()
                    else:
                        self._score(optimizer, args, kwargs)
            finally:
                self._hooks.block = block
        except BaseException as error:
            self._broken = str(error) or type(error).__name__
            raise

    def _score(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if any(one is not None for one in (*args[1:], *kwargs.values())):  # args[0] is the optimiser
            refuse("optimizer.step", "a closure", "no argument: forward and backward pass before the step")
        step = self._totals.steps + 1
        refuse_passes(self._blocks, self._hooks.stray, step, captured=self._captured)
        if count := unknown_gradients(optimizer, self._named.values()):
            got = f"{count} parameters with a gradient that were frozen, or not its own, when the attribution began"
            refuse("optimizer", got, "a new Attribution after a change of requires_grad or of the parameters")
        refuse_changes(self._blocks, self._model, self._named, self._begun)
        whole, scale = self._whole_batch(step), scale_of(optimizer)
        given = self._given(gradients_of(self._named, whole.products, self._hooks.modules, step, scale), whole)
        if not self._totals.initial:
            self._totals.initial = {name: p.detach().cpu().numpy().copy() for name, p in self._named.items()}
        if self._recomputed is not None:
            given = replace(given, chunks=self._recomputed.chunks(given.chunks), norms=self._recomputed.norms)
        with self._scorer.context.at_work():
            result, new = self._scorer.score(given)
            if self._verified and self._is_checked:
                refuse_low_dtypes(joined(block.roundoffs for block in self._blocks))
                self._scorer.verify(given, self._forward_step(given.gradients))
        memory, backend = memory_of(self._device), self._scorer.context.backend
        if any(block.streams - {memory.stream(self._device)} for block in self._blocks):
            memory.wait(self._device)  # PyTorch may use the captures' memory again, on the streams that it is of
        self._forget()
        history = {"factor": given.factor} if given.forward is None else given.forward.history
        self._totals.add(given.index, result, history, backend.host if backend.on_cuda else None)
        if new is not None:
            before = {name: given.state.theta[name].copy() for name in given.gradients}
            self._awaited = (given, (before, new.theta))
        self._processes.agree()

    def _whole_batch(self, step: int) -> WholeBatch:
        """Return the uses of the parameters by the samples of the step, in all processes."""
        products: dict[str, int] = {}
        for block in self._blocks:
            captures = block.captures
            for name in captures.by_name if block.uses else block.reached:
                products[name] = max(products.get(name, 0), captures.products.get(name, 0))
        gradients = [name for name, p in self._named.items() if p.grad is not None]
        shapes = {name: tuple(p.shape) for name, p in self._named.items()}
        settings = f"{self._settings}, {len(self._totals.seen)} samples, {self._check_every}, {shapes}"
        return self._processes.whole_batch(sum(b.n for b in self._blocks), products, gradients, step, settings)

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Compare θ⁺ with the engine's."""
        if self._skipped:
            return
        self._totals.steps += 1
        self._begun = {}
        smallest = min(self._named.values(), key=lambda p: p.numel() if p.grad is not None else float("inf"))
        self._left = None if smallest.grad is None else (smallest.grad, smallest.grad._version)
        if self._awaited is None:
            return
        (given, (before, expected)), self._awaited = self._awaited, None
        backend = self._scorer.context.backend
        try:
            with self._processes.together(), at_work(self._device):
                got = {name: array_of(self._named[name]) for name in given.gradients}
                check_parameters(backend, before, expected, got, precision_of(self._optimizer), self._totals.steps)
                self._processes.agree()
        except (ValueError, OtherProcessError) as error:
            self._broken = str(error)
            raise

    def _given(self, gradients: dict[str, Array], whole: WholeBatch) -> Given:
        """Return what the loop did, after the check of the gradients."""
        forward, step = None, self._totals.steps + 1
        backend = self._scorer.context.backend
        if self._captured:
            chunks = chunks_of(backend, self._blocks, gradients)
            names = [name for name in self._cheapest if name in gradients]
            captures = [one for _, one in chunks]
            check_finite(backend, {name: gradients[name] for name in names} or gradients, step)
            every = list(gradients) if self._is_checked or not names else names
            roundoffs = self._processes.largest_roundoffs(joined(block.roundoffs for block in self._blocks))
            modules, processes = self._hooks.modules, self._processes
            factor = factor_of(Passes(backend, gradients, captures, roundoffs, modules, step, processes), every)
        else:
            check_finite(backend, gradients, step)
            forward, factor = self._forward_step(gradients), 1.0  # its scores have f already
            chunks = [forward.chunk]
        named = {name: self._named[name] for name in gradients}
        hyperparameters, t = hyperparameters_of(backend, self._optimizer, named)
        state = state_of(backend, self._optimizer, named, t)
        if self._stack.n_val == 0:
            self._stack = replace(self._stack, n_val=self._totals.counted(self._stack.count()))
        products = {name: whole.products.get(name, 0) for name in gradients}
        stack = replace(self._stack, named=named, products=products)
        index = np.concatenate([block.index for block in self._blocks])
        return Given(
            index, whole.n, chunks, gradients, factor, state, hyperparameters, stack, forward, self._is_checked
        )

    def _forward_step(self, gradients: Mapping[str, Array]) -> ForwardStep:
        """Return the step's samples for forward mode, after the check of the gradients if it is due."""
        named, step = {name: self._named[name] for name in gradients}, self._totals.steps + 1
        modules, checked = self._hooks.modules, self._is_checked
        backend = self._scorer.context.backend
        return step_of(backend, self._derivatives, self._blocks, named, gradients, modules, step, checked=checked)

    def _settle(self) -> None:
        """Add the results of earlier steps that are still on a device."""
        try:
            self._totals.settle()
        except FloatingPointError as error:
            self._broken = str(error)
            raise

    # --- mistakes of the loop ----------------------------------------------------------------------------------------

    @property
    def _is_checked(self) -> bool:
        """Whether the coming step is checked in full."""
        return self._totals.steps < FIRST_CHECKS or self._totals.steps % self._check_every == 0

    @property
    def _doubtful(self) -> bool:
        """Whether gradients may have been made and taken away since the last step."""
        return bool(self._blocks) or self._hooks.stray is not None

    def _refuse_late_edits(self) -> None:
        """Refuse a gradient that was edited after the step that used it, as by clipping in the wrong place."""
        if self._left is None or self._blocks:
            return
        (gradient, version), self._left = self._left, None
        if gradient._version != version and gradient.any():
            self._broken = "gradients were edited after optimizer.step()"
            needs = "clipping and other edits between backward() and step(): after the step they have no effect"
            refuse("optimizer.step", f"gradients that were edited after step {self._totals.steps}", needs)

    def _refuse_broken(self) -> None:
        if self._broken is not None:
            refuse("attribution", f"a loop that was refused before ({self._broken})", "a new Attribution")


def _remove(hooks: Hooks, of_optimizers: Iterable[Any]) -> None:
    """Remove all hooks."""
    hooks.remove()
    for handle in of_optimizers:
        handle.remove()


def _weakly(attribution: Attribution, method: str) -> Callable[..., None]:
    """Return a hook that does not keep the attribution alive."""
    held = weakref.ref(attribution)

    @torch.compiler.disable  # optimizer.step may be compiled
    def hook(optimizer: Any, args: Any, kwargs: Any) -> None:
        living = held()
        if living is not None:
            getattr(living, method)(optimizer, args, kwargs)

    return hook
