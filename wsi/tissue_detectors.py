"""Tissue detectors: each turns a low-resolution picture of a slide into a mask of its tissue."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from simtriplet.wsi.glass import balance_glass
from simtriplet.wsi.ink import find_ink
from simtriplet.wsi.registry import Registry
from simtriplet.wsi.slide import Pixels

__all__ = [
    "DETECTORS",
    "EntropyDetector",
    "HsvDetector",
    "Mask",
    "OtsuDetector",
    "TissueDetector",
    "WholeSlideDetector",
    "find_pieces",
]

Mask = npt.NDArray[np.bool_]
_GREY_STEPS = 32
_MIN_STROKE_UM, _INK_RIM_UM = 24.0, 24.0
_MAX_LINE_UM, _MIN_LINE_ASPECT = 120.0, 10.0


class TissueDetector(Protocol):
    """Tell tissue from glass."""

    name: ClassVar[str]

    def detect(self, pixels: Pixels, um_per_px: float) -> Mask:
        """Return an (h, w) mask of an (h, w, 3) uint8 RGB picture."""


DETECTORS: Registry[type[Any]] = Registry("tissue detector")


@dataclass(frozen=True, slots=True)
class OtsuDetector:
    """Otsu's threshold on the saturation, without pen strokes, smoothed and closed.

    The threshold is kept within bounds: on a slide without tissue Otsu would split the noise of the glass, on one without
    glass it would split the tissue.

    Args:
        lowest: least threshold, 0..255.
        highest: greatest threshold, 0..255.
        close_um: gaps narrower than this are closed, micrometres.
    """

    lowest: int = 12
    highest: int = 20
    close_um: float = 40.0
    name: ClassVar[str] = "otsu"

    def detect(self, pixels: Pixels, um_per_px: float) -> Mask:
        """See TissueDetector."""
        smooth = _smooth(balance_glass(pixels))
        saturation = cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV)[..., 1]
        otsu, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        mask: Mask = saturation > min(max(otsu, self.lowest), self.highest)
        return _tidy(mask, smooth, um_per_px, self.close_um)


@dataclass(frozen=True, slots=True)
class HsvDetector:
    """Fixed limits on hue, saturation and value: the colours of haematoxylin and eosin, whatever else is on the slide.

    Args:
        lowest_hue: blue-violet end of the hues, degrees; from here through pink to red at `highest_hue` is tissue.
        highest_hue: red end of the hues, degrees.
        min_saturation: 0..255.
        max_value: 0..255; above it is glass.
        close_um: gaps narrower than this are closed, micrometres.
    """

    lowest_hue: float = 220.0
    highest_hue: float = 20.0
    min_saturation: int = 15
    max_value: int = 250
    close_um: float = 40.0
    name: ClassVar[str] = "hsv"

    def detect(self, pixels: Pixels, um_per_px: float) -> Mask:
        """See TissueDetector."""
        smooth = _smooth(balance_glass(pixels))
        hue, saturation, value = cv2.split(cv2.cvtColor(smooth, cv2.COLOR_RGB2HSV))
        stained = (hue >= self.lowest_hue / 2) | (hue <= self.highest_hue / 2)  # OpenCV counts hue in 0..179
        mask: Mask = stained & (saturation >= self.min_saturation) & (value <= self.max_value)
        return _tidy(mask, smooth, um_per_px, self.close_um)


@dataclass(frozen=True, slots=True)
class EntropyDetector:
    """Local entropy of the grey values: texture instead of colour, for pale and brown stains and grey pictures.

    Args:
        window_um: side of the window, micrometres.
        min_entropy: least entropy of 32 grey steps in the window, bits.
        close_um: gaps narrower than this are closed, micrometres.
    """

    window_um: float = 72.0
    min_entropy: float = 1.0
    close_um: float = 40.0
    name: ClassVar[str] = "entropy"

    def detect(self, pixels: Pixels, um_per_px: float) -> Mask:
        """See TissueDetector."""
        smooth = _smooth(balance_glass(pixels))
        grey = cv2.cvtColor(smooth, cv2.COLOR_RGB2GRAY)
        side = 2 * max(1, round(self.window_um / um_per_px / 2)) + 1
        mask: Mask = _local_entropy(grey, side) >= self.min_entropy
        # the window sees tissue half its side before it reaches it
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side // 2 | 1, side // 2 | 1))
        mask = cv2.erode(mask.astype(np.uint8), kernel) > 0
        return _tidy(mask, smooth, um_per_px, self.close_um)


@dataclass(frozen=True, slots=True)
class WholeSlideDetector:
    """Everything is tissue: for slides cut out of tissue, or to tile without a mask."""

    name: ClassVar[str] = "all"

    def detect(self, pixels: Pixels, um_per_px: float) -> Mask:
        """See TissueDetector."""
        return np.ones(pixels.shape[:2], np.bool_)


for _detector in (OtsuDetector, HsvDetector, EntropyDetector, WholeSlideDetector):
    DETECTORS.add(_detector.name, _detector)


def _tidy(mask: Mask, pixels: Pixels, um_per_px: float, close_um: float) -> Mask:
    """Drop marker strokes and lines, and close gaps, but not over a stroke."""
    strokes = find_strokes(pixels, um_per_px)
    return np.asarray(close_gaps(drop_lines(mask & ~strokes, um_per_px), close_um / um_per_px) & ~strokes)


def find_strokes(pixels: Pixels, um_per_px: float) -> Mask:
    """Return (h, w) bool, where marker strokes are, with the pale rim that anti-aliasing and bleeding give them."""
    width = max(2, round(_MIN_STROKE_UM / um_per_px))
    ink = cv2.morphologyEx(find_ink(pixels).astype(np.uint8), cv2.MORPH_OPEN, np.ones((width, width), np.uint8))
    if not ink.any():
        return np.zeros(pixels.shape[:2], np.bool_)
    rim = max(1, round(_INK_RIM_UM / um_per_px))
    return np.asarray(cv2.dilate(ink, np.ones((2 * rim + 1, 2 * rim + 1), np.uint8)) > 0)


def close_gaps(mask: Mask, gap_px: float) -> Mask:
    """Return the mask with gaps narrower than `gap_px` closed; the picture goes on mirrored beyond its border."""
    reach = min(max(1, round(gap_px / 2)), max(1, min(mask.shape) // 8))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    border = cv2.BORDER_REFLECT_101 if reach < min(mask.shape) else cv2.BORDER_REPLICATE
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), reach, reach, reach, reach, border)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, kernel)
    return np.asarray(closed[reach:-reach, reach:-reach] > 0)


def drop_lines(mask: Mask, um_per_px: float) -> Mask:
    """Return the mask without long straight lines: edges of cover slips and of the picture, scratches.

    Only what is narrow is looked at, so that a line that touches tissue goes and the tissue stays; walls of fat cells are
    narrow too but not straight for long.
    """
    width = max(3, round(_MAX_LINE_UM / um_per_px))
    if min(mask.shape) <= 2 * width:
        return mask
    raw: npt.NDArray[Any] = mask.astype(np.uint8)
    # beyond the border of the picture there is no tissue, so that a line along it is narrow
    framed = cv2.copyMakeBorder(raw, width, width, width, width, cv2.BORDER_CONSTANT, value=0)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    wide = cv2.morphologyEx(framed, cv2.MORPH_OPEN, disc)[width:-width, width:-width]
    narrow: npt.NDArray[Any] = raw & (wide == 0)
    length = round(_MIN_LINE_ASPECT * width)
    lines: npt.NDArray[Any] = np.zeros_like(raw)
    for shape in ((1, length), (length, 1)):
        if shape[0] <= mask.shape[0] and shape[1] <= mask.shape[1]:
            lines = np.maximum(lines, cv2.morphologyEx(narrow, cv2.MORPH_OPEN, np.ones(shape, np.uint8)))
    return np.asarray((mask & (lines == 0)) & ~_slanted_lines(narrow & (lines == 0), width, length))


def find_pieces(mask: npt.NDArray[Any]) -> tuple[int, npt.NDArray[Any], npt.NDArray[Any]]:
    """Number the 8-connected pieces of an (h, w) uint8 mask; returns count, labels and statistics as OpenCV does."""
    # twice as fast as the algorithm that OpenCV takes by itself
    found = cv2.connectedComponentsWithStatsWithAlgorithm(mask, 8, cv2.CV_32S, cv2.CCL_GRANA)
    return found[0], np.asarray(found[1]), np.asarray(found[2])


def _slanted_lines(narrow: npt.NDArray[Any], width: int, length: int) -> Mask:
    """Return the pieces of a mask that fit into a narrow, long rectangle of any direction."""
    count, labels, stats = find_pieces(narrow)
    line = np.zeros(count, np.bool_)
    extent = np.hypot(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
    for number in (np.flatnonzero(extent[1:] >= length) + 1).tolist():
        x, y, w, h = stats[number, :4].tolist()
        points = cv2.findNonZero((labels[y : y + h, x : x + w] == number).astype(np.uint8))
        sides = sorted(cv2.minAreaRect(points)[1])
        line[number] = sides[0] <= width and sides[1] >= length
    return np.asarray(line[labels]) if line.any() else np.zeros(narrow.shape, np.bool_)


def _smooth(pixels: Pixels) -> Pixels:
    contiguous = np.ascontiguousarray(pixels)
    return np.asarray(cv2.medianBlur(contiguous, 5)) if min(pixels.shape[:2]) >= 5 else contiguous


def _local_entropy(grey: npt.NDArray[Any], side: int) -> npt.NDArray[np.float32]:
    """Return (h, w) bits: the entropy of the grey steps in the window around each pixel."""
    steps = grey // (256 // _GREY_STEPS)
    entropy = np.zeros(grey.shape, np.float32)
    for step in np.unique(steps).tolist():
        share = cv2.blur((steps == step).astype(np.float32), (side, side), borderType=cv2.BORDER_REFLECT_101)
        entropy -= share * np.log2(np.maximum(share, np.float32(1e-9)))
    return entropy
