"""transformers' Trainer: the scores of its loop are those of the same loop by hand; its mistakes are sentences."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hugging_face_loops import PAD, gpt2, lora, padded_ids, transformers
from torch_loops import assert_same_run

torch = pytest.importorskip("torch", reason="extra `torch`")
from adamshap.torch import Attribution  # noqa: E402
from adamshap.torch.hugging_face import AttributionCallback, SampleIndexCollator, with_sample_index  # noqa: E402

N, STEPS = 10, 5

SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": STEPS, "learning_rate": 1e-2,
    "warmup_steps": 2, "max_grad_norm": 0.5, "weight_decay": 0.1, "remove_unused_columns": False, "report_to": [],
    "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no",
    "dataloader_pin_memory": False,
}  # fmt: skip


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"input_ids": one, "attention_mask": (one != PAD).long(), "labels": one.masked_fill(one == PAD, -100)}
        for one in padded_ids(count)
    ]


class Recorded(SampleIndexCollator):
    """The collator, which keeps the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[dict[str, Any]] = []

    def __call__(self, features: Any) -> Any:
        batch = super().__call__(features)
        self.batches.append(dict(batch))
        return batch


class Training:
    """A model, data, and a Trainer with the callback."""

    def __init__(self, folder: Path, build: Any = gpt2, callback: Any = None, **settings: Any) -> None:
        torch.manual_seed(0)
        self.data, self.valid = rows(N), transformers.default_data_collator(rows(4))
        self.model = build()
        self.callback = callback or AttributionCallback(
            validation=lambda: self.model(**self.valid).loss, n_samples=N, slope="secant", check_every=1
        )
        self.collator = Recorded()
        given = {"train_dataset": with_sample_index(self.data), "data_collator": self.collator}
        given |= {name: settings.pop(name) for name in [*given, "eval_dataset"] if name in settings}
        args = transformers.TrainingArguments(output_dir=str(folder), **(SETTINGS | settings))
        self.trainer = transformers.Trainer(self.model, args, callbacks=[self.callback], **given)

    def run(self, **options: Any) -> Any:
        self.trainer.train(**options)
        return self.callback.result()


