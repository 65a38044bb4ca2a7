"""Low-rank factors of P, kept from step to step, by which captures are contracted at a lower cost.

======  ===========  =========================================
paper   name         meaning
======  ===========  =========================================
P       ``matrix``   score matrix, by parameter
r       ``rank``     rank of the sketch
Q, C    ``Factors``  ``P ≈ Q C`` with Q (d_out, r), C (r, d_in)
======  ===========  =========================================
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adamshap.gpu.arrays import as_matrix
from adamshap.gpu.captures import Factors
from adamshap.gpu.context import EngineContext
from adamshap.gpu.kernels.plan import AdamScalars
from adamshap.gpu.products import NARROW_COST, product_by_rows
from adamshap.gpu.threads import in_parts, parts_for

__all__ = ["EXACT_SQUARES", "Sketch", "each_divided", "matrices", "of_low_rank", "orthonormal"]

EXACT_SQUARES = 16
"""Squares of which v is the mean, up to which P is taken to have no low rank: the first sixteen steps, for usual β2."""

DIVIDED = 1.25  # cost of a matrix divided among threads, over that of its products: whitening is not divided
SWEEP_FLOPS = 4 * NARROW_COST  # for each element and column: a product with P, and one with its transpose
SWEEPS_AT_FIRST = 3  # power iterations from a random basis; from the last step's, one is enough


def matrices(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int, int]]:
    """Return (number, d_out, d_in) of each parameter that is no vector; they are numbered in their order.

    A convolution's d_in is the number of elements of a kernel.
    """
    found = [(name, shape) for name, shape in shapes.items() if len(shape) > 1]
    return {name: (number, shape[0], math.prod(shape[1:])) for number, (name, shape) in enumerate(found)}


def of_low_rank(scalars: Mapping[str, AdamScalars]) -> frozenset[str]:
    """Return the parameters whose v is the mean of enough squares for P to be near a matrix of low rank.

    The mean weights the squares of steps s by β2^(t−s), so that their effective number, (Σ w)²/Σ w², is
    (1 − β2^t)(1 + β2)/((1 − β2)(1 + β2^t)): at most t.
    """
    return frozenset(name for name, one in scalars.items() if _squares(one) > EXACT_SQUARES)


def _squares(scalars: AdamScalars) -> float:
    sum_of_weights = 1 / scalars.root_q**2  # (1 − β2^t)/(1 − β2)
    return sum_of_weights * (1 + scalars.b2) / (2 - scalars.d2 * sum_of_weights)


@dataclass
class Sketch:
    """Low-rank factors of each matrix of P, their basis kept from one step to the next.

    P changes little between steps, so that one power iteration from the last step's basis finds the range again
    (Halko, Martinsson & Tropp 2011, subspace iteration).

    Parameters
    ----------
    rank : int
    seed : int
        Seed of the first step's random basis.
    bases : dict
        Arrays (d_in, rank), by the matrix's number in `matrices` and the number of the group of scores.
    """

    rank: int
    seed: int = 0
    bases: dict[tuple[int, int], Any] = field(default_factory=dict)

    def pays(self, n: int, d_in: int, d_out: int) -> bool:
        """Whether factors cost less than the exact contraction of `n` outer products, counting their computation."""
        return n > 0 and self.rank * (d_in + d_out) / (d_in * d_out) + 3 * self.rank / n < 1

    def factors(
        self,
        context: EngineContext,
        matrix: Mapping[str, Any],
        n: int,
        group: int = 0,
        products: Mapping[str, int] | None = None,
        names: Collection[str] | None = None,
    ) -> dict[str, Factors]:
        """Return ``(Q, C)`` of each parameter for which they pay, for `n` samples to score; of `names` alone, if given.

        `products` has the number of a sample's outer products, for those parameters that are contracted by them; None
        is one for every parameter.
        """
        context.now("sketch")
        shapes = {name: p.shape for name, p in matrix.items()}
        paid = {
            name: (number, group)
            for name, (number, d_out, d_in) in matrices(shapes).items()
            if (names is None or name in names)
            and self.pays(n if products is None else n * products.get(name, 0), d_in, d_out)
        }
        found: dict[str, tuple[Factors, Any]] = {}
        sizes = [matrix[name].size for name in paid]
        middles = {name: sum(sizes[:i]) + sizes[i] // 2 for i, name in enumerate(paid)}

        def some(low: int, high: int) -> None:
            for name, middle in middles.items():
                if low <= middle < high:
                    found[name] = self._factor(context, as_matrix(matrix[name]), paid[name])

        flops = [SWEEP_FLOPS * self.rank * size for size in sizes]
        if each_divided(flops):
            some(0, sum(sizes))
        else:
            in_parts(some, sum(sizes), sum(flops))
        for name, key in paid.items():  # here, in an order that does not depend on the threads
            self.bases[key] = found[name][1]
        return {name: factors for name, (factors, _) in found.items()}

    def _factor(self, context: EngineContext, p: Any, key: tuple[int, int]) -> tuple[Factors, Any]:
        """Return Q and C of a matrix, and the basis of the next step."""
        basis = self.bases.get(key)
        sweeps = 1
        if basis is None:
            generator = np.random.default_rng((self.seed, *key))
            basis = context.backend.real(generator.standard_normal((p.shape[1], self.rank)))
            sweeps = SWEEPS_AT_FIRST
        for _ in range(sweeps):
            q = orthonormal(context, product_by_rows(context, p, basis))
            c = product_by_rows(context, p.T, q).T
            basis = orthonormal(context, c.T)
        return (q, c), basis


def each_divided(flops: Sequence[float]) -> bool:
    """Whether each matrix is divided among threads, and not given to one as a whole: what takes less time."""
    divided = sum(one / parts_for(one / 2) for one in flops)  # by its products, of half the work each
    whole = max([*flops, sum(flops) / parts_for(sum(flops))], default=0)
    return DIVIDED * divided < whole


def orthonormal(context: EngineContext, y: Any) -> Any:
    """Return an orthonormal basis of the range of `y` (d, r), d ≥ r, by Cholesky of its Gram matrix in double.

    Directions that the dtype of `y` cannot resolve compared with the largest become 0.
    """
    wide = y.astype("float64")
    return (wide @ context.ops.whitening(wide.T @ wide)).astype(y.dtype)
