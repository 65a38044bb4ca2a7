"""A sum of outer products a sample: a convolution, which is a linear layer at every place of its window.

What the window sees is unfolded from the images each time that it is read, some samples at a time, and never kept: a
kernel of 3 × 3 sees each pixel nine times. For the same reason ⟨P, x_i⟩ is b_i times the convolution of a_i with P in
place of the weight.

======  ========================  ==================================================
paper   name                      meaning
======  ========================  ==================================================
a_t     no array                  what the window sees of one group of channels
a       ``WindowProducts.a``      images (n, c_in, h, w)
b       ``WindowProducts.b``      gradients in the outputs (n, c_out, T), weighted
T       no name                   places of the window
======  ========================  ==================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from adamshap.gpu.captures.capture import Factors, RootSquares
from adamshap.gpu.captures.outer_products import refuse_roots
from adamshap.gpu.captures.roots import RootSum, signed_roots
from adamshap.gpu.captures.sums import CACHED
from adamshap.gpu.context import EngineContext
from adamshap.gpu.products import score_product
from adamshap.gpu.squares import row_norms
from adamshap.gpu.threads import in_parts
from adamshap.gpu.windows import Windows

if TYPE_CHECKING:
    from jaxtyping import Float

    from adamshap.reference.contract import Array

__all__ = ["WindowProducts"]


@dataclass(frozen=True)
class WindowProducts:
    """``x_i = Σ_t b_it a_itᵀ`` for a weight (c_out, c_in/groups, …), and Σ_t b_it for its bias, whose input is 1.

    Parameters
    ----------
    weight : str
    bias : str or None
    windows : Windows
    groups : int
        The output channels of a group see only its input channels.
    a : array (n, c_in, h, w), or with another number of axes
    b : array (n, c_out, T)
    a_is_input : bool
        Whether `a` is the model's input itself.
    """

    weight: str
    bias: str | None
    windows: Windows
    groups: int
    a: Float[Array, "n c_in *sizes"]
    b: Float[Array, "n c_out places"]
    a_is_input: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters used."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.b)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Shape of an output channel's weight."""
        return (self.a.shape[1] // self.groups, *self.windows.kernel)

    @property
    def products(self) -> dict[str, int]:
        """T, of the weight; none for several groups, which are always contracted exactly."""
        return {self.weight: int(self.b.shape[2])} if self.groups == 1 else {}

    @property
    def macs(self) -> int:
        """T c_out times the elements of a kernel."""
        return math.prod(self.b.shape[1:]) * math.prod(self.kernel)

    @property
    def pair_macs(self) -> int:
        """As many: x'_j is computed, and contracted."""
        return self.macs

    @property
    def scratch(self) -> int:
        """0: the memory of a block of unfolded windows is its own."""
        return 0

    def rows(self, which: slice) -> WindowProducts:
        """Return the capture of some rows, as views."""
        return replace(self, a=self.a[which], b=self.b[which])

    def weighted(self, weights: Float[Array, "n 1"]) -> WindowProducts:
        """Return the capture of each ``weights[i] x_i``; `weights` is (n, 1)."""
        return replace(self, b=self.b * weights[:, :, None])

    def sum_of(self, xp: Any, name: str, units: slice, out: Any = None) -> Any:
        """Return Σ_i x_i of some output channels; in `out` if given."""
        if name == self.bias:
            return self.b[:, units].sum(axis=(0, 2), out=out)
        count, size = units.stop - units.start, math.prod(self.kernel)
        if out is None:
            out = xp.empty((count, *self.kernel), self.b.dtype)
        total = out.reshape(count, size)
        total[...] = 0
        for rows in self.windows.blocks(xp, self.a) if count else ():
            columns = self._columns(xp, rows)
            for groups, channels in self._by_groups(units):
                b = _by_channel(self.b[rows, channels], groups.stop - groups.start)
                part = total[channels.start - units.start : channels.stop - units.start]
                part += xp.matmul(b, columns[groups].swapaxes(1, 2)).reshape(part.shape)
        return out

    def add_dots(
        self,
        context: EngineContext,
        matrix: Mapping[str, Any],
        factors: Mapping[str, Factors],
        out: Float[Array, " n"],
        scratch: Float[Array, "n scratch"],
        score_dtype: str | None,
    ) -> None:
        """Add ``Σ_t b_tᵀ (P a_t + p)`` to ``out[i]``, by one product with P, or two with its factors."""

        def of_columns(columns: Any, b: Any) -> Any:
            if self.weight in factors:
                q, c = factors[self.weight]
                z = c @ columns[0]
                z *= q.T @ b[0]
                return z
            z = context.backend.xp.empty_like(b)
            score_product(context, self._kernels(matrix[self.weight]), columns, z, score_dtype)
            z *= b
            return z

        out += self._dots(context.backend.xp, of_columns)
        if self.bias is not None:
            out += self.b.sum(axis=2) @ matrix[self.bias]

    def pair_dots(self, xp: Any, other: Any, names: Collection[str] | None = None) -> Float[Array, "n n_other"] | None:
        """Return ⟨x_i, x'_j⟩, from one x'_j at a time; None if no parameter is in common."""
        shared = [name for name in self.names if name in other.names and (names is None or name in names)]
        if not shared:
            return None
        units = slice(0, int(self.b.shape[1]))
        pairs: Array = xp.zeros((self.n, other.n), self.b.dtype)
        for j in range(other.n):
            x = {name: other.rows(slice(j, j + 1)).sum_of(xp, name, units) for name in shared}
            if self.weight in x:
                pairs[:, j] += self._dots(xp, partial(_product_times, xp, self._kernels(x[self.weight])))
            if self.bias is not None and self.bias in x:
                pairs[:, j] += self.b.sum(axis=2) @ x[self.bias]
        return pairs

    def root_squares(
        self, context: EngineContext, names: Collection[str], exact: bool, room: Callable[[str], Any]
    ) -> dict[str, RootSquares]:
        """Return √Σ x_i² of the weight, exact or of rank one, and of the bias, exact.

        Of rank one it is that of `OuterProducts`. For several groups it is always exact: each would need its own.
        """
        found = {}
        if self.weight in names:
            if exact or self.groups > 1:
                found[self.weight] = RootSquares(self._roots(context, room(self.weight)))
            else:
                found[self.weight] = self._rank_one(context)
        if self.bias is not None and self.bias in names:
            root = room(self.bias)
            root[...] = context.ops.column_norms(self.b.sum(axis=2))
            found[self.bias] = RootSquares(root)
        return found

    def _roots(self, context: EngineContext, out: Any) -> Any:
        """Write √Σ x_i² of the weight; each thread takes some of the samples."""
        xp, flat, sums = context.backend.xp, out.reshape(len(out), -1), dict[int, RootSum]()

        def samples(low: int, high: int) -> None:
            part = self.rows(slice(low, high))
            sums[low] = RootSum.of(context, flat if low == 0 else xp.empty_like(flat))
            for rows in part._few(xp):
                for x in part._each(xp, rows, part._columns(xp, rows)):
                    sums[low].add(x)

        in_parts(samples, self.n, 2 * self.n * self.macs)
        first, *others = (sums[low] for low in sorted(sums))
        for other in others:
            first.add_sum(other)
        first.finish()
        return out

    def _rank_one(self, context: EngineContext) -> RootSquares:
        xp, places = context.backend.xp, int(self.b.shape[2])
        norms, own, apart = dict[int, tuple[Any, Any]](), *(xp.empty(self.n, self.b.dtype) for _ in range(2))

        def samples(low: int, high: int) -> None:
            part = self.rows(slice(low, high))
            norms[low] = tuple(xp.zeros(count, self.b.dtype) for count in (self.b.shape[1], math.prod(self.kernel)))
            for rows in part._few(xp):
                columns = part._columns(xp, rows)
                here = slice(low + rows.start, low + rows.stop)
                own[here] = _lengths(xp, part._each(xp, rows, columns))
                apart[here] = 1
                for total, x in zip(norms[low], (_by_channel(part.b[rows], 1)[0], columns[0]), strict=True):
                    of_each = row_norms(xp, x.reshape(-1, places)).reshape(len(x), -1)
                    xp.hypot(total, row_norms(xp, of_each), out=total)
                    apart[here] *= row_norms(xp, of_each.T)

        in_parts(samples, self.n, 2 * self.n * self.macs)
        first, *others = (norms[low] for low in sorted(norms))
        for total, *parts in zip(first, *others, strict=True):
            for part in parts:
                xp.hypot(total, part, out=total)
        both = (context.ops.column_norms(lengths[:, None])[0] for lengths in (own, apart))
        return RootSquares(None, *first, *both)

    def row_norms(self, xp: Any) -> Float[Array, " n"]:
        """Return ‖x_i‖."""
        norms: Array = xp.empty(self.n, self.b.dtype)
        for rows in self._few(xp):
            norms[rows] = _lengths(xp, self._each(xp, rows, self._columns(xp, rows)))
        return norms if self.bias is None else xp.hypot(norms, row_norms(xp, self.b.sum(axis=2)))

    def signed_roots(self, context: EngineContext) -> WindowProducts:
        """Return the capture of the signed roots of a and b; refused for several places."""
        refuse_roots(int(self.b.shape[2]))
        a, b = signed_roots(context, self.weight, self.a, self.b)
        return replace(self, a=a, b=b, a_is_input=False)

    def kept(self) -> dict[str, Any]:
        """Return a, unless it is the model's input, and b."""
        return {"b": self.b} if self.a_is_input else {"a": self.a, "b": self.b}

    def rebuilt(self, arrays: Mapping[str, Any], inputs: Float[Array, "n c_in *sizes"]) -> WindowProducts:
        """Return the capture of other rows, from arrays like those of `kept` and the model's inputs."""
        return replace(self, a=inputs if self.a_is_input else arrays["a"], b=arrays["b"])

    def _columns(self, xp: Any, rows: slice) -> Any:
        """Return what the windows of some samples see, (groups, elements of a kernel, samples · T)."""
        columns = self.windows.unfolded(xp, self.a[rows])
        return columns.reshape(self.groups, -1, columns.shape[1])

    def _few(self, xp: Any) -> Iterator[slice]:
        """Yield samples whose x_i are computed at a time: few enough to stay in the cache."""
        return self.windows.blocks(xp, self.a, max(CACHED // (self.b.shape[1] * math.prod(self.kernel)), 1))

    def _each(self, xp: Any, rows: slice, columns: Any) -> Any:
        """Return x_i of the weight, (samples, c_out, elements of a kernel), of some samples and their columns."""
        count, (c_out, places) = rows.stop - rows.start, self.b.shape[1:]
        inputs = columns.reshape(*columns.shape[:2], count, places).transpose(2, 0, 3, 1)
        x = xp.matmul(self.b[rows].reshape(count, self.groups, c_out // self.groups, places), inputs)
        return x.reshape(count, c_out, -1)

    def _kernels(self, weight: Any) -> Any:
        """Return an array of the weight's shape as (groups, channels of a group, elements of a kernel)."""
        return weight.reshape(self.groups, len(weight) // self.groups, -1)

    def _by_groups(self, units: slice) -> Iterator[tuple[slice, slice]]:
        """Yield groups and output channels that make up `units`: whole groups, or a part of one."""
        channels, start = int(self.b.shape[1]) // self.groups, units.start
        while start < units.stop:
            group, inside = divmod(start, channels)
            whole = 0 if inside else (units.stop - start) // channels
            stop = start + whole * channels if whole else min((group + 1) * channels, units.stop)
            yield slice(group, group + max(whole, 1)), slice(start, stop)
            start = stop

    def _dots(self, xp: Any, of_columns: Callable[[Any, Any], Any]) -> Any:
        """Return for each sample the sum of ``of_columns(columns, b)``, (…, samples · T), of a block of samples."""
        dots = xp.empty(self.n, self.b.dtype)
        for rows in self.windows.blocks(xp, self.a):
            terms = of_columns(self._columns(xp, rows), _by_channel(self.b[rows], self.groups))
            dots[rows] = terms.reshape(-1, rows.stop - rows.start, self.b.shape[2]).sum(axis=2).sum(axis=0)
        return dots


def _lengths(xp: Any, x: Any) -> Any:
    return row_norms(xp, x.reshape(len(x), -1))


def _product_times(xp: Any, kernels: Any, columns: Any, b: Any) -> Any:
    return xp.matmul(kernels, columns) * b


def _by_channel(b: Any, groups: int) -> Any:
    """Return b (samples, channels, T) as (groups, channels of a group, samples · T), C-contiguous."""
    return b.swapaxes(0, 1).reshape(groups, b.shape[1] // groups, len(b) * b.shape[2])
