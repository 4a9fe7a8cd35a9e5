"""Where tissue is: the regions of a slide, and how much of each tile they cover."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import shapely

from simtriplet.wsi.errors import SettingsError, UnknownNameError
from simtriplet.wsi.overview import Overview
from simtriplet.wsi.tissue_detectors import DETECTORS, Mask, OtsuDetector, TissueDetector, find_pieces

__all__ = [
    "DETECTORS",
    "OtsuDetector",
    "TissueDetector",
    "TissueMap",
    "TissueSpec",
    "label_regions",
    "map_tissue",
    "overview_um_per_px",
]

_UM_PER_PX, _LARGE_UM_PER_PX = 8.0, 16.0
_LARGE_PX = 2048
_PX_A_TILE = 8

MASK_PREFIX = "mask:"


@dataclass(frozen=True, slots=True)
class TissueSpec:
    """How tissue is found.

    Attributes:
        detector: a name in DETECTORS; or `mask:PATH`, the user's own tissue: a PNG of the slide's aspect (white is tissue),
            annotations (GeoJSON, XML, CSV, any class), or a folder that holds one such file a slide, named by its id.
        min_region_um2: smaller pieces are dropped, square micrometres.
        max_hole_um2: smaller holes are filled, square micrometres.
    """

    detector: str = "otsu"
    min_region_um2: float = 50_000.0
    max_hole_um2: float = 50_000.0

    def __post_init__(self) -> None:
        if self.mask_path is None and self.detector not in DETECTORS:
            try:
                DETECTORS.get(self.detector)
            except UnknownNameError as error:
                raise UnknownNameError(f"{error}, mask:PATH") from None
        for name in ("min_region_um2", "max_hole_um2"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name} {getattr(self, name)}: must be zero or a positive number; correct it")

    @property
    def mask_path(self) -> Path | None:
        """The user's own mask or folder of masks, None where tissue is looked for."""
        path = self.detector.removeprefix(MASK_PREFIX)
        return Path(path) if path and self.detector.startswith(MASK_PREFIX) else None

    def describe(self) -> dict[str, Any]:
        """Return the settings for a store's attributes: of a path only the last name."""
        values = dataclasses.asdict(self)
        return values if self.mask_path is None else values | {"detector": MASK_PREFIX + self.mask_path.name}


def overview_um_per_px(slide_um: float, tile_um: float) -> float:
    """Return the resolution at which tissue is looked for: 8 um, on slides of more than 16 mm up to 16.

    There it takes a quarter of the time, and a tile still spans at least eight pixels of the mask in each direction.

    Args:
        slide_um: longer side of the slide, micrometres.
        tile_um: side of a tile, micrometres.
    """
    if slide_um <= _LARGE_PX * _UM_PER_PX:
        return _UM_PER_PX
    return min(_LARGE_UM_PER_PX, max(_UM_PER_PX, tile_um / _PX_A_TILE))


