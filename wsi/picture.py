"""A picture of how a slide was tiled: tissue outlined, tiles kept, and tiles left out coloured by why."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from simtriplet.wsi.slide import Pixels

__all__ = ["PICTURE_PX", "draw_tiling"]

PICTURE_PX = 1600
"""Longer side of a picture, without its legend."""

Colour = tuple[int, int, int]
Rings = Iterable[npt.NDArray[Any]]
_KEPT: Colour = (0, 90, 181)
_TISSUE: Colour = (20, 20, 20)
_OTHER: Colour = (110, 110, 110)
# apart from one another for colour-blind readers (Okabe and Ito), and from pink and purple tissue
_REASONS: Mapping[str, tuple[str, Colour]] = {
    "tissue": ("too little tissue", (130, 138, 145)),
    "edge": ("over the slide's edge", (170, 140, 0)),
    "damaged": ("damaged in the file", (0, 0, 0)),
    "blur": ("blurred", (230, 159, 0)),
    "pen": ("pen mark", (0, 158, 115)),
    "fold": ("folded", (213, 60, 0)),
    "saturation": ("too pale", (86, 180, 233)),
}
_NOT_FILLED = ("tissue", "edge")
"""Reasons that say where a tile lies, not what it looks like: the pixels below stay as they are."""

_FILL = 0.45
_LEGEND_PX, _SWATCH_PX, _MARGIN_PX = 44, 20, 16
_FONT, _FONT_SCALE, _INK = cv2.FONT_HERSHEY_DUPLEX, 0.62, (30, 30, 30)
_SUBPIXEL_BITS = 4


def draw_tiling(
    thumbnail: Pixels,
    downsample: float,
    rings: Rings,
    kept_xy: npt.NDArray[np.int64],
    rejected: Mapping[str, npt.NDArray[np.int64]],
    base_size: float,
    *,
    side_px: int = PICTURE_PX,
) -> Pixels:
    """Draw a tiling onto its slide's thumbnail, over a legend that counts the tiles.

    Args:
        thumbnail: (h, w, 3) uint8 RGB.
        downsample: level-0 pixels per thumbnail pixel.
        rings: outlines of the tissue, (n, 2) level-0 pixels each, holes among them.
        kept_xy: (k, 2) int64, level-0 pixels, top-left of the tiles kept.
        rejected: reason ("tissue", "edge", "damaged", "blur", "pen", "fold", "saturation") to (m, 2) such corners.
        base_size: side of a tile, level-0 pixels.
        side_px: longer side of the picture without its legend.

    Returns:
        (h', w', 3) uint8 RGB.
    """
    height, width = thumbnail.shape[:2]
    scale = side_px / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture: npt.NDArray[Any] = np.ascontiguousarray(
        cv2.resize(np.ascontiguousarray(thumbnail), size, interpolation=kind)
    )
    per_base = scale / downsample
    side = base_size * per_base
    for reason, base_xy in rejected.items():
        if reason not in _NOT_FILLED:
            _fill_tiles(picture, base_xy * per_base, side, _describe(reason)[1])
    for reason, base_xy in sorted(rejected.items(), key=lambda item: item[0] not in _NOT_FILLED):
        _outline_tiles(picture, base_xy * per_base, side, _describe(reason)[1], thin=reason in _NOT_FILLED)
    _outline_tiles(picture, kept_xy * per_base, side, _KEPT, thin=False)
    _outline_tissue(picture, [ring * per_base for ring in rings])
    return np.vstack([picture, _draw_legend(size[0], len(kept_xy), rejected)])


def _describe(reason: str) -> tuple[str, Colour]:
    return _REASONS.get(reason, (reason, _OTHER))


def _fill_tiles(picture: npt.NDArray[Any], xy: npt.NDArray[np.float64], side: float, colour: Colour) -> None:
    """Tint the area of the tiles; where they overlap, once."""
    covered = np.zeros(picture.shape[:2], np.uint8)
    for x, y in xy.tolist():
        covered[max(0, round(y)) : max(0, round(y + side)), max(0, round(x)) : max(0, round(x + side))] = 1
    inside = covered > 0
    tinted = picture[inside] * (1 - _FILL) + np.array(colour) * _FILL
    picture[inside] = np.rint(tinted).astype(np.uint8)


def _outline_tiles(
    picture: npt.NDArray[Any], xy: npt.NDArray[np.float64], side: float, colour: Colour, *, thin: bool
) -> None:
    """Outline each tile just inside its border, so that two neighbours of different fates show both colours."""
    width = 1 if thin or side < 24 else 2
    inset = width / 2
    low = np.floor(xy + inset).astype(np.int64)
    high = np.maximum(low, np.ceil(xy + side - inset).astype(np.int64) - 1)
    for (left, top), (right, bottom) in zip(low.tolist(), high.tolist(), strict=True):
        cv2.rectangle(picture, (left, top), (right, bottom), colour, width)


def _outline_tissue(picture: npt.NDArray[Any], rings: Sequence[npt.NDArray[Any]]) -> None:
    # OpenCV counts from pixel centres, we from pixel corners
    fixed = [np.rint((ring - 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32) for ring in rings]
    for colour, width in (((255, 255, 255), 5), (_TISSUE, 2)):
        cv2.polylines(picture, fixed, True, colour, width, cv2.LINE_AA, _SUBPIXEL_BITS)


def _draw_legend(width: int, n_kept: int, rejected: Mapping[str, npt.NDArray[np.int64]]) -> Pixels:
    entries: list[tuple[str, Colour, float]] = [("tissue", _TISSUE, 0.0), (f"kept: {n_kept:,}", _KEPT, 0.0)]
    for reason, base_xy in sorted(rejected.items(), key=lambda item: [*_REASONS, item[0]].index(item[0])):
        if len(base_xy):
            text, colour = _describe(reason)
            entries.append((f"{text}: {len(base_xy):,}", colour, 0.0 if reason in _NOT_FILLED else _FILL))
    rows = _lay_out([text for text, _, _ in entries], width)
    n_rows = 1 + max(row for row, _ in rows)
    strip = np.full((n_rows * _LEGEND_PX + _MARGIN_PX // 2, width, 3), 255, np.uint8)
    strip[:1] = 200
    for (text, colour, fill), (row, x) in zip(entries, rows, strict=True):
        y = row * _LEGEND_PX + (_LEGEND_PX - _SWATCH_PX) // 2 + _MARGIN_PX // 4
        corner = x + _SWATCH_PX, y + _SWATCH_PX
        tint = tuple(round(255 * (1 - fill) + channel * fill) for channel in colour)
        cv2.rectangle(strip, (x, y), corner, tint, cv2.FILLED)
        cv2.rectangle(strip, (x, y), corner, colour, 2)
        where = x + _SWATCH_PX + 10, y + _SWATCH_PX - 3
        cv2.putText(strip, text, where, _FONT, _FONT_SCALE, _INK, 1, cv2.LINE_AA)
    return strip


def _lay_out(texts: Sequence[str], width: int) -> list[tuple[int, int]]:
    """Return (row, x) of each entry: side by side, broken into rows where the width ends."""
    places, row, x = [], 0, _MARGIN_PX
    for text in texts:
        (text_px, _), _ = cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)
        entry_px = _SWATCH_PX + 10 + text_px
        if x > _MARGIN_PX and x + entry_px > width - _MARGIN_PX:
            row, x = row + 1, _MARGIN_PX
        places.append((row, x))
        x += math.ceil(entry_px) + 2 * _MARGIN_PX
    return places
