"""The windows of images: unfolded into the columns of a matrix, and folded back.

======  =============  ==================================================
paper   name           meaning
======  =============  ==================================================
T       ``places``     how often a window fits, down times across
a_t     no name        what the window sees at place t
======  =============  ==================================================
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

__all__ = ["Windows"]

Pair = tuple[int, int]

UNFOLDED_ON_HOST = 1 << 18
"""Elements of windows that are unfolded at a time: few enough to stay in the cache."""

UNFOLDED_ON_DEVICE = 1 << 26


@dataclass(frozen=True)
class Windows:
    """Size of a window, distance between its places, and rows and columns of zeros on each side of the image."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)

    def places(self, images: Any) -> Pair:
        """Return how often the window fits into images (…, h, w), down and across."""
        down, across = (
            (size + 2 * p - k) // s + 1
            for size, k, s, p in zip(images.shape[-2:], self.kernel, self.stride, self.padding, strict=True)
        )
        return down, across

    def offsets(self) -> Iterator[Pair]:
        """Yield the place of each element in the window, row by row."""
        yield from product(*map(range, self.kernel))

    def seen(self, padded: Any, offset: Pair, places: Pair) -> Any:
        """Return what the element at `offset` sees at each of the `places`, as a view of `padded` images."""
        down, across = (
            slice(first, first + (count - 1) * step + 1, step)
            for first, count, step in zip(offset, places, self.stride, strict=True)
        )
        return padded[..., down, across]

    def blocks(self, xp: Any, images: Any, most: int | None = None) -> Iterator[slice]:
        """Yield the images to unfold at a time: one, or as many as a limited memory holds, and not over `most`."""
        down, across = self.places(images)
        each = images.shape[1] * self.kernel[0] * self.kernel[1] * down * across
        limit = UNFOLDED_ON_HOST if xp.__name__ == "numpy" else UNFOLDED_ON_DEVICE
        block = max(limit // max(each, 1), 1)
        block = block if most is None else min(block, most)
        for first in range(0, len(images), block):
            yield slice(first, min(first + block, len(images)))

    def unfolded(self, xp: Any, images: Any) -> Any:
        """Return the windows of images (n, c, h, w) as columns, (c · kernel's elements, n · places)."""
        sides = ((0, 0), (0, 0), *((p, p) for p in self.padding))
        padded = xp.pad(images, sides) if any(self.padding) else images
        (n, c), places = padded.shape[:2], self.places(images)
        of_n, of_c, *pixel = padded.strides
        step = (size * s for size, s in zip(pixel, self.stride, strict=True))
        # CuPy's sliding_window_view waits for the device.
        windows = xp.lib.stride_tricks.as_strided(padded, (c, *self.kernel, n, *places), (of_c, *pixel, of_n, *step))
        return windows.reshape(c * math.prod(self.kernel), n * math.prod(places))

    def fold(self, xp: Any, columns: Any, images: Any) -> None:
        """Write to each pixel of `images` the sum of the elements of `columns`, as of `unfolded`, that see it."""
        n, c, h, w = images.shape
        down, across = self.padding
        padded = xp.empty((n, c, h + 2 * down, w + 2 * across), images.dtype) if any(self.padding) else images
        padded[...] = 0
        places = self.places(images)
        elements = columns.reshape(c, *self.kernel, n, *places)
        for i, j in self.offsets():
            pixels = self.seen(padded, (i, j), places)
            pixels += elements[:, i, j].swapaxes(0, 1)
        if padded is not images:
            images[...] = padded[:, :, down : down + h, across : across + w]
