"""The windows of images, or of arrays with one or three axes: unfolded into the columns of a matrix, and folded back.

======  =============  ==================================================
paper   name           meaning
======  =============  ==================================================
T       ``places``     how often a window fits, times over the axes
a_t     no name        what the window sees at place t
======  =============  ==================================================
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

__all__ = ["Windows"]

Sizes = tuple[int, ...]
"""A number for each axis of the images: (down, across)."""

UNFOLDED_ON_HOST = 1 << 18
"""Elements of windows that are unfolded at a time: few enough to stay in the cache."""

UNFOLDED_ON_DEVICE = 1 << 26


@dataclass(frozen=True)
class Windows:
    """Size of a window, distance between its places, zeros on each side of the image, distance between its elements.

    The number of entries is the number of axes of the images; `padding` is 0 and `dilation` 1 by default.
    """

    kernel: Sizes
    stride: Sizes
    padding: Sizes = ()
    dilation: Sizes = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", self.padding or (0,) * len(self.kernel))
        object.__setattr__(self, "dilation", self.dilation or (1,) * len(self.kernel))

    def places(self, images: Any) -> Sizes:
        """Return how often the window fits into images (…, h, w), down and across."""
        sizes = images.shape[-len(self.kernel) :]
        return tuple(
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(sizes, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )

    def offsets(self) -> Iterator[Sizes]:
        """Yield the place of each element in the window, row by row."""
        yield from product(*map(range, self.kernel))

    def seen(self, padded: Any, offset: Sizes, places: Sizes) -> Any:
        """Return what the element at `offset` sees at each of the `places`, as a view of `padded` images."""
        pixels = (
            slice(d * first, d * first + (count - 1) * step + 1, step)
            for first, count, step, d in zip(offset, places, self.stride, self.dilation, strict=True)
        )
        return padded[(..., *pixels)]

    def blocks(self, xp: Any, images: Any, most: int | None = None) -> Iterator[slice]:
        """Yield the images to unfold at a time: one, or as many as a limited memory holds, and not over `most`."""
        each = images.shape[1] * math.prod(self.kernel) * math.prod(self.places(images))
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
        element = (size * d for size, d in zip(pixel, self.dilation, strict=True))
        step = (size * s for size, s in zip(pixel, self.stride, strict=True))
        # CuPy's sliding_window_view waits for the device.
        strides = (of_c, *element, of_n, *step)
        windows = xp.lib.stride_tricks.as_strided(padded, (c, *self.kernel, n, *places), strides)
        return windows.reshape(c * math.prod(self.kernel), n * math.prod(places))

    def fold(self, xp: Any, columns: Any, images: Any) -> None:
        """Write to each pixel of `images` the sum of the elements of `columns`, as of `unfolded`, that see it."""
        n, c, *sizes = images.shape
        around = (size + 2 * p for size, p in zip(sizes, self.padding, strict=True))
        padded = xp.empty((n, c, *around), images.dtype) if any(self.padding) else images
        padded[...] = 0
        places = self.places(images)
        elements = columns.reshape(c, *self.kernel, n, *places)
        for offset in self.offsets():
            pixels = self.seen(padded, offset, places)
            pixels += elements[(slice(None), *offset)].swapaxes(0, 1)
        if padded is not images:
            inside = (slice(p, p + size) for p, size in zip(self.padding, sizes, strict=True))
            images[...] = padded[(slice(None), slice(None), *inside)]
