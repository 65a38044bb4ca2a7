"""Attribution of the automatic optimisation of Lightning's `Trainer`: a callback. This module needs `lightning`."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from adamshap.reference.contract import Run, needed, refuse
from adamshap.torch.attribution import Attribution
from adamshap.torch.forward_mode.closures import refuse_functions_of_blocks
from adamshap.torch.optimizer import run_closures

with needed("Lightning", by="adamshap.torch.lightning", extra="lightning"):
    from lightning.pytorch import Callback

__all__ = ["AttributionCallback"]


class AttributionCallback(Callback):  # type: ignore[misc]
    """Attributes the training of a LightningModule with one optimiser; checkpoints hold the state of the scores.

    Parameters
    ----------
    index_of : callable
        Function from a batch to the numbers of its samples (n,).
    **options
        The arguments of `Attribution`: validation, n_samples, slope and so on.
    """

    def __init__(self, *, index_of: Callable[[Any], Any], **options: Any) -> None:
        refuse_functions_of_blocks(options)
        self._index_of, self._options = index_of, options
        self._attribution: Any = None
        self._closures: Any = None
        self._open = ExitStack()
        self._loaded: dict[str, Any] = {}

    def result(self) -> Run:
        """Return the run so far, as `Attribution.result`."""
        if self._attribution is None:
            refuse("AttributionCallback.result", "a call before training", "Trainer(callbacks=[callback]).fit(module)")
        return self._attribution.result()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the module and its optimiser; refuse settings that are not supported."""
        found = (bool(pl_module.automatic_optimization), len(trainer.optimizers), trainer.world_size)
        if found != (True, 1, 1):
            got = "automatic_optimization={}, {} optimisers and {} processes".format(*found)
            refuse("Trainer", got, "automatic optimisation by one optimiser, in one process")
        self._closures = run_closures(trainer.optimizers[0])  # before the attribution's own hook
        self._attribution = Attribution(pl_module, trainer.optimizers[0], **self._options)
        if self._loaded:
            self._attribution.load_state_dict(self._loaded)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin a batch."""
        self._open.enter_context(self._attribution.samples(self._index_of(batch)))

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """End a batch."""
        self._open.close()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Remove all hooks; the scores stay."""
        self._attribution.detach()
        self._closures.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scores."""
        return {} if self._attribution is None else self._attribution.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from it, when training begins."""
        self._loaded = state_dict
