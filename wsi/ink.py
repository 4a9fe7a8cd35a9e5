"""Tell marker ink from stained tissue by its colour alone."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["find_ink"]

_MIN_RED = 110
_RED_RATIO = 3
_MAX_BLACK = 90
_MAX_BLACK_SPREAD = 20


def find_ink(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return which pixels have the colour of blue, green, red or black marker ink.

    Haematoxylin and eosin both take away at least as much green light as red, so stained tissue never has clearly more
    green than red; green and blue inks have. Red ink takes away blue as well, which leaves red alone; black ink takes away
    all of it, where crowded nuclei stay purple.

    Args:
        pixels: (..., 3) uint8 RGB, area-averaged to a few micrometres a pixel, so that noise does not decide.

    Returns:
        (...) bool.
    """
    red, green, blue = (np.ascontiguousarray(pixels[..., channel]).astype(np.int16) for channel in range(3))
    green_or_blue = 10 * green > 12 * red + 80
    warm = np.maximum(green, blue)
    largest: npt.NDArray[Any] = np.maximum(red, warm)
    smallest = np.minimum(np.minimum(red, green), blue)
    plain_red = (red >= _MIN_RED) & (red > _RED_RATIO * warm)
    black = (largest < _MAX_BLACK) & (largest - smallest < _MAX_BLACK_SPREAD)
    return np.asarray(green_or_blue | plain_red | black)
