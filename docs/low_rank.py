"""Print how close rank-r scores come to exact ones over a whole run on digits.

python docs/low_rank.py
"""

import numpy as np
from sklearn.datasets import load_digits

from adamshap import gpu
from adamshap.reference.contract import Adam, Batch, Network

SIZES = (64, 512, 512, 10)
EPOCHS, BATCH_SIZE, N_VAL = 5, 128, 32


def main() -> None:
    """Train with the same seed at each rank, and correlate the total scores with the exact ones."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order] / 16, y[order]
    train, valid = Batch(x[N_VAL:], y[N_VAL:]), Batch(x[:N_VAL], y[:N_VAL])

    def scores(rank: int | None) -> np.ndarray:
        run = gpu.attribute(
            Network(SIZES, "relu"), Adam(), train, valid, epochs=EPOCHS, batch_size=BATCH_SIZE, rank=rank, device="cpu"
        )
        print(f"rank {rank}: validation loss {run.history['valid_loss'][0]:.3f} → {run.history['valid_loss'][-1]:.3f}")
        return run.scores

    exact = scores(None)
    for rank in (4, 8, 16, 32):
        r = np.corrcoef(scores(rank), exact)[0, 1]
        print(f"digits, {'-'.join(map(str, SIZES))}, n = {BATCH_SIZE}, {EPOCHS} epochs: rank {rank}, R = {r:.6f}")


if __name__ == "__main__":
    main()
