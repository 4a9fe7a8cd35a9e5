"""Tiles as GeoParquet 1.1: a row a tile with its square and all columns, which geopandas and DuckDB open."""

import json
from pathlib import Path
from typing import Any

import shapely

from simtriplet.wsi.export_request import ExportRequest
from simtriplet.wsi.export_table import tile_columns
from simtriplet.wsi.interop_package import interop_package
from simtriplet.wsi.store import TileStore

__all__ = ["write_geoparquet"]

_ROWS = 1 << 16


def write_geoparquet(store: TileStore, path: Path, request: ExportRequest) -> None:
    """Write one slide's tiles.

    The geometry is the tile's square in level-0 pixels, x to the right and y downwards, and has no coordinate reference
    system. The file's metadata `simtriplet` says so, with the slide's micrometres per pixel.

    Args:
        store: the tiles.
        path: the file.
        request: predictions.

    Raises:
        MissingDependencyError: if pyarrow is not installed.
    """
    arrow: Any = interop_package("pyarrow", "export to 'geoparquet'", extra="parquet")
    parquet: Any = interop_package("pyarrow.parquet", "export to 'geoparquet'", extra="parquet")
    table = tile_columns(store, request)
    corners = store.base_xy().astype(float)
    squares = shapely.box(*corners.T, *(corners + store.base_size_px).T)
    columns: dict[str, Any] = {
        "slide_id": arrow.array([store.slide_id] * len(store), arrow.string()),
        "patient_id": arrow.array([store.patient_id] * len(store), arrow.string()),
        "tile_id": arrow.array(table.tile_id, arrow.string()),
    }
    numbers = table.numbers
    # also where a slide has no labels: a reader of a folder goes by the columns of its first file
    for name in dict.fromkeys(("label", *table.columns)):
        columns[name] = numbers[name] if name in numbers else arrow.array(table.names(name), arrow.string())
    columns["geometry"] = arrow.array(shapely.to_wkb(squares).tolist(), arrow.binary())
    metadata = {"geo": json.dumps(_geo(squares)), "simtriplet": json.dumps(_about(store))}
    written = arrow.table(columns).replace_schema_metadata(metadata)
    parquet.write_table(written, path, compression="zstd", row_group_size=_ROWS)


def _geo(squares: Any) -> dict[str, Any]:
    """Return what the GeoParquet specification wants to be told."""
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": None, "edges": "planar"}
    if len(squares):
        column["bbox"] = shapely.total_bounds(squares).tolist()
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _about(store: TileStore) -> dict[str, Any]:
    return {
        "units": {"geometry": "level-0 pixels", "x": "level-0 pixels", "y": "level-0 pixels"},
        "base_mpp": store.base_mpp,
        "mpp": store.mpp,
        "size_px": store.size_px,
        "slide_id": store.slide_id,
        "tiles_id": store.attributes["tiles_id"],
    }
