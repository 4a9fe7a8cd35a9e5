"""A small picture of a whole slide, in bounded memory whatever the slide's size and levels."""

from dataclasses import dataclass

import cv2
import numpy as np

from simtriplet.wsi.slide import Pixels, SlideReader

__all__ = ["Overview", "read_overview"]

_BAND_BYTES = 96 << 20


@dataclass(frozen=True, slots=True)
class Overview:
    """A slide at low resolution.

    Attributes:
        pixels: (h, w, 3) uint8 RGB.
        downsample: level-0 pixels per overview pixel.
    """

    pixels: Pixels
    downsample: float


def read_overview(reader: SlideReader, *, downsample: float, max_px: int = 4096) -> Overview:
    """Read the whole slide at about a downsample, from the best level, band by band, area-averaged.

    Args:
        reader: the slide.
        downsample: level-0 pixels per overview pixel wanted; at least 1.
        max_px: the longer side gets at most this many pixels.

    Raises:
        SlideReadError: if the slide cannot be decoded.
    """
    info = reader.info
    wanted = max(1.0, downsample, max(info.width, info.height) / max_px)
    level = max((i for i, d in enumerate(info.level_downsamples) if d <= wanted * 1.01), default=0)
    width, height = info.level_sizes[level]
    factor = max(1, round(wanted / info.level_downsamples[level]), -(-max(width, height) // max_px))
    out_width, out_height = -(-width // factor), -(-height // factor)
    rows = max(1, _BAND_BYTES // (3 * width * factor))
    bands = []
    for top in range(0, out_height, rows):
        count = min(rows, out_height - top)
        # beyond the border the reader gives white, so the last row and column average with background
        band = reader.read(level, (0, top * factor), (out_width * factor, count * factor))
        bands.append(cv2.resize(band, (out_width, count), interpolation=cv2.INTER_AREA) if factor > 1 else band)
    pixels = np.asarray(bands[0] if len(bands) == 1 else np.concatenate(bands), np.uint8)
    return Overview(pixels, factor * info.level_downsamples[level])
