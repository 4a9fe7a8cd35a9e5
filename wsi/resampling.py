"""Tiles at the asked resolution, from windows of a level: an exact area average."""

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from simtriplet.wsi.geometry import TilePlan
from simtriplet.wsi.slide import Pixels, ReducesWindows, SlideReader

__all__ = ["read_tiles", "resample"]

_WINDOW_BYTES = 24 << 20
"""Windows held at once by a thread while it resamples them."""


def read_tiles(
    reader: SlideReader, plan: TilePlan, level_xy: npt.NDArray[np.int64], *, out: Pixels | None = None
) -> Pixels:
    """Read tiles.

    Args:
        reader: the slide.
        plan: level, size and scale.
        level_xy: (k, 2) int64, top-left corners, pixels of the plan's level.
        out: (k, s, s, 3) uint8 to read into; made when not given.

    Returns:
        (k, s, s, 3) uint8 RGB.

    Raises:
        SlideReadError: if the pixels are damaged.
    """
    size = (plan.read_px, plan.read_px)
    if plan.scale == 1:
        return reader.read_windows(plan.level, level_xy, size, out=out)
    tiles = np.empty((len(level_xy), plan.size_px, plan.size_px, 3), np.uint8) if out is None else out
    left = np.arange(len(level_xy))
    if plan.scale == round(plan.scale) and plan.scale > 1 and isinstance(reader, ReducesWindows):
        left = np.flatnonzero(~reader.read_reduced(plan.level, level_xy, plan.size_px, round(plan.scale), out=tiles))
    step = max(1, _WINDOW_BYTES // (3 * plan.read_px**2))
    for start in range(0, len(left), step):
        places = left[start : start + step]
        windows = reader.read_windows(plan.level, level_xy[places], size)
        for place, window in zip(places.tolist(), windows, strict=True):
            tiles[place] = resample(window, plan.scale, plan.size_px)
    return tiles


def resample(window: Pixels, scale: float, size_px: int) -> Pixels:
    """Bring an (r, r, 3) window of the level to an (s, s, 3) tile: exact area average, or cubic where finer than the level.

    OpenCV takes the factor itself (not the ratio of sizes) when no target size is given: output pixel i then averages
    exactly the interval [i, i + 1) x scale of the window.
    """
    factor = 1 / scale
    if scale > 1 and round(window.shape[0] * factor) == window.shape[0]:
        # where its rounded size is the window's own, OpenCV copies
        return _average(window, _area_weights(window.shape[0], scale, size_px))
    kind = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    tile = cv2.resize(window, None, fx=factor, fy=factor, interpolation=kind)
    if min(tile.shape[:2]) < size_px:
        missing = ((0, max(0, size_px - tile.shape[0])), (0, max(0, size_px - tile.shape[1])), (0, 0))
        tile = np.pad(tile, missing, mode="edge")
    return np.asarray(tile[:size_px, :size_px], dtype=np.uint8)


@lru_cache(maxsize=16)
def _area_weights(n_in: int, scale: float, n_out: int) -> npt.NDArray[np.float32]:
    """Return (n_out, n_in): how much of the interval [i, i + 1) x scale lies in each pixel; rows sum to 1."""
    low = np.arange(n_out)[:, None] * scale
    pixel = np.arange(n_in)[None]
    overlap = np.clip(np.minimum(low + scale, pixel + 1) - np.maximum(low, pixel), 0, None)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True), np.float32)


def _average(window: Pixels, weights: npt.NDArray[np.float32]) -> Pixels:
    rows = np.tensordot(weights, window.astype(np.float32), axes=(1, 0))
    columns = np.tensordot(rows, weights, axes=(1, 1)).transpose(0, 2, 1)
    return np.ascontiguousarray(np.clip(np.rint(columns), 0, 255).astype(np.uint8))
