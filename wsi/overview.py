"""A small picture of a whole slide, in bounded memory whatever the slide's size and levels."""

import itertools
from dataclasses import dataclass

import cv2
import numpy as np

from simtriplet.wsi.errors import SlideReadError
from simtriplet.wsi.slide import Pixels, SlideReader

__all__ = ["Overview", "read_overview"]

_BAND_BYTES = 96 << 20
_DAMAGED_PX = 128
"""Side of the regions that are given up as a whole, level pixels: half of a usual native tile."""


@dataclass(frozen=True, slots=True)
class Overview:
    """A slide at low resolution.

    Attributes:
        pixels: (h, w, 3) uint8 RGB.
        downsample: level-0 pixels per overview pixel.
        damaged: (x, y, width, height) of regions that could not be decoded and are white here, level-0 pixels.
    """

    pixels: Pixels
    downsample: float
    damaged: tuple[tuple[int, int, int, int], ...] = ()


def read_overview(reader: SlideReader, *, downsample: float, max_px: int = 4096, skip_damage: bool = False) -> Overview:
    """Read the whole slide at about a downsample, from the best level, block by block, area-averaged.

    Args:
        reader: the slide.
        downsample: level-0 pixels per overview pixel wanted; at least 1.
        max_px: the longer side gets at most this many pixels.
        skip_damage: leave regions white that cannot be decoded, and tell which.

    Raises:
        SlideReadError: if the slide cannot be decoded, unless damage is skipped.
    """
    info = reader.info
    wanted = max(1.0, downsample, max(info.width, info.height) / max_px)
    level = max((i for i, d in enumerate(info.level_downsamples) if d <= wanted * 1.01), default=0)
    width, height = info.level_sizes[level]
    factor = max(1, round(wanted / info.level_downsamples[level]), -(-max(width, height) // max_px))
    out_width, out_height = -(-width // factor), -(-height // factor)
    rows = max(1, _BAND_BYTES // (3 * out_width * factor**2))
    cols = max(1, _BAND_BYTES // (3 * factor**2 * rows))
    pixels = np.empty((out_height, out_width, 3), np.uint8)
    blocks = _Blocks(reader, level, factor, skip_damage)
    for top, left in itertools.product(range(0, out_height, rows), range(0, out_width, cols)):
        blocks.read((left, top), pixels[top : top + rows, left : left + cols])
    return Overview(pixels, factor * info.level_downsamples[level], tuple(blocks.damaged))


class _Blocks:
    """Reads parts of an overview, down to small ones where a larger one is damaged."""

    def __init__(self, reader: SlideReader, level: int, factor: int, skip_damage: bool) -> None:
        self._reader, self._level, self._factor, self._skip_damage = reader, level, factor, skip_damage
        self.damaged: list[tuple[int, int, int, int]] = []

    def read(self, xy: tuple[int, int], part: Pixels) -> None:
        """Fill a part that begins at `xy` of the overview."""
        (left, top), factor = xy, self._factor
        height, width = part.shape[:2]
        try:
            # beyond the border the reader gives white, so the last row and column average with background
            block = self._reader.read(self._level, (left * factor, top * factor), (width * factor, height * factor))
        except SlideReadError:
            if not self._skip_damage:
                raise
            self._read_around_damage(xy, part)
            return
        part[...] = cv2.resize(block, (width, height), interpolation=cv2.INTER_AREA) if factor > 1 else block

    def _read_around_damage(self, xy: tuple[int, int], part: Pixels) -> None:
        (left, top), (height, width) = xy, part.shape[:2]
        if max(height, width) <= max(1, _DAMAGED_PX // self._factor):
            part[...] = 255
            per_px = self._factor * self._reader.info.level_downsamples[self._level]
            x, y, right, bottom = (round(edge * per_px) for edge in (left, top, left + width, top + height))
            self.damaged.append((x, y, right - x, bottom - y))
            return
        half_height, half_width = -(-height // 2), -(-width // 2)
        for y, x in itertools.product(range(0, height, half_height), range(0, width, half_width)):
            self.read((left + x, top + y), part[y : y + half_height, x : x + half_width])