def by_hand(training: Training, batches: list[dict[str, Any]], bf16: bool) -> Any:
    """Train as Trainer is asked to: AdamW without decay of vectors, by tokens of all batches of a step, clipped."""

    def loss(**batch: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(**batch).loss

    model, valid = training.model, training.valid
    ours = [p for p in model.parameters() if p.requires_grad]
    decay, rest = ([p for p in ours if (p.ndim > 1) == wanted] for wanted in (True, False))
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=1e-2, fused=True)
    scheduler = transformers.get_scheduler("linear", adam, 2, STEPS)
    attribution = Attribution(model, adam, validation=lambda: loss(**valid), n_samples=N, slope="secant", check_every=1)
    model.train()
    epoch = [slice(0, 2), slice(2, 4), slice(4, 5)]  # of five batches, two in a step
    steps = [batches[5 * turn :][part] for turn in range(2) for part in epoch][:STEPS]
    for step in steps:
        count = training.trainer._get_num_items_in_batch(step, torch.device("cpu"))
        for one in step:
            batch = dict(one)
            with attribution.samples(batch.pop("sample_index")):
                loss(**batch, num_items_in_batch=count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        adam.step()
        scheduler.step()
        adam.zero_grad()
    return attribution.result()


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (gpt2, {}),
    "evaluation in between": (gpt2, {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": rows(3)}),
    "evaluation of numbered samples": (
        gpt2,
        {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True, "eval_dataset": with_sample_index(rows(3))},
    ),
    "bf16": (gpt2, {"bf16": True}),
    "gradient checkpointing": (gpt2, {"gradient_checkpointing": True}),
    "lora": (lambda: lora(gpt2(), "c_attn", lora_dropout=0.0, fan_in_fan_out=True), {}),
}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_a_trainer_is_scored_as_the_loop_by_hand(case: str, tmp_path: Path) -> None:
    build, settings = CASES[case]
    training = Training(tmp_path, build, **settings)
    got = training.run()
    batches = [one for one in training.collator.batches if "sample_index" in one]
    if "numbered" in case:  # those of evaluation came in between, and have three rows
        batches = [one for one in batches if len(one["labels"]) == 2]
    assert_same_run(got, by_hand(Training(tmp_path, build), batches, settings.get("bf16", False)))
    assert got.seen.sum() == 18
    assert case == "lora" or np.all(got.history["factor"] < 1)  # clipped in each step


def test_a_resumed_training_ends_with_the_same_scores(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    build = lambda: gpt2("sdpa", 0.2)  # noqa: E731 - with dropout, whose random state Trainer saves
    whole = Training(tmp_path, build, **settings).run()
    checkpoint = tmp_path / "checkpoint-2"
    assert (checkpoint / "attribution.pt").is_file()
    assert_same_run(Training(tmp_path, build).run(resume_from_checkpoint=str(checkpoint)), whole)

    checkpoint.rename(tmp_path / "kept")
    elsewhere = Training(tmp_path / "new", build)
    message = "got a training that resumes at step 2, without .*checkpoint-2/attribution.pt; needs AttributionCallback"
    with pytest.raises(ValueError, match=message):
        elsewhere.run(resume_from_checkpoint=str(tmp_path / "kept"))
    elsewhere.callback._resume_from = tmp_path / "kept"
    assert_same_run(elsewhere.run(resume_from_checkpoint=str(tmp_path / "kept")), whole)


def test_a_trainer_is_left_as_it_was(tmp_path: Path) -> None:
    training = Training(tmp_path, max_steps=1)
    before = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in training.model.modules()]
    training.run()
    after = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in training.model.modules()]
    assert before == after
    first = training.callback.result()
    training.trainer.train()  # trains on, and is scored anew
    assert training.callback.result().seen.sum() == first.seen.sum()


# --- mistakes --------------------------------------------------------------------------------------------------------


def numbered_twice() -> list[dict[str, Any]]:
    return [{**one, "sample_index": 0} for one in rows(N)]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "columns removed": (
        {"remove_unused_columns": True},
        "Trainer: got a batch without 'sample_index' and remove_unused_columns=True; needs train_dataset=",
    ),
    "no collator, columns removed": (
        {"data_collator": transformers.default_data_collator, "remove_unused_columns": True},
        "got a batch without 'sample_index' and remove_unused_columns=True",
    ),
    "no data set with numbers": (
        {"train_dataset": rows(N)},
        "Trainer: got a batch without 'sample_index'; needs train_dataset=with_sample_index(dataset), data_collator=",
    ),
    "a number twice": ({"train_dataset": numbered_twice()}, "index: got sample 0 2 times; needs each sample once"),
    "a number twice in a step": (
        {"train_dataset": numbered_twice(), "per_device_train_batch_size": 1},
        "index: got sample 0 again before the step; needs each sample once in a step",
    ),
    "too many": ({"train_dataset": with_sample_index(rows(40)), "seed": 1}, "needs numbers from 0 to 9, as n_samples"),
    "adafactor": ({"optim": "adafactor"}, "optimizer: got Adafactor; needs torch.optim.Adam or torch.optim.AdamW"),
    "items that are no mappings": (
        {"train_dataset": with_sample_index([1, 2, 3])},
        "dataset: got an item of class int; needs mappings, such as input_ids=",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_a_sentence(case: str, tmp_path: Path) -> None:
    settings, message = MISTAKES[case]
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        Training(tmp_path, **settings).run()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fp16": True}, "TrainingArguments.fp16: got True; needs False: Trainer's loop is not attributed"),
        ({"torch_compile": True}, "TrainingArguments.torch_compile: got True"),
        (
            {"parallel_mode": transformers.training_args.ParallelMode.NOT_DISTRIBUTED},
            "TrainingArguments.parallel_mode: got not_distributed; needs one process with one device",
        ),
    ],
)
def test_settings_that_need_a_card_are_refused(settings: dict[str, Any], message: str) -> None:
    callback = AttributionCallback(validation=lambda: None, n_samples=N)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match=message):
        callback.on_train_begin(SimpleNamespace(**settings), SimpleNamespace(), None)


@pytest.mark.parametrize("options", [{"contraction": "forward"}, {"verify_ghost": True}, {"recompute": True}])
def test_options_with_a_function_for_each_batch_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}: got .*; needs an Attribution in a loop of your own"):
        AttributionCallback(validation=lambda: torch.zeros(()), n_samples=N, **options)


def test_a_data_set_without_a_length_is_refused() -> None:
    with pytest.raises(TypeError, match="dataset: got generator; needs a data set with a length"):
        with_sample_index(one for one in rows(2))


def test_there_is_no_result_before_training() -> None:
    callback = AttributionCallback(validation=lambda: None, n_samples=N)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match="got a call before training; needs Trainer"):
        callback.result()


def test_the_collator_passes_numbers_by_the_other() -> None:
    given: list[Any] = []

    def collator(features: list[Any]) -> dict[str, Any]:
        given.extend(features)
        return {"input_ids": torch.tensor([one["input_ids"] for one in features])}

    data = with_sample_index([{"input_ids": [3, number]} for number in range(4)])
    assert len(data) == 4  # type: ignore[arg-type]
    batch = SampleIndexCollator(collator)([data[2], data[0]])
    assert given == [{"input_ids": [3, 2]}, {"input_ids": [3, 0]}]
    assert batch["sample_index"].tolist() == [2, 0]
    assert "sample_index" not in SampleIndexCollator(collator)([{"input_ids": [1, 2]}])
