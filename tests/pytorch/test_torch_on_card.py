"""Loops on a real card: a run on a card starts these tests, each by itself."""

from typing import Any

import numpy as np
import pytest
from torch_loops import GPT, cross_entropy

from adamshap.reference.contract import Run

torch = pytest.importorskip("torch", reason="extra `torch`")
nn = torch.nn
from adamshap.torch import Attribution, memory  # noqa: E402

pytestmark = pytest.mark.gpu


def run_on(device: str, dtype: Any = None, scaled: bool = False, stream: Any = None, **options: Any) -> Run:
    """Return the run of a small GPT in float32 with clipping, under autocast of `dtype` if given."""
    torch.manual_seed(0)
    model = GPT(depth=2).to(device)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, **options)
    x = torch.randint(0, 7, (24, 4)).to(device)
    scaler, each = torch.amp.GradScaler(device, init_scale=1024.0, enabled=scaled), cross_entropy()

    def loss(rows: Any) -> Any:
        with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
            return each(model(x[rows]), x[rows]).mean()

    attribution = Attribution(model, adam, validation=lambda: loss(slice(16, 24)), n_samples=16, check_every=1)
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(4):
            for half in (range(8), range(8, 16)):
                with attribution.samples(half):
                    scaler.scale(loss(list(half)) / 2).backward()
            if not options.get("fused"):
                scaler.unscale_(adam)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(adam)
            scaler.update()
            adam.zero_grad()
    return attribution.result()


def assert_near(got: Run, wanted: Run) -> None:
    """Assert that the scores of two runs in float32 differ by less than a thousandth, the rounding of four steps."""
    assert np.abs(got.scores - wanted.scores).max() < 1e-3 * np.abs(wanted.scores).max()
    np.testing.assert_array_equal(got.seen, wanted.seen)


def test_a_tensor_and_its_array_share_the_memory_of_the_card() -> None:
    tensor = torch.arange(6.0, device="cuda").reshape(2, 3)
    array = memory.array_of(tensor)
    assert array.data.ptr == tensor.data_ptr()
    assert memory.tensor_of(array, tensor.device).data_ptr() == tensor.data_ptr()


def test_a_loop_on_a_card_has_the_scores_of_the_host_on_a_real_one() -> None:
    assert_near(run_on("cuda"), run_on("cpu"))


def test_a_loop_on_a_side_stream() -> None:
    assert_near(run_on("cuda", stream=torch.cuda.Stream()), run_on("cuda"))


def test_a_capturable_optimizer() -> None:
    assert_near(run_on("cuda", capturable=True), run_on("cuda"))


@pytest.mark.parametrize(("dtype", "scaled"), [("bfloat16", False), ("float16", True)])
def test_autocast_on_a_card_is_near_float32(dtype: str, scaled: bool) -> None:
    run, wanted = run_on("cuda", getattr(torch, dtype), scaled), run_on("cuda")
    assert np.corrcoef(run.scores, wanted.scores)[0, 1] > 0.999


def test_a_fused_optimizer_on_a_card_unscales_by_itself() -> None:
    assert_near(run_on("cuda", scaled=True, fused=True), run_on("cuda", fused=True))
