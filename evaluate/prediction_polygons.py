"""Predictions as GeoJSON that QuPath opens: one polygon a tile, or one for each connected area of a class."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from simtriplet.evaluate.palette import class_colours
from simtriplet.evaluate.prediction import SlidePrediction
from simtriplet.wsi.store import TileStore

__all__ = ["GEOJSON_START", "prediction_geojson", "tile_boxes"]

GEOJSON_START = '{"type": "FeatureCollection", "generator": "SimTriplet predict", "features": ['
"""By which predict knows its own files."""

_SNAP_PX = 1.5
"""Lattice positions are rounded once, so that edges which are one may lie this far apart, level-0 pixels."""


def tile_boxes(store: TileStore) -> npt.NDArray[np.float64]:
    """Return (n, 4) left, top, right, bottom of the tiles, level-0 pixels.

    Overlapping tiles are only as large as their stride, about their centre. Edges that neighbours share are equal to the
    last bit, so that no slivers are left between them.
    """
    per_px = store.mpp / store.base_mpp
    step = min(store.size_px, store.stride_px) * per_px
    start = np.asarray(store.base_xy() + (store.size_px * per_px - step) / 2, dtype=np.float64)
    return np.concatenate([start, np.column_stack([_far_edges(start[:, axis], step) for axis in (0, 1)])], axis=1)


def _far_edges(near: npt.NDArray[np.float64], step: float) -> npt.NDArray[np.float64]:
    """Return where each interval ends: at the start of the next one, if one starts there."""
    far = near + step
    if not len(near):
        return far
    starts = np.unique(near)
    after = np.clip(np.searchsorted(starts, far), 1, max(1, len(starts) - 1))
    around = starts[np.minimum(np.stack([after - 1, after]), len(starts) - 1)]
    nearest = np.take_along_axis(around, np.abs(around - far).argmin(axis=0)[None], axis=0)[0]
    return np.where(np.abs(nearest - far) <= _SNAP_PX, nearest, far)


def prediction_geojson(store: TileStore, prediction: SlidePrediction, *, merged: bool = True) -> str:
    """Return a FeatureCollection of QuPath annotations, level-0 pixels, as text.

    Each has the class as classification, with its colour, and as measurements the mean probability of every class and
    the number of tiles.

    Args:
        store: the tiles.
        prediction: of these tiles.
        merged: join tiles of one class that share an edge; else every tile is a feature of its own.
    """
    boxes = shapely.box(*tile_boxes(store).T)
    codes = prediction.codes
    features = []
    for code in range(len(prediction.classes)):
        places = np.flatnonzero(codes == code)
        parts = _areas(boxes, places) if merged else ((boxes[place], np.array([place])) for place in places.tolist())
        features += [_feature(area, prediction, code, inside) for area, inside in parts]
    return GEOJSON_START + json.dumps(features, ensure_ascii=False)[1:] + "}\n"


def _areas(boxes: Any, places: npt.NDArray[np.int64]) -> Iterator[tuple[shapely.Polygon, npt.NDArray[np.int64]]]:
    """Yield each connected area and the tiles inside it."""
    joined = shapely.union_all(boxes[places])
    areas = [area for area in shapely.get_parts(joined).tolist() if area.area > 0]
    centres = shapely.centroid(boxes[places])
    if not areas:
        return
    owners, tiles = shapely.STRtree(centres).query(areas, predicate="contains")
    order = np.lexsort([tiles, owners])
    cuts = np.searchsorted(owners[order], np.arange(1, len(areas)))
    for area, inside in zip(areas, np.split(tiles[order], cuts), strict=True):
        # the corners of tiles that lie within a straight edge say nothing; a normalised ring starts at a true corner
        yield shapely.simplify(shapely.normalize(area), 0), places[inside]


def _feature(
    area: shapely.Polygon, prediction: SlidePrediction, code: int, inside: npt.NDArray[np.int64]
) -> dict[str, Any]:
    colour = class_colours(len(prediction.classes))[code]
    means = prediction.probabilities[inside].mean(axis=0).tolist()
    measured = {f"Probability: {name}": mean for name, mean in zip(prediction.classes, means, strict=True)}
    return {
        "type": "Feature",
        "geometry": shapely.geometry.mapping(area),
        "properties": {
            "objectType": "annotation",
            "classification": {
                "name": prediction.classes[code],
                "color": [round(255 * channel) for channel in colour],
            },
            "measurements": {**measured, "Tiles": len(inside)},
        },
    }
