"""Tiles as SpatialData: table, tile squares, tissue regions and thumbnail, in level-0 pixels and in micrometres."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from simtriplet.wsi.export_anndata import make_anndata
from simtriplet.wsi.export_request import ExportRequest
from simtriplet.wsi.export_table import tissue_regions
from simtriplet.wsi.interop_package import interop_package
from simtriplet.wsi.store import TileStore

__all__ = ["BASE_PIXELS", "MICROMETRES", "write_spatialdata"]

BASE_PIXELS = "global"
"""SpatialData's name for what everything is placed in by default: here level-0 pixels."""

MICROMETRES = "micrometres"

_TABLE, _TILES, _TISSUE, _THUMBNAIL = "table", "tiles", "tissue", "thumbnail"


def write_spatialdata(store: TileStore, path: Path, request: ExportRequest) -> None:
    """Write one slide as a SpatialData folder.

    `tables/table` is the AnnData of `make_anndata` and annotates `shapes/tiles`, the squares of the tiles;
    `shapes/tissue` are the tissue regions and `images/thumbnail` the whole slide at low resolution. All have two coordinate
    systems: "global", level-0 pixels, and "micrometres".

    Args:
        store: the tiles.
        path: the folder, which must not exist.
        request: predictions.

    Raises:
        MissingDependencyError: if spatialdata is not installed.
        StoreError: if the store's features or its table are damaged or of older tiles.
        NeighbourError: if a neighbour index is.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own and its packages' future versions
        spatialdata: Any = interop_package("spatialdata", "export to 'spatialdata'")
        models: Any = interop_package("spatialdata.models", "export to 'spatialdata'")
        elements = {
            "images": {_THUMBNAIL: _thumbnail(store, models)},
            "shapes": _shapes(store, models),
            "tables": {_TABLE: _table(store, request, models)},
        }
        spatialdata.SpatialData(**elements, attrs={"simtriplet": store.attributes}).write(path)


def _systems(store: TileStore, base_px: float, axes: tuple[str, ...] = ("x", "y")) -> dict[str, Any]:
    """Return the transformations of an element of which one unit is `base_px` level-0 pixels."""
    transformations: Any = interop_package("spatialdata.transformations", "export to 'spatialdata'")
    scales = {BASE_PIXELS: base_px, MICROMETRES: base_px * store.base_mpp}
    return {
        name: transformations.Identity() if factor == 1 else transformations.Scale([factor] * len(axes), axes=axes)
        for name, factor in scales.items()
    }


def _thumbnail(store: TileStore, models: Any) -> Any:
    return models.Image2DModel.parse(
        np.ascontiguousarray(store.thumbnail().transpose(2, 0, 1)),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations=_systems(store, store.thumbnail_downsample),
    )


def _shapes(store: TileStore, models: Any) -> dict[str, Any]:
    geopandas: Any = interop_package("geopandas", "export to 'spatialdata'")
    corners = store.base_xy().astype(float)
    squares = shapely.box(*corners.T, *(corners + store.base_size_px).T)
    areas = {_TILES: squares, _TISSUE: tissue_regions(store)}
    return {
        name: models.ShapesModel.parse(
            geopandas.GeoDataFrame(geometry=list(found)), transformations=_systems(store, 1.0)
        )
        for name, found in areas.items()
        if len(found)
    }


def _table(store: TileStore, request: ExportRequest, models: Any) -> Any:
    pandas: Any = interop_package("pandas", "export to 'spatialdata'")
    table = make_anndata(store, request)
    if not len(store):
        return models.TableModel.parse(table)  # without tiles there is no element that it could be of
    table.obs["region"] = pandas.Categorical([_TILES] * len(store))
    table.obs["tile"] = np.arange(len(store))
    return models.TableModel.parse(table, region=_TILES, region_key="region", instance_key="tile")
