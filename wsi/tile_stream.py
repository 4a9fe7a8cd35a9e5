"""From windows of a slide to shards of a store: read, resample, score, write, in threads and in bounded memory."""

import cv2
import numpy as np
import numpy.typing as npt

from simtriplet.wsi.geometry import TilePlan
from simtriplet.wsi.slide import Pixels, SlideReader

__all__ = ["read_tiles", "resample"]

_WINDOW_BYTES = 24 << 20
"""Windows held at once by a thread while it resamples them."""


def read_tiles(reader: SlideReader, plan: TilePlan, level_xy: npt.NDArray[np.int64]) -> Pixels:
    """Read tiles.

    Args:
        reader: the slide.
        plan: level, size and scale.
        level_xy: (k, 2) int64, top-left corners, pixels of the plan's level.

    Returns:
        (k, s, s, 3) uint8 RGB.

    Raises:
        SlideReadError: if the pixels are damaged.
    """
    size = (plan.read_px, plan.read_px)
    if plan.scale == 1:
        return reader.read_windows(plan.level, level_xy, size)
    tiles = np.empty((len(level_xy), plan.size_px, plan.size_px, 3), np.uint8)
    step = max(1, _WINDOW_BYTES // (3 * plan.read_px**2))
    for start in range(0, len(level_xy), step):
        windows = reader.read_windows(plan.level, level_xy[start : start + step], size)
        for place, window in enumerate(windows, start=start):
            tiles[place] = resample(window, plan.scale, plan.size_px)
    return tiles


def resample(window: Pixels, scale: float, size_px: int) -> Pixels:
    """Bring an (r, r, 3) window of the level to an (s, s, 3) tile: exact area average, or cubic where finer than the level.

    OpenCV takes the factor itself (not the ratio of sizes) when no target size is given: output pixel i then averages
    exactly the interval [i, i + 1) x scale of the window.
    """
    factor = 1 / scale
    kind = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    tile = cv2.resize(window, None, fx=factor, fy=factor, interpolation=kind)
    if min(tile.shape[:2]) < size_px:
        missing = ((0, max(0, size_px - tile.shape[0])), (0, max(0, size_px - tile.shape[1])), (0, 0))
        tile = np.pad(tile, missing, mode="edge")
    return np.asarray(tile[:size_px, :size_px], dtype=np.uint8)
