"""Tiles as GeoJSON that QuPath opens: every tile a detection with class and measurements, tissue regions as annotations."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from simtriplet.wsi.class_colours import class_colours
from simtriplet.wsi.export_marks import GEOJSON_START
from simtriplet.wsi.export_request import ExportRequest
from simtriplet.wsi.export_table import PREDICTED, TileColumns, tile_columns, tissue_regions
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.table import Categorical

__all__ = ["TISSUE_CLASS", "write_geojson"]

TISSUE_CLASS = "Tissue"
_TISSUE_COLOUR = (0.5, 0.5, 0.5)
_PLACES = ("x", "y", "row", "col", "tissue_id")


def write_geojson(store: TileStore, path: Path, request: ExportRequest) -> None:
    """Write one slide's tiles and tissue regions, level-0 pixels.

    A tile's class is the predicted one where there are predictions, else its label. Its measurements are the numeric columns
    (tissue fraction, quality scores, probabilities) and the numbers x, y, row, col and tissue_id. Where both are there the
    label is kept as the property `label`.

    Args:
        store: the tiles.
        path: the file.
        request: predictions.
    """
    with path.open("w", encoding="utf-8") as file:
        file.write(GEOJSON_START)
        separator = "\n"
        for feature in _features(store, request):
            file.write(separator + json.dumps(feature, ensure_ascii=False, allow_nan=False))
            separator = ",\n"
        file.write("\n]}\n")


def _features(store: TileStore, request: ExportRequest) -> Iterator[dict[str, Any]]:
    for number, region in enumerate(tissue_regions(store)):
        tissue: dict[str, Any] = {"objectType": "annotation", "name": f"tissue {number}"}
        tissue["classification"] = _classification(TISSUE_CLASS, _TISSUE_COLOUR)
        shape = region.geoms[0] if len(region.geoms) == 1 else region
        yield _feature(shapely.geometry.mapping(shape), tissue)
    table = tile_columns(store, request)
    labels, predicted = table.names("label"), table.names(PREDICTED)
    classes = {name: _classification(name, colour) for name, colour in _colours(table)}
    # QuPath takes measurements that are numbers, and no others
    columns = {
        name: (values.astype(np.uint8) if values.dtype.kind == "b" else values).tolist()
        for name, values in table.numbers.items()
    }
    names = [*(name for name in columns if name not in _PLACES), *(name for name in _PLACES if name in columns)]
    for tile, (x, y) in enumerate(store.base_xy().tolist()):
        about: dict[str, Any] = {"objectType": "detection", "name": table.tile_id[tile]}
        shown = predicted[tile] if predicted[tile] is not None else labels[tile]
        if shown is not None:
            about["classification"] = classes[shown]
        if labels[tile] is not None:
            about["label"] = labels[tile]
        # what is unknown is no number, which JSON does not have
        about["measurements"] = {name: columns[name][tile] for name in names if math.isfinite(columns[name][tile])}
        yield _feature(shapely.geometry.mapping(tile_square(x, y, store.base_size_px)), about)


def _colours(table: TileColumns) -> Iterator[tuple[str, Sequence[float]]]:
    """Yield every class of predictions and labels with its colour."""
    columns = (table.columns.get(name) for name in (PREDICTED, "label"))
    names = dict.fromkeys(name for column in columns if isinstance(column, Categorical) for name in column.categories)
    yield from zip(names, class_colours(len(names)), strict=True)


def _classification(name: str, colour: Sequence[float]) -> dict[str, Any]:
    """Return a class as QuPath reads it; since 0.4 it refuses a file in which one has no colour."""
    return {"name": name, "color": [round(255 * channel) for channel in colour]}


def tile_square(x: float, y: float, side: float) -> shapely.Polygon:
    """Return the outline of a tile from its top-left corner, all level-0 pixels."""
    return shapely.box(x, y, x + side, y + side)


def _feature(geometry: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}
