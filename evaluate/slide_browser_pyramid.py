"""The picture of a slide in squares of 256 px at every second magnification, made when asked for.

Numbered as deep zoom does: level 0 is one pixel, each further level twice as large. All reading is of bounded windows, so
that no level is ever in memory. Positions are level-0 pixels, (x, y).
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.slide import Pixels, SlideReader
from simtriplet.wsi.store import TileStore

__all__ = ["Overview", "Pyramid", "Window", "compose_window", "read_window"]

_SMALLEST_TILE_PX = 13
"""Where tiles lie closer together, a square would be made of over 400 of them: the thumbnail has to do, for all squares alike."""

_TILES_AT_ONCE = 32

_MAX_READ_PX = 2048
"""Side of what is read from a slide at once: 12 MiB."""

_COSTLY = 8
"""Level pixels averaged along a side from where on the thumbnail is taken, if it is half as fine at least."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the slide, and how large its picture is.

    Attributes:
        base_xy: top-left corner, level-0 pixels.
        downsample: level-0 pixels per pixel of the picture.
        size: (width, height) of the picture.
    """

    base_xy: tuple[float, float]
    downsample: float
    size: tuple[int, int]

    @property
    def base_box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom, level-0 pixels."""
        (x, y), (width, height) = self.base_xy, self.size
        return x, y, x + width * self.downsample, y + height * self.downsample


@dataclass(frozen=True, slots=True)
class Overview:
    """The thumbnail.

    Attributes:
        pixels: (h, w, 3) uint8 RGB.
        downsample: level-0 pixels per pixel of it.
    """

    pixels: Pixels
    downsample: float

    def cut(self, window: Window) -> Pixels:
        """Return the picture of a window."""
        box = tuple(edge / self.downsample for edge in window.base_box)
        return _resample(self.pixels, (box[0], box[1], box[2], box[3]), window.size)


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The levels of one slide.

    Attributes:
        base_size: (width, height), level-0 pixels.
        finest: level-0 pixels per pixel of the largest level.
        square_px: side of the squares.
    """

    base_size: tuple[int, int]
    finest: float = 1.0
    square_px: int = 256

    def __post_init__(self) -> None:
        if min(self.base_size) < 1 or self.finest < 1 or self.square_px < 1:
            raise SettingsError(f"pyramid of {self.base_size} px: must have a size; tile the slide again")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the largest level."""
        return math.ceil(self.base_size[0] / self.finest), math.ceil(self.base_size[1] / self.finest)

    @property
    def max_level(self) -> int:
        """Number of the largest level."""
        return math.ceil(math.log2(max(self.size)))

    @property
    def min_level(self) -> int:
        """Number of the largest level that is one square."""
        return min(self.max_level, int(math.log2(self.square_px)))

    def window(self, level: int, col: int, row: int) -> Window:
        """Return what a square shows.

        Raises:
            IndexError: if the pyramid has no such square.
        """
        if not 0 <= level <= self.max_level:
            raise IndexError(f"level {level}: must lie in 0..{self.max_level}")
        shrink = 2 ** (self.max_level - level)
        left, top = col * self.square_px, row * self.square_px
        width, height = (
            min(self.square_px, math.ceil(side / shrink) - at) for side, at in zip(self.size, (left, top), strict=True)
        )
        if min(col, row) < 0 or min(width, height) < 1:
            raise IndexError(f"square {col}, {row}: is not on level {level}")
        downsample = self.finest * shrink
        return Window((left * downsample, top * downsample), downsample, (width, height))


