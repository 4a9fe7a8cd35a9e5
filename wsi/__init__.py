"""Slides in, tile stores out: readers, tiling, tissue, annotations, the store and its neighbour index.

Names are imported on first use, so that reading a store needs no slide library.
"""

import importlib
from typing import Any

_HOMES = {
    "Categorical": "table",
    "GateSpec": "gate_spec",
    "GridRule": "neighbours",
    "KnnRule": "neighbours",
    "NamedRegion": "annotation",
    "NeighbourGraph": "store",
    "QualitySpec": "quality",
    "RadiusRule": "neighbours",
    "RingRule": "neighbours",
    "SimTripletError": "errors",
    "SlideInfo": "slide",
    "SlideJob": "tiling",
    "SlideReader": "slide",
    "SyntheticSlideSpec": "synthetic",
    "TileRequest": "tiling",
    "TileStore": "store",
    "TilingSpec": "geometry",
    "TissueSpec": "tissue",
    "build_neighbours": "neighbour_index",
    "check_store": "check",
    "draw_cohort": "synthetic",
    "draw_slide": "synthetic",
    "export_stores": "export_formats",
    "import_tiles": "tile_import",
    "index_store": "neighbour_index",
    "open_slide": "slide",
    "measure_neighbours": "neighbour_statistics",
    "open_stores": "store",
    "read_annotations": "annotation_file",
    "read_coordinates": "h5_coordinates",
    "read_geojson": "annotation",
    "score_tiles": "quality",
    "tile_slide": "tiling",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
