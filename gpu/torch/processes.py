"""Several processes, each with its own samples, whose gradients DistributedDataParallel averages (docs/method.md 11).

Every collective operation on arrays follows an exchange of a few numbers, `Processes.agree`, in which a process that
has failed takes part instead of leaving the others to wait: then all of them raise.

======  =========  ===================================================
paper   name       meaning
======  =========  ===================================================
W       ``count``  number of processes
======  =========  ===================================================
"""

import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from adamshap.reference.contract import Array, Estimator, refuse, shown
from adamshap.torch.captures.roundoff import Roundoff
from adamshap.torch.memory import tensor_of

__all__ = ["FEW", "OtherProcessError", "Processes", "WholeBatch", "unwrapped"]

NUMBERS = 3
"""Numbers that each process gives in an exchange, beside one for each parameter."""

LETTERS = 2000
"""Bytes of the message of a process that fails."""

FEW = 1 << 18
"""Elements up to which arrays are joined and reduced together."""

CONNECTION = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|timed out", re.IGNORECASE)
"""Words in the errors of a connection, which are of no class of their own with gloo."""


class OtherProcessError(RuntimeError):
    """Another process has failed, or the connection to it: this one cannot go on."""


@dataclass(frozen=True)
class WholeBatch:
    """The batch of all processes.

    Parameters
    ----------
    n : int
        Number of samples.
    products : dict of int
        Outer products of a sample, the most in any process, of each parameter that some process has used.
    """

    n: int
    products: Mapping[str, int]


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """Return the module inside DistributedDataParallel, or the model itself; refuse one whose parameters are shards."""
    if isinstance(model, DistributedDataParallel):
        return unwrapped(model.module)
    sharded = _sharded_tensor()
    for name, p in model.named_parameters():
        if isinstance(p, sharded) or type(p).__name__ == "FlatParameter":
            got = f"a parameter of which each process has a part, {type(p).__name__} {name!r}"
            refuse("model", got, "whole parameters in each process, as with DistributedDataParallel")
    return model


def _sharded_tensor() -> Any:
    """Return the class of FSDP2's and tensor parallelism's parameters, if this build of PyTorch has it."""
    try:
        from torch.distributed.tensor import DTensor
    except ImportError:
        return ()
    return DTensor