class TissueMap:
    """Tissue regions on the pixels of an overview.

    Attributes:
        regions: (h, w) uint16, region number plus one; 0 outside tissue.
        downsample: level-0 pixels per pixel of `regions`.
        n_regions: number of regions.
    """

    def __init__(self, regions: npt.NDArray[np.uint16], downsample: float) -> None:
        self.regions = regions
        self.downsample = downsample
        self.n_regions = int(regions.max(initial=0))
        self._sums = cv2.integral((regions > 0).astype(np.uint8), sdepth=cv2.CV_64F)

    def coverage(self, base_xy: npt.NDArray[np.int64], base_size: float) -> npt.NDArray[np.float64]:
        """Return the exact share of each tile's area that the mask's pixels cover.

        A summed-area table, interpolated between pixel corners, integrates the mask over any rectangle exactly.

        Args:
            base_xy: (n, 2) level-0 pixels, top-left.
            base_size: side of a tile, level-0 pixels.
        """
        low: npt.NDArray[np.float64] = np.asarray(base_xy / self.downsample)
        high: npt.NDArray[np.float64] = np.asarray((base_xy + base_size) / self.downsample)
        area = (
            self._integral(high[:, 0], high[:, 1])
            - self._integral(low[:, 0], high[:, 1])
            - self._integral(high[:, 0], low[:, 1])
            + self._integral(low[:, 0], low[:, 1])
        )
        # differences of large sums leave errors near 1e-12
        return np.asarray(np.clip(np.round(area / (base_size / self.downsample) ** 2, 9), 0.0, 1.0))

    def _integral(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        height, width = self.regions.shape
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        x0, y0 = np.minimum(x.astype(np.int64), width - 1), np.minimum(y.astype(np.int64), height - 1)
        fx, fy = x - x0, y - y0
        s = self._sums
        upper = s[y0, x0] * (1 - fx) + s[y0, x0 + 1] * fx
        lower = s[y0 + 1, x0] * (1 - fx) + s[y0 + 1, x0 + 1] * fx
        return np.asarray(upper * (1 - fy) + lower * fy)

    def region_of(self, base_xy: npt.NDArray[np.int64], base_size: float) -> npt.NDArray[np.int32]:
        """Return (n,) the region that covers most of each tile, -1 where there is none."""
        found = np.full(len(base_xy), -1, np.int32)
        height, width = self.regions.shape
        low = base_xy / self.downsample
        high = (base_xy + base_size) / self.downsample
        # regions never touch, so a tile that is all tissue lies in one of them
        whole = self.coverage(base_xy, base_size) == 1
        middle = np.minimum(((low + high) / 2).astype(np.int64), [width - 1, height - 1])
        found[whole] = self.regions[middle[whole, 1], middle[whole, 0]].astype(np.int32) - 1
        for place in np.flatnonzero(~whole).tolist():
            (x0, y0), (x1, y1) = low[place].tolist(), high[place].tolist()
            rows, row_weights = _overlap(y0, y1, height)
            cols, col_weights = _overlap(x0, x1, width)
            weights = np.multiply.outer(row_weights, col_weights).ravel()
            areas = np.bincount(self.regions[rows, cols].ravel(), weights, minlength=1)
            if areas[1:].any():
                found[place] = int(areas[1:].argmax())
        return found

    def polygons(self) -> list[shapely.MultiPolygon]:
        """Return one MultiPolygon per region, level-0 pixels, through the centres of the mask's border pixels."""
        return [self._polygon(number) for number in range(1, self.n_regions + 1)]

    def _polygon(self, number: int) -> shapely.MultiPolygon:
        mask = (self.regions == number).astype(np.uint8)
        contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        shells: dict[int, list[npt.NDArray[Any]]] = {}
        for place, contour in enumerate(contours):
            points = (contour.reshape(-1, 2) + 0.5) * self.downsample
            parent = int(hierarchy[0][place][3])
            shells.setdefault(place if parent < 0 else parent, []).append(points)
        polygons = [
            shapely.Polygon(rings[0], [hole for hole in rings[1:] if len(hole) >= 3])
            for rings in shells.values()
            if len(rings[0]) >= 3
        ]
        whole = shapely.union_all([polygon if polygon.is_valid else polygon.buffer(0) for polygon in polygons])
        parts = [part for part in getattr(whole, "geoms", [whole]) if part.geom_type == "Polygon" and not part.is_empty]
        return shapely.MultiPolygon(parts)


def _overlap(low: float, high: float, length: int) -> tuple[slice, npt.NDArray[np.float64]]:
    """Return which of `length` pixels an interval touches, and how much of each."""
    first, last = max(0, math.floor(low)), min(length, math.ceil(high))
    pixels = np.arange(first, max(first, last))
    return slice(first, max(first, last)), np.minimum(pixels + 1, high) - np.maximum(pixels, low)


def map_tissue(overview: Overview, spec: TissueSpec, *, slide_mpp: float) -> TissueMap:
    """Find the tissue regions of a slide.

    Args:
        overview: the slide at low resolution.
        spec: how to find tissue.
        slide_mpp: micrometres per level-0 pixel.

    Returns:
        The regions; there may be none.
    """
    um_per_px = slide_mpp * overview.downsample
    detector: TissueDetector = DETECTORS.get(spec.detector)()
    mask = detector.detect(overview.pixels, um_per_px)
    # neither limit may swallow a slide that is small itself
    whole_um2 = mask.size * um_per_px**2
    filled = _fill_holes(mask, min(spec.max_hole_um2, whole_um2 / 50) / um_per_px**2)
    regions = label_regions(filled, min(spec.min_region_um2, whole_um2 / 50) / um_per_px**2)
    return TissueMap(regions, overview.downsample)


def _fill_holes(mask: Mask, max_px: float) -> Mask:
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] <= max_px
    height, width = mask.shape
    right = stats[:, cv2.CC_STAT_LEFT] + stats[:, cv2.CC_STAT_WIDTH]
    bottom = stats[:, cv2.CC_STAT_TOP] + stats[:, cv2.CC_STAT_HEIGHT]
    inside = (stats[:, cv2.CC_STAT_LEFT] > 0) & (stats[:, cv2.CC_STAT_TOP] > 0) & (right < width) & (bottom < height)
    fill = small & inside
    fill[0] = False
    return np.asarray(mask | fill[labels])


def label_regions(mask: Mask, min_px: float) -> npt.NDArray[np.uint16]:
    """Number the contiguous pieces of an (h, w) mask from 1, the largest first; those under `min_px` pixels become 0."""
    count, labels, stats = find_pieces(mask.astype(np.uint8))
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
    areas[0] = 0
    order = [
        label for label in np.argsort(-areas, kind="stable").tolist() if label and areas[label] >= max(1.0, min_px)
    ]
    numbers = np.zeros(count, np.uint16)
    for number, label in enumerate(order[: np.iinfo(np.uint16).max - 1], start=1):
        numbers[label] = number
    return np.asarray(numbers[labels], dtype=np.uint16)
