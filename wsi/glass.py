"""The colour of a slide's glass, and the slide as it would look on white glass."""

import math

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
    brightest = int(np.quantile(light, 0.99))
    # pixels of pure white are what a scanner leaves out, or beyond the slide: the glass is what comes next to it
    inner = light[light < min(250, int(pixels.max()))]
    if brightest >= 250 and len(inner) > light.size // 10:
        brightest = int(np.quantile(inner, 0.99))
    colour = np.median(pixels[(light >= brightest - 8) & (light <= brightest + 2)].reshape(-1, 3), axis=0)
    tint = float(colour.max() - colour.min())
    is_pink = bool(colour[1] < min(colour[0], colour[2]))
    if colour.max() < _MIN_LIGHT or tint > (_MAX_PINK_TINT if is_pink else _MAX_TINT):
        return None
    return np.asarray(colour, np.float64)


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
