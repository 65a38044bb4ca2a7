"""Print how close the scores of `variance="rank_one"` come to those of the exact variance, for a transformer.

    python docs/variance_positions.py             # some minutes on one core
    python docs/variance_positions.py --quick     # one seed and 3 steps, seconds

A character model (tied, LayerNorm, width 64, two blocks, T = 32, n = 8) is trained on the text of docs/method.md with
Adam(1e-3); R is Pearson's correlation of `random_order` + `midpoint` scores with those of exact variance, at each step
t, the lowest over seeds. Three forms of rank one are compared: the engine's, with √Σ ‖x_i‖² / √Σ ‖a_i‖² ‖b_i‖²; the
same without that factor and with a T more below the root, as if positions were samples; and row and column sums of
Σ x_i², which cost as much as the exact variance does. The last column has σ = 0, `secant`.
"""

import argparse
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from adamshap import gpu
from adamshap.gpu.captures import OuterProducts, RootSquares
from adamshap.gpu.captures.roots import sample_roots
from adamshap.reference.contract import Adam, AdamState, Batch, Step, transformer

STEPS, N, N_VAL, T, SEEDS = 30, 8, 4, 32, 4
SHOWN = ((1, 1), (2, 2), (3, 30))


def as_samples(self: OuterProducts, context: Any) -> RootSquares:
    """Return the product of the norms over samples and positions, each position counted as a sample."""
    norms = context.ops.column_norms
    a, b = (x.reshape(-1, x.shape[-1]) for x in (self.a, self.b))
    return RootSquares(None, norms(b) / np.sqrt(self.a.shape[1], dtype=a.dtype), norms(a))


def row_and_column_sums(self: OuterProducts, context: Any) -> RootSquares:
    """Return the product of the roots of row and column sums of Σ x_i², with its total."""
    shape = context.shapes[self.weight]
    squares = sample_roots(context, [self], self.weight, np.empty(shape, self.a.dtype)).astype(float) ** 2
    root = np.sqrt(squares.sum(axis=1) * self.n / squares.sum())
    return RootSquares(None, root.astype(self.a.dtype), np.sqrt(squares.sum(axis=0)).astype(self.a.dtype))


FORMS = {
    "engine's": OuterProducts._rank_one,
    "positions as samples": as_samples,
    "row, column sums": row_and_column_sums,
}


def correlations(seed: int, steps: int) -> dict[tuple[str, int], float]:
    """Return R of each form at each step of a run."""
    text = (Path(__file__).parent / "method.md").read_text(encoding="utf-8")
    characters = sorted(set(text))
    tokens = np.array([characters.index(one) for one in text])
    model = transformer(vocab=len(characters), context=T, width=64, depth=2, heads=4)
    generator, params = np.random.default_rng(seed), model.init(seed)
    state = AdamState.zeros(params)

    def batch(count: int) -> Batch:
        windows = tokens[generator.integers(0, len(tokens) - T, count)[:, None] + np.arange(T + 1)]
        return Batch(windows[:, :-1], windows[:, 1:])

    valid, found, how = batch(N_VAL), {}, {"device": "cpu", "dtype": "float64"}
    for t in range(1, steps + 1):
        step = Step(model, params, Adam(), state, batch(N), valid)
        exact = gpu.scores(step, **how)  # type: ignore[arg-type]
        for name, form in FORMS.items():
            with patch.object(OuterProducts, "_rank_one", form):
                values = gpu.scores(step, variance="rank_one", **how)  # type: ignore[arg-type]
            found[name, t] = float(np.corrcoef(values, exact)[0, 1])
        found["secant", t] = float(np.corrcoef(gpu.scores(step, "secant", **how), exact)[0, 1])  # type: ignore[arg-type]
        params, state = gpu.update(step, **how)  # type: ignore[arg-type]
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and 3 steps")
    quick = parser.parse_args().quick
    steps = 3 if quick else STEPS
    runs = [correlations(seed, steps) for seed in range(1 if quick else SEEDS)]
    names = [*FORMS, "secant"]
    print("| t | " + " | ".join(names) + " |")
    print("|---" * (1 + len(names)) + "|")
    for low, high in SHOWN:
        lowest = [min(run[name, t] for run in runs for t in range(low, min(high, steps) + 1)) for name in names]
        print(f"| {low if low == high else f'{low} to {high}'} | " + " | ".join(f"{r:.4f}" for r in lowest) + " |")


if __name__ == "__main__":
    main()
