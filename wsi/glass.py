"""The colour of a slide's glass, and the slide as it would look on white glass."""

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from simtriplet.wsi.slide import Pixels

__all__ = ["balance_glass", "find_glass_colour"]

_MIN_LIGHT = 100
_MAX_TINT, _MAX_PINK_TINT = 45, 6
_WHITE = 245
_SAMPLE_PX = 400_000
"""Every so many-th pixel is looked at for the colour of the glass."""


def find_glass_colour(pixels: Pixels) -> npt.NDArray[np.float64] | None:
    """Return (3,) the RGB of the empty slide, or None where no glass can be told from tissue.

    Glass is the brightest part of a slide. It may be grey, or tinted by the lamp or the scanner, towards pink only a little:
    there it could be tissue that fills the picture.

    Args:
        pixels: (h, w, 3) uint8 RGB.
    """
    step = max(1, math.isqrt(pixels.shape[0] * pixels.shape[1] // _SAMPLE_PX))
    pixels = np.ascontiguousarray(pixels[::step, ::step])
    light = np.minimum(np.minimum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
    counts = _count(light, 0)
    brightest = _quantile(counts, 0.99)
    # pixels of pure white are what a scanner leaves out, or beyond the slide: the glass is what comes next to it
    inner = counts[: min(250, int(pixels.max()))]
    if brightest >= 250 and inner.sum() > light.size // 10:
        brightest = _quantile(inner, 0.99)
    glass = ((light >= brightest - 8) & (light <= brightest + 2)).astype(np.uint8)
    colour = np.array([_quantile(_count(pixels, channel, glass), 0.5) for channel in range(3)])
    tint = float(colour.max() - colour.min())
    is_pink = bool(colour[1] < min(colour[0], colour[2]))
    if colour.max() < _MIN_LIGHT or tint > (_MAX_PINK_TINT if is_pink else _MAX_TINT):
        return None
    return np.asarray(colour, np.float64)


def _count(pixels: npt.NDArray[np.uint8], channel: int, mask: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[Any]:
    """Return (256,) how often each value occurs in a channel, where the mask is set."""
    return np.asarray(cv2.calcHist([pixels], [channel], mask, [256], [0, 256])).ravel()


def _quantile(counts: npt.NDArray[Any], share: float) -> int:
    """Return the least value that a share of the values does not exceed, by how often each value occurs."""
    ends = counts.cumsum()
    return int(np.searchsorted(ends, share * ends[-1])) if len(ends) else 0


def balance_glass(pixels: Pixels) -> Pixels:
    """Return the picture with its glass white, so that grey or tinted glass is not taken for pale tissue.

    Args:
        pixels: (h, w, 3) uint8 RGB.
    """
    colour = find_glass_colour(pixels)
    if colour is None:
        return pixels
    steps = np.arange(256)[:, None] * (_WHITE / np.maximum(colour, 1))
    table = np.clip(np.rint(steps), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(np.ascontiguousarray(pixels), table[None]), dtype=np.uint8)
