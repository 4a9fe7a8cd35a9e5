"""The gate of annotated borders: two tiles with a drawn border between them are not of the same tissue."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from simtriplet.wsi.annotation import NamedRegion

__all__ = ["BorderGate"]

_PIECE_EDGES = 32


class BorderGate:
    """No border of an annotated class lies between the centres of the two tiles.

    The areas of one class are joined first, so that the line where two of them touch is no border. A pair is dropped where

    * the straight line between its centres meets the outline of a class, be it in one point or along it; a pair that stays
      thus has both centres in just the same classes, or in none; or
    * both tiles have a class, and not the same.

    Args:
        regions: annotated areas, level-0 pixels.
        centres: (n, 2) float64, level-0 pixels, centre of each tile.
        classes: (n,) int, class of each tile as a whole, -1 for none; None when that is not looked at.
        source: what `record` says of where the regions come from.
    """

    def __init__(
        self,
        regions: Sequence[NamedRegion],
        centres: npt.NDArray[np.float64],
        *,
        classes: npt.NDArray[np.integer[Any]] | None = None,
        source: dict[str, Any] | None = None,
    ) -> None:
        self._centres = centres
        self._classes = np.full(len(centres), -1) if classes is None else np.asarray(classes)
        self._record = {"border": True, "border_regions": len(regions), **(source or {})}
        names = sorted({region.name for region in regions})
        areas = [shapely.union_all([region.area for region in regions if region.name == name]) for name in names]
        self._tree = shapely.STRtree([piece for area in areas for piece in _outline(area)])

    def record(self) -> dict[str, Any]:
        """See PairGate."""
        return self._record

    def keep(self, anchors: npt.NDArray[np.int32], others: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """See PairGate."""
        a, b = self._classes[anchors], self._classes[others]
        kept = np.asarray((a == b) | (a < 0) | (b < 0))
        close = self._close_to_border(anchors, others)
        # the same line whichever tile is the anchor
        ends = np.sort(np.column_stack([anchors[close], others[close]]), axis=1)
        lines = shapely.linestrings(self._centres[ends])
        kept[close[self._tree.query(lines, predicate="intersects")[0]]] = False
        return kept

    def _close_to_border(
        self, anchors: npt.NDArray[np.int32], others: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.integer[Any]]:
        """Return the places of pairs whose anchor has a piece of outline within reach; making lines of all would take long."""
        if not len(anchors) or not len(self._tree):
            return np.zeros(0, np.intp)
        reach = np.abs(self._centres[others] - self._centres[anchors]).max()
        tiles, places = np.unique(anchors, return_inverse=True)
        x, y = self._centres[tiles].T
        close = np.zeros(len(tiles), np.bool_)
        close[self._tree.query(shapely.box(x - reach, y - reach, x + reach, y + reach))[0]] = True
        return np.flatnonzero(close[places])


def _outline(area: shapely.Geometry) -> Iterator[shapely.LineString]:
    """Cut the outlines of an area into lines of few edges, whose boxes are small."""
    for ring in shapely.get_parts(shapely.boundary(shapely.get_parts(area))):
        points = shapely.get_coordinates(ring)
        for start in range(0, len(points) - 1, _PIECE_EDGES):
            yield shapely.LineString(points[start : start + _PIECE_EDGES + 1])
