"""Tissue that a person outlined: polygons as a tissue map, whose coverage is exact."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import shapely

from simtriplet.wsi.area_cover import Cover
from simtriplet.wsi.tissue import TissueMap

__all__ = ["PolygonTissue"]

Area: TypeAlias = shapely.Polygon | shapely.MultiPolygon
_MAX_REGIONS = int(np.iinfo(np.uint16).max) - 1


class PolygonTissue(TissueMap):
    """Tissue regions given as polygons.

    Every contiguous area is one region, the largest first. `regions` is only their picture; how much of a tile they cover is
    computed from the polygons themselves.

    Args:
        areas: level-0 pixels; they may overlap.
        size_px: (width, height) of the picture.
        downsample: level-0 pixels per pixel of the picture.
    """

    def __init__(self, areas: Sequence[Area], size_px: tuple[int, int], downsample: float) -> None:
        slide = shapely.box(0, 0, size_px[0] * downsample, size_px[1] * downsample)
        union = shapely.intersection(shapely.union_all(list(areas)), slide)
        parts = [part for part in shapely.get_parts(union).tolist() if part.geom_type == "Polygon" and part.area > 0]
        parts.sort(key=lambda part: -part.area)
        self._parts = parts[:_MAX_REGIONS]
        super().__init__(_draw(self._parts, size_px, downsample), downsample)
        self.n_regions = len(self._parts)

    def coverage(self, base_xy: npt.NDArray[np.int64], base_size: float) -> npt.NDArray[np.float64]:
        """Return (n,) the exact share of each tile's area that the polygons cover; see TissueMap."""
        # regions do not overlap, so their shares add up
        share = Cover(base_xy, base_size).shares(shapely.MultiPolygon(self._parts))
        return np.asarray(np.clip(np.round(share, 9), 0.0, 1.0))

    def region_of(self, base_xy: npt.NDArray[np.int64], base_size: float) -> npt.NDArray[np.int32]:
        """Return (n,) the region that covers most of each tile, -1 where there is none."""
        cover = Cover(base_xy, base_size)
        found = np.full(len(base_xy), -1, np.int32)
        best = np.zeros(len(base_xy))
        for number, part in enumerate(self._parts):
            tiles, shares = cover.touched(part)
            more = shares > best[tiles] + 1e-9
            found[tiles[more]] = number
            best[tiles[more]] = shares[more]
        return found

    def polygons(self) -> list[shapely.MultiPolygon]:
        """Return one MultiPolygon per region, level-0 pixels, as they were given."""
        return [shapely.MultiPolygon([part]) for part in self._parts]


def _draw(parts: Sequence[shapely.Polygon], size_px: tuple[int, int], downsample: float) -> npt.NDArray[np.uint16]:
    """Paint the regions (number plus one), the smaller over the larger."""
    picture = np.zeros((size_px[1], size_px[0]), np.int32)
    for number, part in enumerate(parts, start=1):
        # ours count from pixel corners, OpenCV's from pixel centres; with shift=4 it takes sixteenths of a pixel
        rings: list[npt.NDArray[Any]] = [
            np.rint((shapely.get_coordinates(ring) / downsample - 0.5) * 16).astype(np.int32)
            for ring in (part.exterior, *part.interiors)
        ]
        cv2.fillPoly(picture, rings, number, shift=4)
    return picture.astype(np.uint16)
