"""How much room an export takes, about and at most: what a full disk is told with."""

import json
from collections.abc import Sequence

from simtriplet.wsi.export_pixels import PictureFiles
from simtriplet.wsi.export_request import ExportRequest
from simtriplet.wsi.export_table import tile_columns
from simtriplet.wsi.store import TileStore

__all__ = ["parquet_room", "picture_room", "row_room", "table_room"]

_HEAD_BYTES = 1 << 16
"""Of a file without any tile."""

_FRAME_BYTES = 1 << 20
"""Of SpatialData and AnnData without any tile: some hundred small files, and HDF5's own tables."""

_ROW_BYTES, _CELL_BYTES = 640, 24
"""Of a tile its square and names as GeoJSON, the longest; of a column its number, the name comes to that."""

_PACKED_ROW_BYTES, _PACKED_CELL_BYTES = 64, 8
"""The same in Parquet, which packs squares and names well, numbers hardly."""

_POINT_BYTES, _PAIR_BYTES = 48, 48
"""Of an outline's point as text; of a neighbour in two sparse matrices."""

_PICTURE_BYTES = 4096
"""Beside the pixels of a tile: what a file leaves of its last block, a line of CSV; in a tar two heads and the JSON."""

_JPEG_SHARE = 1 / 3
"""Of raw pixels, for quality up to 95."""


def row_room(stores: Sequence[TileStore], request: ExportRequest) -> int:
    """Return bytes for a text a tile and the tissue outlines (GeoJSON).

    Raises:
        StoreError: if a store is damaged.
    """
    return sum(_HEAD_BYTES + _rows(store, request) for store in stores)


def parquet_room(stores: Sequence[TileStore], request: ExportRequest) -> int:
    """Return bytes for a row a tile (GeoParquet).

    Raises:
        StoreError: if a store is damaged.
    """
    counts = ((len(store), len(tile_columns(store, request).columns)) for store in stores)
    return sum(_HEAD_BYTES + tiles * (_PACKED_ROW_BYTES + cells * _PACKED_CELL_BYTES) for tiles, cells in counts)


def table_room(stores: Sequence[TileStore], request: ExportRequest) -> int:
    """Return bytes for the same with features, neighbour indices and the thumbnail (AnnData, SpatialData), not compressed.

    Raises:
        StoreError: if a store is damaged.
        NeighbourError: if a neighbour index is.
    """
    return sum(_FRAME_BYTES + _rows(store, request) + _matrices(store) for store in stores)


def picture_room(stores: Sequence[TileStore], request: ExportRequest) -> int:
    """Return bytes for the tiles as pictures (picture folders, WebDataset): as stored where they are copied.

    Raises:
        StoreError: if a store is damaged.
    """
    return sum(_pictures(store, request) + len(store) * _PICTURE_BYTES for store in stores)


def _rows(store: TileStore, request: ExportRequest) -> int:
    columns = tile_columns(store, request).columns
    cells = sum(_CELL_BYTES + len(json.dumps(name, ensure_ascii=False).encode()) for name in columns)
    points = sum(len(ring) for region in store.tissue_rings() for polygon in region for ring in polygon)
    return len(store) * (_ROW_BYTES + cells) + points * _POINT_BYTES


def _matrices(store: TileStore) -> int:
    features = sum(store.features(name).nbytes for name in store.feature_names())
    pairs = sum(len(store.neighbours(name).indices) for name in store.neighbour_names())
    return features + pairs * _PAIR_BYTES + store.thumbnail().nbytes


def _pictures(store: TileStore, request: ExportRequest) -> int:
    files = PictureFiles(store, request)
    if files.is_copied:
        return sum(path.stat().st_size for path in store.images.path.rglob("*") if path.is_file())
    raw = len(store) * store.size_px**2 * 3
    return int(raw * _JPEG_SHARE) if files.ending == "jpg" and request.jpeg_quality <= 95 else raw
