"""Quality scores of tiles: how sharp, how much marker ink, how much folded tissue, how much colour."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.ink import find_ink
from simtriplet.wsi.slide import Pixels

__all__ = ["DEFAULT_FOLD_LIMIT", "QUALITY_COLUMNS", "QUALITY_REASONS", "QualitySpec", "find_fold_limit", "score_tiles"]

Scores = dict[str, npt.NDArray[np.float32]]
QUALITY_COLUMNS = ("sharpness", "pen", "fold", "saturation")
"""Names of the scores, as columns of the tile table."""

QUALITY_REASONS = ("kept", "blur", "pen", "fold", "saturation")
"""What the codes of `QualitySpec.reason_codes` mean."""

DEFAULT_FOLD_LIMIT = 0.3
"""Saturation minus value above which tissue counts as folded, where the slide's own stain is not known."""

_COLOUR_PX = 32
_SAMPLE_PX = 100_000
_SHARPNESS_FLOOR = 100.0
_FOLD_SPREAD, _MIN_FOLD_MARGIN = 0.75, 0.2


def score_tiles(tiles: Sequence[Pixels] | Pixels, *, fold_limit: float = DEFAULT_FOLD_LIMIT) -> Scores:
    """Score a batch of tiles; takes about 60 us for a tile of 256 px on one core, mostly without the GIL.

    `sharpness` is the energy of the Laplacian at twice the tile's mpp over that at four times: a focused picture of any
    density has about the same (0.25 to 0.8 at 0.5 mpp), out of focus the finer scale goes first. An empty tile has 0.
    `pen` is the share of pixels in marker ink colours, `fold` that of pixels that are darker and more saturated than
    `fold_limit`, `saturation` the mean HSV saturation (0..1); these three look at a copy of about 32 x 32 pixels.

    Args:
        tiles: (k, s, s, 3) uint8 RGB, or k such arrays of any sizes.
        fold_limit: of `find_fold_limit` for the tiles' slide.

    Returns:
        (k,) float32 for each of QUALITY_COLUMNS.
    """
    if isinstance(tiles, np.ndarray):
        return _score_stack(np.ascontiguousarray(tiles), fold_limit)
    scores: Scores = {name: np.zeros(len(tiles), np.float32) for name in QUALITY_COLUMNS}
    for shape in {tile.shape for tile in tiles}:
        places = [place for place, tile in enumerate(tiles) if tile.shape == shape]
        for name, values in _score_stack(np.stack([tiles[place] for place in places]), fold_limit).items():
            scores[name][places] = values
    return scores


