"""Peak memory of a step of a small GPT, plain and with its scores: ``python docs/torch_memory.py``.

Each variant runs in a process of its own. Counted is the largest resident memory in steps 3 to 5, which have no full
self-check, less that before the model was built, when steps of a tiny model had compiled the engine's kernels. glibc
hands every larger array back at once.
"""

import argparse
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from adamshap.torch import Attribution

VARIANTS = {
    "plain": None,
    "secant": {"slope": "secant", "with_sgd": False},
    "secant, recompute": {"slope": "secant", "with_sgd": False, "recompute": True},
    "secant, recompute, micro_batch 2": {"slope": "secant", "with_sgd": False, "recompute": True, "micro_batch": 2},
    "random_order": {"with_sgd": False},
    "random_order, recompute": {"with_sgd": False, "recompute": True},
    "default": {},
    "default, recompute": {"recompute": True},
    "default, recompute, micro_batch 2": {"recompute": True, "micro_batch": 2},
}
VOCAB, WIDTH, DEPTH, HEADS, T, N_VAL = 256, 256, 4, 4, 128, 4


class Block(nn.Module):
    """Causal attention and two linear layers, with residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        """Return the output (n, T, width)."""
        n, positions, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, positions, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, positions, WIDTH))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A language model with a tied output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, WIDTH), nn.Embedding(T, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Any) -> Any:
        """Return the logits (n, T, vocabulary)."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def resident(peak: bool) -> int:
    """Return the resident memory of this process in bytes, the present or the largest since it was reset."""
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def steps(model: nn.Module, options: Any, data: Any, n: int, parts: int) -> None:
    """Take five steps; reset the peak after the second."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss(index: Any) -> Any:
        logits = model(data[index, :-1])
        return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), data[index, 1:].reshape(-1))

    valid = torch.arange(n, len(data))
    attribution = None
    if options is not None:
        more = {"validation": lambda: loss(valid), "n_samples": n, "check_every": 1000}
        attribution = Attribution(model, optimizer, **more, **options)
    for step in range(5):
        if step == 2:
            Path("/proc/self/clear_refs").write_text("5")
        for index in torch.arange(n).split(n // parts):

            def passes(rows: Any, index: Any = index) -> None:
                (loss(index[rows]) * len(index[rows]) / n).backward()

            def all_passes(passes: Any = passes) -> None:
                passes(slice(None))

            again = None
            if options and options.get("recompute"):
                again = passes if options.get("micro_batch") else all_passes
            with attribution.samples(index, again=again) if attribution else nullcontext():
                all_passes()
        optimizer.step()
        optimizer.zero_grad()


def measured(variant: str, n: int, parts: int) -> int:
    """Return the peak of the steps of one variant, in bytes."""
    torch.manual_seed(0)
    tiny = nn.Sequential(nn.Embedding(8, 4), nn.LayerNorm(4), nn.Linear(4, 8))
    steps(tiny, VARIANTS[variant], torch.randint(0, 8, (6, 5)), 4, 1)
    before = resident(peak=False)
    steps(GPT(), VARIANTS[variant], torch.randint(0, VOCAB, (n + N_VAL, T + 1)), n, parts)
    return resident(peak=True) - before


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--only", choices=VARIANTS)
    parser.add_argument("--parts", type=int, default=1, help="backward passes of a step")
    given = parser.parse_args()
    if given.only is not None:
        print(measured(given.only, given.n, given.parts))
        return
    print(f"{'peak of a step, MiB':34}" + "".join(f"{parts} passes".rjust(14) for parts in (1, 4)))
    plain: dict[int, int] = {}
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for variant in VARIANTS:
        cells = []
        for parts in (1, 4):
            command = [sys.executable, __file__, "--only", variant, "--parts", str(parts), "--n", str(given.n)]
            found = int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
            cells.append(f"{found / 2**20:6.0f} ({found / plain.setdefault(parts, found):4.2f})")
        print(f"{variant:34}" + "".join(cell.rjust(14) for cell in cells), flush=True)


if __name__ == "__main__":
    main()
