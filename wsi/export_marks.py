"""By what each output is known as this program's: nothing else is ever replaced, be its name the same."""

import json
from pathlib import Path
from typing import Any

from simtriplet.wsi.interop_package import interop_package

__all__ = ["GEOJSON_START", "begins_with", "is_own_geojson", "is_own_h5ad", "is_own_parquet", "is_own_spatialdata"]

GEOJSON_START = '{"type": "FeatureCollection", "generator": "SimTriplet export", "features": ['
"""RFC 7946 lets a collection say more than its features, and readers pass over what they do not know."""

_MARK = "simtriplet"


def is_own_geojson(path: Path) -> bool:
    """Tell whether a file is GeoJSON that an export wrote; no other file, folder or device is."""
    return begins_with(path, GEOJSON_START)


def begins_with(path: Path, text: str) -> bool:
    """Tell whether there is an ordinary file that begins with a text."""
    start = text.encode()
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return file.read(len(start)) == start
    except OSError:
        return False


def is_own_h5ad(path: Path) -> bool:
    """Tell whether a file is AnnData that this program wrote."""
    h5py: Any = interop_package("h5py", "export to 'anndata'")
    try:
        with h5py.File(path, "r") as file:
            return _MARK in file["uns"]
    except (OSError, KeyError, TypeError, ValueError):
        return False


def is_own_parquet(path: Path) -> bool:
    """Tell whether a file is GeoParquet that this program wrote."""
    parquet: Any = interop_package("pyarrow.parquet", "export to 'geoparquet'", extra="parquet")
    try:
        return _MARK.encode() in (parquet.read_schema(path).metadata or {})
    except (OSError, ValueError):
        return False


def is_own_spatialdata(path: Path) -> bool:
    """Tell whether a folder is SpatialData that this program wrote."""
    try:
        return _MARK in json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    except (OSError, KeyError, TypeError, ValueError):
        return False