@dataclass(frozen=True)
class Processes:
    """The processes whose gradients are averaged: a single one, for which all operations do nothing, or a group.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup or None
    wrapper : DistributedDataParallel or None
    device : torch.device
        Device of the numbers that are exchanged: that of the parameters.
    names : tuple of str
        The model's parameters, for each of which a number can be exchanged.
    count, rank : int
        Number of processes, and that of this one.
    """

    group: Any = None
    wrapper: DistributedDataParallel | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    names: tuple[str, ...] = ()
    count: int = 1
    rank: int = 0

    @classmethod
    def of(cls, model: torch.nn.Module, process_group: Any) -> "Processes":
        """Return the processes of a model: those of `process_group`, or of its DistributedDataParallel."""
        if not distributed.is_available() or not distributed.is_initialized():
            if process_group is not None:
                refuse("process_group", shown(process_group), "torch.distributed.init_process_group() before it")
            return cls()
        wrapper = model if isinstance(model, DistributedDataParallel) else None
        if process_group is None and wrapper is None:
            if distributed.get_world_size() == 1:
                return cls()
            got = f"{type(model).__name__} in one of {distributed.get_world_size()} processes"
            needs = (
                "the DistributedDataParallel model; or process_group=torch.distributed.group.WORLD if it is inside one"
                " or gradients are reduced in another way; or a group of this process alone, if it trains by itself"
            )
            refuse("model", got, needs)
        group = wrapper.process_group if process_group is None and wrapper is not None else process_group
        count, rank = distributed.get_world_size(group), distributed.get_rank(group)
        if rank < 0:
            refuse("process_group", "a group without this process", "the group whose gradients are averaged")
        named = dict(unwrapped(model).named_parameters())
        device = next((p.device for p in named.values()), torch.device("cpu"))
        return cls(group, wrapper, device, tuple(named), count, rank)

    @property
    def several(self) -> bool:
        """Whether there is another process."""
        return self.count > 1

    # --- agreement ---------------------------------------------------------------------------------------------------

    def agree(self, numbers: Sequence[float] = (), each: Mapping[str, float] | None = None) -> tuple[Array, Array]:
        """Exchange a few numbers and one for each parameter; raise if another process has failed instead.

        Returns
        -------
        numbers, each : arrays (W, 3), (W, parameters)
            Those of every process, 0 where it gave none.

        Raises
        ------
        OtherProcessError
        """
        row = np.zeros(1 + NUMBERS + len(self.names))
        row[1 : 1 + len(numbers)] = numbers
        if each:
            row[1 + NUMBERS :] = [each.get(name, 0) for name in self.names]
        rows = self._gathered(row)
        if rows[:, 0].any():
            failed = int(np.flatnonzero(rows[:, 0])[0])
            message = self._messages("")[failed]
            raise OtherProcessError(f"attribution: process {failed} of {self.count} has failed: {message}")
        return rows[:, 1 : 1 + NUMBERS], rows[:, 1 + NUMBERS :]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Return a context manager for work that ends with `agree`: an error in one process is raised in all."""
        try:
            with self.connected():
                yield
        except OtherProcessError:
            raise
        except Exception as error:
            if self.several:
                row = np.zeros(1 + NUMBERS + len(self.names))
                row[0] = 1
                self._gathered(row)
                self._messages(str(error) or type(error).__name__)
            raise

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Return a context manager in which an error of the connection becomes one clear sentence."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, OtherProcessError) or not self.several or not CONNECTION.search(str(error)):
                raise
            raise self._lost(error) from error

    def _lost(self, error: BaseException) -> OtherProcessError:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return OtherProcessError(
            f"attribution: process {self.rank} of {self.count} waited in vain for another one, which has failed or was"
            f" killed (its own messages say why), or takes no part in a collective operation ({line})"
        )

    def _gathered(self, row: Array) -> Array:
        """Return the rows of all processes."""
        if not self.several:
            return row[None]
        own = torch.as_tensor(row, device=self.device)
        rows = [torch.empty_like(own) for _ in range(self.count)]
        try:
            distributed.all_gather(rows, own, self.group)
            return np.array([one.tolist() for one in rows], row.dtype)
        except RuntimeError as error:
            raise self._lost(error) from error

    def _messages(self, own: str) -> list[str]:
        """Return the messages of all processes."""
        letters = np.frombuffer(own.encode()[:LETTERS].ljust(LETTERS), np.uint8).copy()
        return [row.tobytes().decode(errors="ignore").strip() for row in self._gathered(letters)]

    def whole_batch(
        self, n: int, products: Mapping[str, int], gradients: Collection[str], step: int, settings: str
    ) -> WholeBatch:
        """Return the batch of all processes, whose steps, settings and gradients must agree.

        Parameters
        ----------
        n : int
            Number of this process's samples.
        products : dict of int
            Outer products of a sample, of each parameter that this process has used.
        gradients : collection of str
            Parameters with a gradient.
        step : int
        settings : str
            Of the attribution.
        """
        if not self.several:
            return WholeBatch(n, products)
        uses = {name: 2 * (1 + products[name]) if name in products else 0 for name in self.names}
        codes = {name: use + (name in gradients) for name, use in uses.items()}
        numbers, each = self.agree((n, step, zlib.crc32(settings.encode())), codes)
        for column, what in ((1, "another number of steps"), (2, "other settings, or another model")):
            if (numbers[:, column] != numbers[0, column]).any():
                which = int(np.flatnonzero(numbers[:, column] != numbers[0, column])[0])
                refuse("attribution", f"{what} in process {which} than in process 0", "the same in all processes")
        if len(odd := np.flatnonzero((each % 2 != each[0] % 2).any(axis=0))):
            needs = "the same parameters with a gradient in all processes, as DistributedDataParallel leaves them"
            refuse(f"gradient of {self.names[odd[0]]!r}", "None in some processes", needs)
        if not numbers[:, 0].any():
            needs = "samples in at least one process"
            refuse("optimizer.step", f"a step without samples (step {step}) in any process", needs)
        most = (each // 2).max(axis=0)
        found = {name: int(use) - 1 for name, use in zip(self.names, most, strict=True) if use}
        return WholeBatch(int(numbers[:, 0].sum()), found)

    def largest_roundoffs(self, roundoffs: Mapping[str, Roundoff]) -> Mapping[str, Roundoff]:
        """Return the coarsest rounding of each parameter's gradient in any process."""
        if not self.several or not self.agree((len(roundoffs),))[0].any():
            return roundoffs
        factors, result, least = (
            self.agree(each={name: getattr(one, part) for name, one in roundoffs.items()})[1].max(axis=0).tolist()
            for part in ("factors", "result", "least")
        )
        rounded = zip(self.names, factors, result, least, strict=True)
        return {name: Roundoff(*numbers) for name, *numbers in rounded if any(numbers)}

    def common_factor(self, factor: float, unit: float) -> float:
        """Return f, which must be the same in all processes, up to a relative difference of `unit`."""
        factors = self.agree((factor,))[0][:, 0]
        apart = np.abs(factors - factors[0])
        if (apart > unit * np.abs(factors[0])).any():
            got = f"multiplied by {factors[apart.argmax()]:.6g} in process {apart.argmax()} and {factors[0]:.6g} in 0"
            refuse("gradients", got, "the same clipping and scaling in all processes, after backward()")
        return float(factors[0])

    # --- sums and means -----------------------------------------------------------------------------------------------

    def add_up(self, arrays: Sequence[Any]) -> None:
        """Replace arrays of one dtype by their sums over the processes, in place; small ones go together."""
        if not self.several:
            return
        small = [tensor_of(array, self.device) for array in arrays if array.size <= FEW]
        if small:
            joined = torch.cat([tensor.reshape(-1) for tensor in small])
            self._reduce(joined)
            for tensor, part in zip(small, joined.split([tensor.numel() for tensor in small]), strict=True):
                tensor.copy_(part.reshape(tensor.shape))
        for array in arrays:
            if array.size > FEW:
                self._reduce(tensor_of(array, self.device))

    def _reduce(self, tensor: torch.Tensor) -> None:
        try:
            distributed.all_reduce(tensor, group=self.group)
        except RuntimeError as error:
            raise self._lost(error) from error

    def sum_of(self, array: Any) -> Any:
        """Return the sum of an array over the processes."""
        if not self.several:
            return array
        self.agree()
        total = array.copy()
        self.add_up([total])
        return total

    def sum_on_host(self, array: Array) -> Array:
        """Return the sum of an array in host memory over the processes, after an agreement."""
        if not self.several:
            return array.copy()
        total = torch.as_tensor(array).to(self.device, copy=True)
        self._reduce(total)
        return np.array(total.cpu())

    def mean_loss(self, loss: Any, size: float | None, gradients: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the mean of the processes' losses and of their gradients, weighted by `size`; None in all is evenly.

        Parameters
        ----------
        loss : array (1,)
        size : float, optional
        gradients : dict of arrays

        Raises
        ------
        ValueError
            `size` in some processes only.
        """
        if not self.several:
            return loss, gradients
        rows, _ = self.agree((float(loss[0]), size or 0))
        sizes = rows[:, 1]
        if sizes.any() and not sizes.all():
            got = f"a loss without the number of its samples in process {int(sizes.argmin())}"
            refuse("validation()", got, "(mean loss, number of samples) in all processes, or in none")
        weights = sizes / sizes.sum() if sizes.any() else np.full(self.count, 1 / self.count)
        own = weights[self.rank]
        scaled = {name: gradient * gradient.dtype.type(own) for name, gradient in gradients.items()}
        self.add_up(list(scaled.values()))
        mean = loss.copy()
        mean[...] = weights @ rows[:, 0]
        return mean, scaled

    def refuse_parts(self, estimator: Estimator, verify_ghost: bool, recompute: bool) -> None:
        """Refuse what needs all samples in one process."""
        refused = {
            "per_validation": estimator.per_validation and (True, "False: each process has its own validation samples"),
            "contraction": estimator.contraction != "ghost" and (shown(estimator.contraction), "'ghost'"),
            "verify_ghost": verify_ghost and (True, "False, or one process"),
            "recompute": recompute and (True, "False: a pass that runs again would send its gradients again"),
        }
        for name, found in refused.items():
            if self.several and found:
                got, needs = found
                refuse(name, f"{got} in one of {self.count} processes", needs)

    # --- around the user's function -----------------------------------------------------------------------------------

    @contextmanager
    def without_wrapper(self) -> Iterator[None]:
        """Return a context manager in which DistributedDataParallel's forward pass synchronises nothing.

        Its reducer would expect a backward pass, and its broadcast of buffers would be an edit of them.
        """
        if self.wrapper is None:
            yield
            return
        names = ("require_backward_grad_sync", "require_forward_param_sync")
        before = {name: getattr(self.wrapper, name) for name in names}
        for name in names:
            setattr(self.wrapper, name, False)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self.wrapper, name, value)

    def refuse_uneven_inputs(self) -> None:
        """Refuse DistributedDataParallel's context for uneven inputs, which mirrors its own operations alone."""
        config = getattr(self.wrapper, "_join_config", None)
        if config is not None and config.enable:
            needs = (
                "as many steps in each process: DistributedSampler repeats samples for that, or `samples([])` around"
                " the passes of a process without any"
            )
            refuse("model", "a DistributedDataParallel model in its join() context", needs)
