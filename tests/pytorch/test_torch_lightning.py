"""Lightning's Trainer: the scores of its loop are those of the same loop by hand; its mistakes are sentences."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision_operators  # noqa: F401 - before Lightning's torchmetrics
from torch_loops import assert_same_run

torch = pytest.importorskip("torch", reason="extra `torch`")
lightning = pytest.importorskip("lightning.pytorch", reason="extra `lightning`")
nn, F = torch.nn, torch.nn.functional
from adamshap.torch import Attribution  # noqa: E402
from adamshap.torch.lightning import AttributionCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec"),  # Lightning's own use of PyTorch
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
    pytest.mark.filterwarnings("ignore:.*mid-epoch"),
]

N = 20


class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
    """A perceptron with dropout, whose mask follows from the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Dropout(0.2), nn.Linear(6, 3))
        self.double()
        self.data = torch.arange(N), torch.randn(N, 4).double(), torch.randint(0, 3, (N,))
        self.valid = torch.randn(5, 4).double(), torch.randint(0, 3, (5,))

    def validation(self) -> Any:
        return F.cross_entropy(self.net.eval()(self.valid[0]), self.valid[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        index, x, y = batch
        torch.manual_seed(int(index[0]))
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> Any:
        adam = torch.optim.AdamW(self.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.LinearLR(adam, total_iters=4)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Manual(Module):
    """Two optimisers, which Lightning leaves to the module."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.AdamW(one.parameters()) for one in (self.net[0], self.net[2:])]


def attributed(module: Any, index_of: Any = lambda batch: batch[0]) -> Any:
    return AttributionCallback(
        index_of=index_of, validation=module.validation, n_samples=N, slope="secant", check_every=1
    )


SETTINGS = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.3}


def fit(
    folder: Path, module: Any, callback: Any, epochs: int = 2, ckpt_path: Path | None = None, **settings: Any
) -> Any:
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[callback], default_root_dir=folder,
        **(settings or SETTINGS),
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*module.data), batch_size=4)
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer


def by_hand() -> Any:
    module = Module()
    settings = module.configure_optimizers()
    adam, scheduler = settings["optimizer"], settings["lr_scheduler"]["scheduler"]
    attribution = Attribution(
        module, adam, validation=module.validation, n_samples=N, slope="secant", check_every=1
    )  # fmt: skip
    module.train()
    for _ in range(2):
        for number, index in enumerate(torch.arange(N).split(4)):
            with attribution.samples(index):
                (module.training_step([one[index] for one in module.data], number) / 2).backward()
            if number in (1, 3, 4):
                nn.utils.clip_grad_norm_(module.parameters(), 0.3)
                adam.step()
                adam.zero_grad()
                scheduler.step()
    return attribution.result()


def test_a_trainer_is_scored_as_the_loop_by_hand_and_resumed(tmp_path: Path) -> None:
    module = Module()
    callback = attributed(module)
    fit(tmp_path, module, callback)
    expected = by_hand()
    assert_same_run(callback.result(), expected)
    assert np.all(expected.history["factor"] < 1)
    assert np.all(expected.seen == 2)

    half = Module()
    fit(tmp_path, half, attributed(half), epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    rest = Module()
    callback = attributed(rest)
    fit(tmp_path, rest, callback, ckpt_path=tmp_path / "half.ckpt")
    assert_same_run(callback.result(), expected)


def test_manual_optimisation_is_refused(tmp_path: Path) -> None:
    module = Manual()
    got = "automatic_optimization=False, 2 optimisers and 1 processes; needs automatic optimisation by one optimiser"
    with pytest.raises(ValueError, match=f"Trainer: got {got}"):
        fit(tmp_path, module, attributed(module), accumulate_grad_batches=1)


def test_an_index_that_repeats_is_refused(tmp_path: Path) -> None:
    module = Module()
    with pytest.raises(ValueError, match="index: got sample 0 again before the step"):
        fit(tmp_path, module, attributed(module, lambda batch: torch.arange(4)))


def test_there_is_no_result_before_training() -> None:
    with pytest.raises(ValueError, match="got a call before training; needs Trainer"):
        attributed(Module()).result()


@pytest.mark.parametrize("options", [{"contraction": "forward"}, {"verify_ghost": True}, {"recompute": True}])
def test_options_with_a_function_for_each_batch_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}: got .*; needs an Attribution in a loop of your own"):
        AttributionCallback(index_of=lambda batch: batch[0], validation=Module().validation, n_samples=N, **options)
