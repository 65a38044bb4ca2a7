"""Images of any layout: (height, width), (channels, height, width) or (height, width, channels)."""

from dataclasses import dataclass

import numpy as np

from adamshap.reference.contract import Array, LazyRows

Layout = tuple[int, ...]
"""Shape of an image as it is stored: two numbers, or three with the channels first or last."""


@dataclass(frozen=True, eq=False)
class Images:
    """The images of a data set.

    Parameters
    ----------
    rows : array (N, d), or LazyRows
        The numbers of each image as they are stored.
    layout : tuple of int
    greys : str
        Matplotlib's name for the colours of a single channel.
    """

    rows: Array | LazyRows
    layout: Layout
    greys: str = "gray"

    def picture(self, index: int) -> Array:
        """Return what matplotlib draws of the image in row `index`."""
        return picture_of(self.rows[index], self.layout)


def layout_of(shape: tuple[int, ...]) -> Layout | None:
    """Return the layout of examples of `shape`, without an axis of a single channel; None if they are no images."""
    if len(shape) == 3 and 1 in (shape[0], shape[2]):
        shape = shape[1:] if shape[0] == 1 else shape[:2]
    return shape if len(shape) in (2, 3) else None


def size_of(layout: Layout) -> tuple[int, int, int]:
    """Return channels, height and width.

    Of three numbers the first or the last is that of the channels: the smaller one, the first if they are equal.
    """
    if len(layout) == 2:
        return 1, layout[0], layout[1]
    return (layout[0], layout[1], layout[2]) if _first(layout) else (layout[2], layout[0], layout[1])


def channels_first(rows: Array, layout: Layout) -> Array:
    """Return images (n, channels, height, width) from `rows` (n, d), the numbers of each image as it is stored."""
    channels, height, width = size_of(layout)
    if _first(layout):
        return rows.reshape(-1, channels, height, width)
    return np.ascontiguousarray(rows.reshape(-1, height, width, channels).transpose(0, 3, 1, 2))


def pixels_of(rows: Array, layout: Layout) -> Array:
    """Return the pixels (n · height · width, channels) of `rows` (n, d)."""
    images = channels_first(rows, layout)
    return images.transpose(0, 2, 3, 1).reshape(-1, images.shape[1])


def for_each_number(of_channels: Array, layout: Layout) -> Array:
    """Return a value for each of an image's d numbers, as they are stored, from one for each channel."""
    _, height, width = size_of(layout)
    if _first(layout):
        return np.repeat(of_channels, height * width)
    return np.tile(of_channels, height * width)


def is_drawable(layout: Layout | None) -> bool:
    """Return whether a picture can be drawn: one channel is grey, three are red, green and blue."""
    return layout is not None and size_of(layout)[0] in (1, 3)


def picture_of(row: Array, layout: Layout) -> Array:
    """Return what matplotlib draws: (height, width) as stored, or colours (height, width, 3) from 0 to 1.

    Colours may be stored from 0 to 1 or from 0 to 255; an image with any other number is stretched to its range.
    """
    image: Array = channels_first(np.asarray(row, np.float64)[None], layout)[0]
    if len(image) == 1:
        return image.reshape(image.shape[1:])
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 255:
        image = (image - low) / (high - low)
    elif high > 1:
        image = image / 255
    return image.transpose(1, 2, 0)


def _first(layout: Layout) -> bool:
    return len(layout) == 2 or layout[0] <= layout[2]
