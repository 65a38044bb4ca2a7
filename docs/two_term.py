"""Print how close "two_term" comes to the exact marginals with several numbers of nodes, for docs/choose.md.

python docs/two_term.py       # minutes
"""

from itertools import product
from typing import Any

import numpy as np

from adamshap.reference import Adam, scores
from adamshap.verify.claims import data, fidelity
from adamshap.verify.claims.estimators import FULL
from adamshap.verify.claims.statistics import pearson
from adamshap.verify.claims.stepping import steps

ESTIMATORS: dict[str, dict[str, Any]] = {
    "random_order": {"slope": "random_order"},
    **{f"two_term, nodes {nodes}": {"slope": "two_term", "nodes": nodes} for nodes in ((2, 4), (4, 2), (4, 4), (8, 2))},
}
"""For first and last, "two_term" uses nodes only on a path."""


def main() -> None:
    """Print the mean of R over tasks, sizes, rates, steps and seeds; the lowest mean over seeds; the mean at t = 1."""
    found: dict[tuple[str, str], dict[tuple[Any, ...], list[float]]] = {}
    for seed, name, n, lr in product(range(FULL.seeds), FULL.tasks, FULL.sizes, FULL.rates):
        task = data.load(name, seed, train=FULL.train, valid=FULL.valid, test=1)
        last = max(FULL.times)
        epochs = -(-last * n // task.train.n)
        walk = steps(task.network((32,)), Adam(lr=lr), task.train, task.valid, batch_size=n, epochs=epochs, seed=seed)
        for _, step, *_ in walk:
            t = step.state.step + 1
            if t in FULL.times:
                exact, _ = fidelity.truths(step, fidelity.FULL, seed)
                for (kind, wanted), (label, options) in product(exact.items(), ESTIMATORS.items()):
                    if kind == "shapley" or options.get("nodes", (4, 4)) == (4, 4):
                        two = {"kind": kind} if options["slope"] == "two_term" else {}
                        r = pearson(scores(step, **options, **two), wanted)
                        found.setdefault((kind, label), {}).setdefault((name, n, lr, t), []).append(r)
            if t == last:
                break
    print("| scores for | slope, nodes | mean R | lowest | mean at t = 1 |\n|---|---|---|---|---|")
    for (kind, label), places in found.items():
        means = {place: float(np.mean(values)) for place, values in places.items()}
        at_first = np.mean([mean for (*_, t), mean in means.items() if t == 1])
        row = (np.mean(list(means.values())), min(means.values()), at_first)
        print(f"| {kind} | `{label}` | " + " | ".join(f"{r:.3f}" for r in row) + " |")


if __name__ == "__main__":
    main()
