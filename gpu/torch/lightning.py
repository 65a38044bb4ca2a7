"""Attribution of a loop by Lightning's `Trainer`, by its automatic optimisation: a callback. Extra ``lightning``."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback

from adamshap.reference.contract import Run, refuse
from adamshap.torch.attribution import Attribution

__all__ = ["AttributionCallback"]


class AttributionCallback(Callback):  # type: ignore[misc]
    """Attributes the training of a LightningModule with one optimiser; the state of the scores is in the checkpoints.

    Parameters
    ----------
    index_of : callable
        Function from a batch to the numbers of its samples (n,).
    **options
        The arguments of `Attribution`: validation, n_samples, slope and so on.

    Raises
    ------
    ValueError, TypeError
        When training begins, settings that are not supported; in a step, a mistake of the loop.
    """

    def __init__(self, *, index_of: Callable[[Any], Any], **options: Any) -> None:
        self._index_of, self._options = index_of, options
        self._attribution: Attribution | None = None
        self._closure: Any = None
        self._open = ExitStack()
        self._loaded: dict[str, Any] = {}

    def result(self) -> Run:
        """Return the run so far, as `Attribution.result`."""
        if self._attribution is None:
            refuse("AttributionCallback.result", "a call before training", "Trainer(callbacks=[callback]).fit(module)")
        return self._attribution.result()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the module and its optimiser."""
        if not pl_module.automatic_optimization or len(trainer.optimizers) != 1:
            needs = "automatic optimisation with one optimiser, or an Attribution in training_step itself"
            refuse("LightningModule", f"manual optimisation or {len(trainer.optimizers)} optimisers", needs)
        if trainer.world_size != 1:
            refuse("Trainer", f"{trainer.world_size} processes", "one process with one device")
        (optimizer,) = trainer.optimizers
        self._closure = optimizer.register_step_pre_hook(_run_closure)  # before the attribution's hook
        self._attribution = Attribution(pl_module, optimizer, **self._options)
        if self._loaded:
            self._attribution.load_state_dict(self._loaded)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin a batch."""
        assert self._attribution is not None
        self._open.enter_context(self._attribution.samples(self._index_of(batch)))

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """End a batch."""
        self._open.close()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Remove all hooks; the scores stay."""
        assert self._attribution is not None
        self._attribution.detach()
        self._closure.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scores, for Lightning's checkpoint."""
        return {} if self._attribution is None else self._attribution.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from it when training begins."""
        self._loaded = state_dict


def _run_closure(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the closure of ``step(closure)``, in which Lightning has forward and backward pass, before the step."""
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is not None:
        with torch.enable_grad():
            closure()
    return args[:1], {}
