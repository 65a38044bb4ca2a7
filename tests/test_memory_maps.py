"""Data larger than memory: memory maps are read in batches, and no array of their size is allocated."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.gpu.backend import is_mapped
from adamshap.reference import Adam, Batch, Network

LIMITED = """
import resource, sys
sys.modules["numba"] = None  # nothing to compile
from pathlib import Path
import numpy as np
import adamshap.gpu as engine
import adamshap.reference as oracle
from adamshap.reference import Adam, Batch, Network

folder, megabytes, trainer, credit, batch_size, beta1 = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
net, small = Network((500, 3)), Batch(np.zeros((8, 500), np.float32), np.zeros(8, int))
adam = Adam(betas=(float(beta1), 0.999))
dtypes = {"engine": ("float32", "float64"), "oracle": ("float64",)}[trainer]
attribute = {"engine": engine, "oracle": oracle}[trainer].attribute

def run(train, **options):
    options |= dict(epochs=1, batch_size=int(batch_size), device="cpu", credit=credit)
    return attribute(net, adam, train, small, **options)

run(small)  # imports
data = next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]
resource.setrlimit(resource.RLIMIT_DATA, 2 * (int(data) * 1024 + megabytes * 2**20,))
train = Batch(np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "y.npy", mmap_mode="r"))
snapshots = []
for dtype in dtypes:
    found = run(train, dtype=dtype, on_checkpoint=lambda step, take: snapshots.append(step) or step == 1 and take())
    assert found.seen.sum() == train.n
    assert np.isfinite(found.scores).all()
print(train.x.nbytes // 2**20, len(snapshots))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts what is read from files elsewhere")
@pytest.mark.parametrize(
    ("trainer", "credit", "batch_size", "beta1", "steps"),
    [
        ("engine", "step", 2000, 0.9, 200),
        ("engine", "carry", 1000, 0.5, 400),  # whose window ends after ten steps
        ("oracle", "carry", 1000, 0.9, 200),
    ],
)
def test_a_run_over_more_data_than_memory(
    tmp_path: Path, trainer: str, credit: str, batch_size: int, beta1: float, steps: int
) -> None:
    """381 MB of inputs with 96 MB of memory; the file is sparse, but read like any other.

    A third of that is to spare: how much of its free memory glibc keeps varies from run to run.
    """
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (200_000, 500)).flush()
    np.save(tmp_path / "y.npy", np.arange(200_000) % 3)
    words = [tmp_path, "96", trainer, credit, str(batch_size), str(beta1)]
    done = subprocess.run([sys.executable, "-c", LIMITED, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"381 {steps}\n"), done.stderr


@pytest.mark.parametrize("targets", [False, True], ids=["labels", "targets"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("credit", ["step", "carry"])
def test_a_memory_map_gives_the_same_run(tmp_path: Path, dtype: str, targets: bool, credit: str) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((30, 4)).astype(np.float32)
    y = generator.standard_normal((30, 3)) if targets else generator.integers(0, 3, 30)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    mapped = Batch(*(np.load(tmp_path / name, mmap_mode="r") for name in ("x.npy", "y.npy")))
    assert is_mapped(mapped.x)
    assert not is_mapped(x)
    net, valid = Network((4, 5, 3), loss="mse" if targets else "cross_entropy"), Batch(x[:6], y[:6])
    for attribute, options in ((oracle.attribute, {}), (engine.attribute, {"dtype": dtype, "device": "cpu"})):
        options = {**options, "credit": credit, "epochs": 2, "batch_size": 8}
        runs = [attribute(net, Adam(betas=(0.5, 0.9)), train, valid, **options) for train in (mapped, Batch(x, y))]
        np.testing.assert_array_equal(runs[0].scores, runs[1].scores)
        np.testing.assert_array_equal(runs[0].history["train_loss"], runs[1].history["train_loss"])


def test_what_is_not_finite_in_a_memory_map_is_counted_all_over(tmp_path: Path) -> None:
    x = np.zeros((3000, 1000))
    x[[0, 1500, 2999], [0, 1, 999]] = np.nan, np.inf, np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=r"Batch\.x: got 3 values that are NaN or infinite"):
        Batch(np.load(tmp_path / "x.npy", mmap_mode="r"), np.zeros(3000, int))
