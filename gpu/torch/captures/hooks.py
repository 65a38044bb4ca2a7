"""Hooks on a model's modules: what a call of a module sees, and the gradient that comes back, as captures.

A hook only hands arrays over: the input and the gradient of the output stay PyTorch's own memory.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar, NoReturn

import torch
from torch import nn

from adamshap.reference.contract import refuse
from adamshap.torch.backward import is_accumulated, is_hidden
from adamshap.torch.captures.axes import axes_of
from adamshap.torch.captures.block import Block
from adamshap.torch.captures.copies import OfThisModule
from adamshap.torch.captures.forwards import replaced_forwards
from adamshap.torch.captures.roundoff import roundoff_of
from adamshap.torch.captures.rows import attach_rows, first_tensor
from adamshap.torch.layers.registry import LAYERS, Function, Layer, Use, layer_of, refuse_module
from adamshap.torch.layers.rewrites import REWRITES
from adamshap.torch.memory import HALVES, at_work, memory_of

__all__ = ["BATCH_NORMS", "Hooks"]

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


class Hooks:
    """The hooks on a model: they capture while a block is open, and do nothing otherwise.

    Parameters
    ----------
    model : torch.nn.Module
    names : dict
        The model's name of each trainable parameter, by the parameter's identity.
    samples_axis : mapping of str to int, optional
        Axis of the samples of some modules, by their names.
    """

    probing: ClassVar[bool] = False  # of one model's hooks, during which no other's capture either
    repeats: ClassVar[bool] = False  # a pass that was captured before: for other attributions it is none

    def __init__(
        self, model: nn.Module, names: Mapping[int, str], samples_axis: Mapping[str, int] | None = None
    ) -> None:
        self.block: Block | None = None
        self.stray: str | None = None
        self.modules: dict[str, list[str]] = {}
        self._handles: list[Any] = []
        self._held = {id(p) for m in model.modules() if layer_of(type(m)) for p in m._parameters.values()}
        self._listeners: list[tuple[nn.Module, _Listener]] = []
        self._axes = axes_of(model, samples_axis)
        inside: set[int] = set()  # rewritten modules
        try:
            for path, module in model.named_modules():
                if id(module) in inside:
                    continue
                rewrite = type(module) in REWRITES
                parameters = dict(module.named_parameters()) if rewrite else module._parameters
                mine = {local: names.get(id(p)) for local, p in parameters.items()}
                own = {local: name for local, name in mine.items() if name is not None}
                if rewrite and own:
                    inside.update(map(id, module.modules()))
                    self._listen(module, path, own)
                elif own or isinstance(module, BATCH_NORMS):
                    self._attach(module, path, own)
        except BaseException:
            self.remove()
            raise
        self._handles.append(model.register_forward_hook(OfThisModule(self._probe)))
        named = {id(p): p for p in model.parameters()}
        for key, name in names.items():
            self._handles.append(named[key].register_post_accumulate_grad_hook(partial(self._accumulated, name)))

    def _listen(self, module: nn.Module, path: str, own: dict[str, str]) -> None:
        """Await the uses that a rewritten forward pass records."""
        self._name(module, path, own)
        check = REWRITES[type(module)].check
        if check is not None:
            check(module, path)
        self._listeners.append((module, _Listener(self, module, path, own)))

    def _name(self, module: nn.Module, path: str, own: dict[str, str]) -> None:
        for name in own.values():
            self.modules.setdefault(name, []).append(f"{path or 'the model itself'} ({type(module).__name__})")

    def _attach(self, module: nn.Module, path: str, own: dict[str, str]) -> None:
        self._name(module, path, own)
        layer, axis = layer_of(type(module)), self._axes[path]
        if layer is None and own:  # what a known layer has too is captured there, such as the bias of a tied output
            own = {local: name for local, name in own.items() if id(getattr(module, local)) not in self._held}
            if not own:
                return
        if layer is None and own and axis == 0 and all(_is_one_row(getattr(module, local)) for local in own):
            self._handles += attach_rows(self, module, path, own)
            return
        unknown = [name for local, name in own.items() if layer is None or local not in layer.parameters]
        if layer is None or unknown:  # a batch norm of another class is refused without parameters of its own, too
            _refuse_uncovered(module, path, unknown or [path])
        if layer.check is not None and own:
            layer.check(module, path)
        if layer.channels and own and axis == 1:
            needs = f"samples_axis={{{path!r}: 0}}, if its input has the samples first, as channels come second"
            refuse_module(module, path, "samples along axis 1, as the module around it", needs)
        before = module.register_forward_pre_hook(OfThisModule(partial(self._before, path, own)), with_kwargs=True)
        after = module.register_forward_hook(  # before other hooks, which may return another output
            OfThisModule(partial(self._after, path, own, layer)), with_kwargs=True, prepend=True
        )
        self._handles += [before, after]

    def remove(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def refuse_detached(self) -> None:
        """Refuse samples after `remove`, which nobody would score."""
        if not self._handles:
            refuse("attribution.samples", "a call after detach()", "a new Attribution")

    @contextmanager
    def open(self, block: Block) -> Iterator[None]:
        """Return a context manager that captures into `block`."""
        self.block = block
        try:
            with replaced_forwards(self._listeners):
                yield
        finally:
            self.block = None

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """Return a context manager for a pass that was captured before."""
        Hooks.repeats = True
        try:
            yield
        finally:
            Hooks.repeats = False

    def _accumulated(self, name: str, _: torch.Tensor) -> None:
        """Note a gradient that arrives, in a block or outside all blocks."""
        if self.block is not None:
            self.block.reached.add(name)
        elif not Hooks.repeats:
            self.stray = name

    def _before(self, path: str, own: dict[str, str], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Give every sample its own copy of an input that all share, such as positions of shape (1, T)."""
        block = self.block
        if block is None or not torch.is_grad_enabled():
            return None
        _refuse_training_mode(module, path)
        if not own or not (args or "input" in kwargs):
            return None
        given = args[0] if args else kwargs["input"]
        block.squares |= isinstance(module, nn.Embedding) and tuple(given.shape) == (block.n, block.n)
        if self._axes[path]:
            expanded = _in_each_column(given, block.n)
        else:
            expanded = _for_each_sample(module, path, given, block.n, block.squares)
        if expanded is given:
            return None
        return ((expanded, *args[1:]), kwargs) if args else (args, {**kwargs, "input": expanded})

    def _after(
        self, path: str, own: dict[str, str], layer: Layer, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        """Await the gradient of the output."""
        block = self.block
        if block is None or not own or not isinstance(output, torch.Tensor) or not output.requires_grad:
            return
        given, axis = args[0] if args else kwargs["input"], self._axes[path]
        for what, tensor in (("an input", given), ("an output", output)):
            least = axis + (1 if isinstance(module, nn.Embedding) else 2)
            if tensor.ndim < least or tensor.shape[axis] != block.n:
                got = f"{type(module).__name__} with {what} of shape {tuple(tensor.shape)} for {block.n} samples"
                along = "first" if axis == 0 else "second"
                needs = (
                    f"the samples of `index` along the {along} axis, one row each, or another `samples_axis`; for a"
                    " table that all samples share, such as relative positions, contraction='forward' or a frozen"
                    " weight (requires_grad_(False))"
                )
                refuse(f"model module {path!r}", got, needs)
        self._await(block, Use(module, path, own, given.detach(), given.detach()), layer.captures, output, axis)

    def _await(self, block: Block, use: Use, captures: Function, output: torch.Tensor, axis: int) -> None:
        """Await the gradient of the output of a use, whose samples are along `axis`."""
        if block.probed:
            block.outputs.append((use.path, use.module, output, axis))
        for name in use.names.values():
            block.calls[name] = block.calls.get(name, 0) + 1
        use = replace(use, a=use.a.movedim(axis, 0))
        output.register_hook(partial(self._received, block, captures, use, axis, is_hidden(output)))

    def _received(self, block: Block, captures: Function, use: Use, axis: int, hidden: bool, b: torch.Tensor) -> None:
        """Add the captures of one use to its block; the graph of one that is `hidden` does not have its parameters."""
        if Hooks.probing:
            return
        if self.block is not block:  # `_accumulated` notes it
            return
        names = {
            local: name for local, name in use.names.items() if hidden or is_accumulated(attrgetter(local)(use.module))
        }
        if not names:
            return
        use = replace(use, names=names)
        if block.reduce is None:
            block.inputs.append((use.path, use.a, use.a._version))
        block.streams.add(memory_of(b.device).stream(b.device))
        roundoff = roundoff_of(use.module, use.a, b)
        for name in use.names.values():
            block.roundoffs[name] = block.roundoffs.get(name, roundoff) | roundoff
        with torch.no_grad(), at_work(b.device):
            block.add(captures(as_computed(use, b.detach().movedim(axis, 0))))

    def _probe(self, model: nn.Module, args: Any, output: Any) -> None:
        """Refuse a model in which a sample's output depends on other rows of a module's output.

        A backward pass from a random direction of the first sample's output, and one of the last's: each gradient is
        exactly 0 in all other rows, unless samples interact, or the first axis is not theirs. Two, as an output that
        depends on the first row in all samples does not show in the first one's.
        """
        block = self.block
        if block is None or not block.outputs:
            return
        outputs, block.outputs = block.outputs, []
        axis = self._axes[""]
        found = first_tensor(output, block.n, axis)
        if found is None or block.n == 1:
            return
        for row in (0, block.n - 1):
            self._probe_row(row, found.movedim(axis, 0), outputs)

    def _probe_row(
        self, row: int, found: torch.Tensor, outputs: list[tuple[str, nn.Module, torch.Tensor, int]]
    ) -> None:
        """Refuse a row of the model's output that depends on other rows of a module's output."""
        generator = torch.Generator().manual_seed(0)
        one = found[row] * torch.randn(found[row].shape, generator=generator).to(found)
        Hooks.probing = True
        try:
            with torch.enable_grad():
                tensors = [tensor for _, _, tensor, _ in outputs]
                gradients = torch.autograd.grad(one.sum(), tensors, retain_graph=True, allow_unused=True)
        except RuntimeError:  # reentrant checkpointing has no autograd.grad
            return
        finally:
            Hooks.probing = False
        for (path, module, _, axis), gradient in reversed(list(zip(outputs, gradients, strict=True))):
            if gradient is None:
                continue
            rows = gradient.movedim(axis, 0)
            if rows[:row].any() or rows[row + 1 :].any():
                got = f"{type(module).__name__} with rows of which other samples' outputs depend"
                along = "first" if axis == 0 else "second"
                needs = f"samples along the {along} axis of its input, which do not interact, or another `samples_axis`"
                refuse(f"model module {path!r}", got, needs)


@dataclass(frozen=True)
class _Listener:
    """Awaits the gradients of the uses that a rewritten forward pass of one module records."""

    hooks: Hooks
    module: nn.Module
    path: str
    own: Mapping[str, str]

    @property
    def is_open(self) -> bool:
        """Whether samples are captured."""
        return self.hooks.block is not None

    @property
    def n(self) -> int:
        """Number of samples of the open block."""
        return self.hooks.block.n if self.hooks.block is not None else 0

    def record(
        self, output: torch.Tensor, a: torch.Tensor, parameters: tuple[str, ...], captures: Function, axis: int
    ) -> None:
        """Await the gradient of `output`."""
        block = self.hooks.block
        own = {local: self.own[local] for local in parameters if local in self.own}
        if block is not None and own and output.requires_grad and torch.is_grad_enabled():
            use = Use(self.module, self.path, own, a.detach(), a.detach())
            self.hooks._await(block, use, captures, output, axis)


def as_computed(use: Use, b: torch.Tensor) -> Use:
    """Return a use with the input as the module multiplied it and the gradient of its output, in its dtype.

    Under autocast a product of low precision has an output of that dtype, and rounds its inputs to it.
    """
    a = use.a
    if a.is_floating_point():
        a = (a.to(b.dtype) if b.dtype in HALVES else a).to(use.dtype)
    return replace(use, a=a, b=b.to(use.dtype))


def _is_one_row(p: torch.Tensor) -> bool:
    """Whether a parameter is one row for all samples, such as positions (1, T, d) or a class token (1, 1, d)."""
    return p.ndim >= 3 and len(p) == 1


def _refuse_uncovered(module: nn.Module, path: str, names: list[str]) -> NoReturn:
    kind, where = type(module).__name__, path or "the model itself"
    if isinstance(module, BATCH_NORMS):
        refuse(f"model module {path!r}", kind, "nn.BatchNorm1d, 2d or 3d in eval mode: others let samples interact")
    known = ", ".join(sorted(one.__name__ for one in (*LAYERS, *REWRITES)))
    refuse(
        f"model parameter {names[0]!r}",
        f"a parameter of {where}, a module of class {kind}, which has no captures",
        f"contraction='forward', for any modules and parameters, with a slope such as 'secant' and the samples' losses"
        f" in samples(index, losses=…); or a function for {kind} registered by adamshap.torch.register; or a frozen"
        " parameter (requires_grad_(False)), which is left out; or, of exactly these classes, modules of"
        f" {known} (for learned positions, also a parameter of shape (1, T, d))",
    )


def _refuse_training_mode(module: nn.Module, path: str) -> None:
    if isinstance(module, BATCH_NORMS) and (module.training or module.running_mean is None):
        mode = "in training mode" if module.training else "without running statistics"
        refuse(
            f"model module {path!r}",
            f"{type(module).__name__} {mode}, where samples of a batch interact",
            "eval mode with running statistics: .eval() of each batch norm, after each model.train(), once these"
            " are trained; or GroupNorm or LayerNorm in its place",
        )


def _in_each_column(given: torch.Tensor, n: int) -> torch.Tensor:
    """Return an input with samples along its second axis, as ids (T, 1) of positions, with n columns."""
    if given.ndim > 1 and given.shape[1] == 1 and n > 1:
        return given.expand(len(given), n, *given.shape[2:])
    return given


def _for_each_sample(
    module: nn.Module, path: str, given: torch.Tensor, n: int, as_many_positions: bool
) -> torch.Tensor:
    """Return an input of the module with n rows: the same memory if it has them, or one row repeated.

    Ids 0 … n − 1 are positions if there are `as_many_positions`, n, in the sequences that went in before.
    """
    if isinstance(module, nn.Embedding) and given.ndim == 1:
        counted = torch.arange(len(given), device=given.device, dtype=given.dtype)
        are_positions = n > 1 and torch.equal(given, counted)
        if len(given) != n or (are_positions and as_many_positions):
            return given.expand(n, -1)
        if are_positions:
            needs = "ids of shape (1, T) if they are positions, or (n, 1) if each belongs to a sample"
            refuse(f"model module {path!r}", f"Embedding with ids 0 … {n - 1} for {n} samples", needs)
        return given
    if given.ndim > 1 and len(given) == 1 and n > 1:
        return given.expand(n, *given.shape[1:])
    return given