def read_window(reader: SlideReader, window: Window, overview: Overview) -> Pixels:
    """Return the picture of a window, from the slide's next finer level; far out from the thumbnail.

    Raises:
        SlideReadError: if the pixels cannot be decoded.
    """
    level = _finer_level(reader, window.downsample)
    factor = window.downsample / reader.info.level_downsamples[level]
    thumbnail_does = 2 * window.downsample >= overview.downsample if factor >= _COSTLY else False
    if thumbnail_does or window.downsample >= overview.downsample:
        return overview.cut(window)
    width, height = window.size
    step = max(1, int(_MAX_READ_PX / factor))
    picture = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, step):
        for left in range(0, width, step):
            size = min(step, width - left), min(step, height - top)
            x, y = (start + at * window.downsample for start, at in zip(window.base_xy, (left, top), strict=True))
            part = Window((x, y), window.downsample, size)
            picture[top : top + size[1], left : left + size[0]] = _read_part(reader, level, part)
    return picture


def _finer_level(reader: SlideReader, downsample: float) -> int:
    fits = [level for level, one in enumerate(reader.info.level_downsamples) if one <= downsample * (1 + 1e-6)]
    return max(fits, key=lambda level: reader.info.level_downsamples[level], default=0)


def _read_part(reader: SlideReader, level: int, window: Window) -> Pixels:
    box = [edge / reader.info.level_downsamples[level] for edge in window.base_box]
    left, top = math.floor(box[0]), math.floor(box[1])
    right, bottom = math.ceil(box[2]), math.ceil(box[3])
    pixels = reader.read(level, (left, top), (right - left, bottom - top))
    return _resample(pixels, (box[0] - left, box[1] - top, box[2] - left, box[3] - top), window.size)


def compose_window(store: TileStore, base_xy: npt.NDArray[np.int64], window: Window, overview: Overview) -> Pixels:
    """Return the picture of a window as the store has it: its tiles in their places, the thumbnail around them.

    Args:
        store: the tiles.
        base_xy: (n, 2) their top-left corners, level-0 pixels.
        window: what to show.
        overview: the store's thumbnail.

    Raises:
        StoreError: if a tile is damaged.
    """
    picture = overview.cut(window).copy()
    between_px = store.stride_px * store.mpp / store.base_mpp / window.downsample
    if window.downsample >= overview.downsample or between_px < _SMALLEST_TILE_PX:
        return picture
    left, top, right, bottom = window.base_box
    side = store.base_size_px
    x, y = base_xy.T
    inside = np.flatnonzero((x < right) & (x + side > left) & (y < bottom) & (y + side > top))
    for start in range(0, len(inside), _TILES_AT_ONCE):
        ids = inside[start : start + _TILES_AT_ONCE]
        corners = (base_xy[ids] - [left, top]) / window.downsample
        for tile, corner in zip(store.images.read(ids), corners.tolist(), strict=True):
            _paste(picture, tile, corner, side / window.downsample)
    return picture


def _paste(picture: Pixels, tile: Pixels, corner: list[float], side: float) -> None:
    """Draw a tile; rounding the edges, not the size, lets tiles that touch on the slide touch in the picture."""
    left, top = round(corner[0]), round(corner[1])
    size = max(1, round(corner[0] + side) - left), max(1, round(corner[1] + side) - top)
    scaled = _resample(tile, (0, 0, tile.shape[1], tile.shape[0]), size)
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(picture.shape[1], left + size[0]), min(picture.shape[0], top + size[1])
    if x0 < x1 and y0 < y1:
        picture[y0:y1, x0:x1] = scaled[y0 - top : y1 - top, x0 - left : x1 - left]


def _resample(pixels: Pixels, box: tuple[float, float, float, float], size: tuple[int, int]) -> Pixels:
    """Scale the part of a picture in `box` (left, top, right, bottom) to a size: averaged down, interpolated up."""
    height, width = pixels.shape[:2]
    left, top = min(max(0.0, box[0]), width - 0.5), min(max(0.0, box[1]), height - 0.5)
    right, bottom = min(max(left + 0.5, box[2]), width), min(max(top + 0.5, box[3]), height)
    if (left, top, right, bottom) == (0, 0, width, height) and size == (width, height):
        return pixels
    shrinks = (right - left) >= size[0]
    how = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize(size, how, box=(left, top, right, bottom)), dtype=np.uint8)