def find_fold_limit(pixels: Pixels, tissue: npt.NDArray[np.bool_]) -> float:
    """Return the `fold_limit` of a slide: how dark and saturated tissue is where it lies twice, by the stain of this slide.

    A fold of a pale slide looks like plain tissue of a dark one, so that no one limit holds for all slides: among the tissue
    of one slide it stands out, as long as a tenth of the tissue or less is folded.

    Args:
        pixels: (h, w, 3) uint8 RGB overview of the slide, some 8 um a pixel.
        tissue: (h, w) bool, where it is tissue.
    """
    step = max(1, math.isqrt(tissue.size // _SAMPLE_PX))
    found = pixels[::step, ::step][tissue[::step, ::step]]
    if not len(found):
        return DEFAULT_FOLD_LIMIT
    largest, smallest = _extremes(found)
    depth = 1 - smallest / np.maximum(largest, 1) - largest / 255
    depth.sort()
    median, high = (float(depth[int(share * (len(depth) - 1))]) for share in (0.5, 0.9))
    limit = high + _FOLD_SPREAD * (high - median)
    return float(np.clip(max(limit, median + _MIN_FOLD_MARGIN), -0.2, 0.5))


@dataclass(frozen=True, slots=True)
class QualitySpec:
    """Which tiles are good enough; None asks nothing.

    Attributes:
        min_sharpness: least sharpness.
        max_pen: largest share of ink, 0..1.
        max_fold: largest share of folded tissue, 0..1.
        min_saturation: least mean saturation, 0..1.
    """

    min_sharpness: float | None = None
    max_pen: float | None = None
    max_fold: float | None = None
    min_saturation: float | None = None

    def __post_init__(self) -> None:
        if self.min_sharpness is not None and not 0 <= self.min_sharpness < math.inf:
            raise SettingsError(f"min_sharpness {self.min_sharpness}: must be zero or a positive number; try 0.2")
        for name in ("max_pen", "max_fold", "min_saturation"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SettingsError(f"{name} {value}: must lie in 0..1; correct it")

    @property
    def filters(self) -> bool:
        """Whether any limit is set."""
        return any(limit is not None for limit in self._limits)

    def keeps(self, scores: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.bool_]:
        """Return (k,) bool, which tiles meet every limit (limits themselves do).

        Args:
            scores: as `score_tiles` returns them.
        """
        return np.asarray(self.reason_codes(scores) == 0)

    def reason_codes(self, scores: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.int8]:
        """Return (k,) int8 places in QUALITY_REASONS: 0 for kept, else the first limit that is missed."""
        codes = np.zeros(len(scores[QUALITY_COLUMNS[0]]), np.int8)
        for code, (name, limit) in enumerate(zip(QUALITY_COLUMNS, self._limits, strict=True), start=1):
            if limit is not None:
                # both sides are rounded to the table's float32, so that a limit read off the table keeps its tile
                values, edge = np.asarray(scores[name], np.float32), np.float32(limit)
                missed = values > edge if name in ("pen", "fold") else values < edge
                codes[missed & (codes == 0)] = code
        return codes

    @property
    def _limits(self) -> tuple[float | None, ...]:
        return self.min_sharpness, self.max_pen, self.max_fold, self.min_saturation


def _score_stack(tiles: Pixels, fold_limit: float) -> Scores:
    """Score (k, h, w, 3) tiles of one size."""
    if not len(tiles):
        return {name: np.zeros(0, np.float32) for name in QUALITY_COLUMNS}
    half = _reduce_stack(tiles, 2)
    factor = max(1, round(min(half.shape[1:3]) / _COLOUR_PX))
    colours = _colour_scores(_reduce_stack(half, factor), fold_limit)
    scores = {"sharpness": _sharpness(half), **colours}
    return {name: np.asarray(scores[name], np.float32) for name in QUALITY_COLUMNS}


def _reduce_stack(stack: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Reduce every picture of a contiguous (k, h, w, ...) stack."""
    count, height, width = stack.shape[:3]
    if height % factor or width % factor:
        return np.stack([_reduce(picture, factor) for picture in stack])
    # one below the other they are reduced in one call, in half the time
    tall = _reduce(stack.reshape(count * height, width, *stack.shape[3:]), factor)
    return tall.reshape(count, height // factor, width // factor, *stack.shape[3:])


def _reduce(pixels: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Return the area average over whole blocks; a rest that fills none is left out."""
    if factor == 1:
        return pixels
    if factor > 2 and factor % 2 == 0:
        # OpenCV halves with vector instructions: three times as fast as one step
        return _reduce(_reduce(pixels, 2), factor // 2)
    height, width = max(1, pixels.shape[0] // factor), max(1, pixels.shape[1] // factor)
    whole = pixels[: height * factor, : width * factor]
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA))


def _sharpness(half: Pixels) -> npt.NDArray[np.float32]:
    count, height, width, _ = half.shape
    tall = cv2.cvtColor(half.reshape(count * height, width, 3), cv2.COLOR_RGB2GRAY)
    grey: npt.NDArray[Any] = tall.reshape(count, height, width)
    fine, coarse = (np.array([_laplacian_energy(picture) for picture in x]) for x in (grey, _reduce_stack(grey, 2)))
    # the floor, measured, keeps the noise of a smooth tile from passing for detail
    return np.asarray(fine / (coarse + _SHARPNESS_FLOOR), np.float32)


def _laplacian_energy(grey: npt.NDArray[Any]) -> float:
    """Return the mean square of the Laplacian; its mean is next to zero, so this is its variance at a tenth of the cost."""
    return float(cv2.norm(cv2.Laplacian(grey, cv2.CV_16S), cv2.NORM_L2SQR)) / grey.size


def _colour_scores(small: Pixels, fold_limit: float) -> dict[str, npt.NDArray[Any]]:
    """Score (k, h, w, 3) reduced tiles at once."""
    area = (1, 2)
    largest, smallest = _extremes(small)
    saturation = (largest - smallest) / np.maximum(largest, np.float32(1))
    smooth = np.stack([cv2.blur(tile, (3, 3)) for tile in small])
    largest, smallest = _extremes(smooth)
    # saturation - value > limit, multiplied by the largest channel
    folded = smallest < largest * (np.float32(1 - fold_limit) - largest / np.float32(255))
    ink = find_ink(small)
    return {
        "pen": ink.mean(axis=area),
        # ink is dark and saturated too
        "fold": (folded & ~ink).mean(axis=area),
        "saturation": saturation.mean(axis=area),
    }


def _extremes(pixels: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the largest and the smallest channel as float32; by planes, as numpy is slow along an axis of three."""
    red, green, blue = (np.ascontiguousarray(pixels[..., channel]) for channel in range(3))
    largest = np.maximum(np.maximum(red, green), blue)
    smallest = np.minimum(np.minimum(red, green), blue)
    return largest.astype(np.float32), smallest.astype(np.float32)
