"""Attribution of a loop by transformers' `Trainer`: a callback, a data collator and a data set with numbers.

The number of each sample travels as ``sample_index`` from the data set through the collator to the model's call, where
a hook takes it out and begins ``samples(index)``; the callback's next event after the backward pass ends it. The
optimiser is the one inside Accelerate's wrapper. This module needs the extra ``hf``.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from adamshap.reference.contract import Run, needed, refuse
from adamshap.torch.attribution import Attribution
from adamshap.torch.forward_mode.closures import refuse_functions_of_blocks

with needed("transformers and accelerate", by="adamshap.torch.hugging_face", extra="hf"):
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import TrainerCallback, default_data_collator
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
    from transformers.training_args import ParallelMode

__all__ = ["AttributionCallback", "SampleIndexCollator", "with_sample_index"]

KEY = "sample_index"
FILE = "attribution.pt"

UNSUPPORTED = ("fp16", "torch_compile")
"""Arguments of `Trainer` with which a loop is not attributed."""


class AttributionCallback(TrainerCallback):  # type: ignore[misc]
    """Attributes the training of a `transformers.Trainer`.

    Accumulation, clipping, schedule, evaluation and checkpoints are Trainer's. The state of the scores is saved in each
    checkpoint as ``attribution.pt``, and read when training resumes from it.

    Parameters
    ----------
    validation : callable
        Function without arguments that returns the mean validation loss, such as ``lambda: model(**batch).loss``.
    n_samples : int
        N, the number of training samples.
    resume_from : path, optional
        The checkpoint's folder, where training resumes from one that is not in ``args.output_dir``.
    **options
        The other arguments of `Attribution`: slope, gradient, rank and so on.

    Raises
    ------
    ValueError, TypeError
        Options that need a function for each batch. When training begins: settings that are not supported, by their
        names. In a step: a mistake of the loop.

    Examples
    --------
    >>> callback = AttributionCallback(validation=lambda: model(**valid).loss, n_samples=len(train))  # doctest: +SKIP
    >>> Trainer(
    ...     model,
    ...     TrainingArguments(remove_unused_columns=False),
    ...     data_collator=SampleIndexCollator(),
    ...     train_dataset=with_sample_index(train),
    ...     callbacks=[callback],
    ... ).train()  # doctest: +SKIP
    >>> callback.result().scores  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        validation: Callable[[], torch.Tensor],
        n_samples: int,
        resume_from: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        refuse_functions_of_blocks(options)
        self._options = {"validation": validation, "n_samples": n_samples, **options}
        self._resume_from = resume_from
        self._attribution: Attribution | None = None
        self._open = ExitStack()
        self._expects_batch = self._unused_removed = False
        self._hook: Any = None

    def result(self) -> Run:
        """Return the run so far, or that of the last training.

        Returns
        -------
        Run
            As from `Attribution.result`.

        Raises
        ------
        ValueError
            Before training, or after a mistake of the loop that was refused.
        """
        if self._attribution is None:
            refuse("AttributionCallback.result", "a call before training", "Trainer(…, callbacks=[callback]).train()")
        return self._attribution.result()

    # --- Trainer's events --------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the model and its optimiser; continue from a checkpoint's state."""
        for name in UNSUPPORTED:
            if value := getattr(args, name, False):
                refuse(f"TrainingArguments.{name}", value, "False: Trainer's loop is not attributed with it")
        if args.parallel_mode != ParallelMode.NOT_PARALLEL:
            refuse("TrainingArguments.parallel_mode", args.parallel_mode.value, "one process with one device")
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        if isinstance(optimizer, AcceleratedOptimizer):
            optimizer = optimizer.optimizer
        self._detach()
        self._attribution = None
        self._attribution = Attribution(model, optimizer, **self._options)
        if state.global_step:
            self._load(args, state)
        self._hook = model.register_forward_pre_hook(self._before_forward, with_kwargs=True, prepend=True)
        self._unused_removed = args.remove_unused_columns

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Expect the first batch of a step."""
        self._expects_batch = True

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a batch of an accumulated step, and expect the next."""
        self._open.close()
        self._expects_batch = True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the last batch of a step."""
        self._open.close()
        self._expects_batch = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the state of the scores beside the model's."""
        if self._attribution is not None and state.is_world_process_zero:
            torch.save(self._attribution.state_dict(), _checkpoint(args, state) / FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove all hooks; the scores stay."""
        self._detach()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _before_forward(self, model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Take the samples' numbers out of a call of the model; in a step of training, begin with them."""
        rest = {name: value for name, value in kwargs.items() if name != KEY}
        if self._expects_batch and torch.is_grad_enabled() and self._attribution is not None:
            if KEY not in kwargs:
                more = " and remove_unused_columns=True" if self._unused_removed else ""
                needs = (
                    "train_dataset=with_sample_index(dataset), data_collator=SampleIndexCollator(collator) and"
                    " TrainingArguments(remove_unused_columns=False)"
                )
                refuse("Trainer", f"a batch without {KEY!r}{more}", needs)
            self._expects_batch = False
            self._open.enter_context(self._attribution.samples(kwargs[KEY]))
        return args, rest

    def _load(self, args: Any, state: Any) -> None:
        folder = _checkpoint(args, state) if self._resume_from is None else Path(self._resume_from)
        if not (folder / FILE).is_file():
            got = f"a training that resumes at step {state.global_step}, without {folder / FILE}"
            needs = "AttributionCallback(resume_from=…), the folder of a checkpoint of an attributed training"
            refuse("AttributionCallback", got, needs)
        assert self._attribution is not None
        self._attribution.load_state_dict(torch.load(folder / FILE, weights_only=True))

    def _detach(self) -> None:
        self._open = ExitStack()
        self._expects_batch = False
        if self._attribution is not None:
            self._attribution.detach()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _checkpoint(args: Any, state: Any) -> Path:
    """Return the folder of the present step's checkpoint."""
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


class SampleIndexCollator:
    """A data collator that passes ``sample_index`` by another one, which never sees it.

    Parameters
    ----------
    collator : callable
        Function from a list of features to a batch, with one row for each.
    """

    def __init__(self, collator: Callable[[list[Any]], Any] = default_data_collator) -> None:
        self.collator = collator

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> Any:
        """Return the batch, with the samples' numbers (n,) if the features have one each, as those of training do."""
        rest = [{name: value for name, value in one.items() if name != KEY} for one in features]
        batch = self.collator(rest)
        index = [int(one[KEY]) for one in features if KEY in one]
        if index:
            batch[KEY] = torch.tensor(index)
        return batch


def with_sample_index(dataset: Any) -> torch.utils.data.Dataset[dict[str, Any]]:
    """Return a data set whose items have their own number, from 0 on, as ``sample_index``.

    Parameters
    ----------
    dataset : Dataset
        A data set with a length, whose items are mappings: PyTorch's or Hugging Face's.

    Returns
    -------
    Dataset
        The data set for ``train_dataset``.

    Raises
    ------
    TypeError
        A data set without a length; later, an item that is no mapping.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        refuse("dataset", type(dataset).__name__, "a data set with a length, whose items have numbers", TypeError)
    return _Numbered(dataset)


class _Numbered(torch.utils.data.Dataset[dict[str, Any]]):
    """A data set whose items have their own number."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> dict[str, Any]:
        item = self.dataset[number]
        if not isinstance(item, Mapping):
            refuse("dataset", f"an item of class {type(item).__name__}", "mappings, such as input_ids=…", TypeError)
        return {**item, KEY: number}
