"""Slides in, tile stores out: readers, tiling, tissue, annotations, the store and its neighbour index.

Names are imported on first use, so that reading a store needs no slide library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simtriplet.wsi.annotation import NamedRegion, read_geojson
    from simtriplet.wsi.annotation_file import read_annotations
    from simtriplet.wsi.check import check_store
    from simtriplet.wsi.errors import SimTripletError
    from simtriplet.wsi.export_formats import export_stores
    from simtriplet.wsi.export_request import ExportRequest
    from simtriplet.wsi.gate_spec import GateSpec
    from simtriplet.wsi.geometry import TilingSpec
    from simtriplet.wsi.h5_coordinates import TileCoordinates, read_coordinates
    from simtriplet.wsi.neighbour_graph import NeighbourGraph
    from simtriplet.wsi.neighbour_index import build_neighbours, index_store
    from simtriplet.wsi.neighbour_statistics import measure_neighbours
    from simtriplet.wsi.neighbours import GridRule, KnnRule, RadiusRule, RingRule
    from simtriplet.wsi.quality import QualitySpec, score_tiles
    from simtriplet.wsi.slide import SlideInfo, SlideReader, open_slide
    from simtriplet.wsi.store import TileStore, open_stores
    from simtriplet.wsi.synthetic import SyntheticSlideSpec, draw_cohort, draw_slide
    from simtriplet.wsi.table import Categorical
    from simtriplet.wsi.tile_import import ImportRequest, import_tiles
    from simtriplet.wsi.tile_request import LabelSpec, SlideJob, TileRequest
    from simtriplet.wsi.tiling import tile_slide
    from simtriplet.wsi.tissue import TissueSpec

__all__ = [
    "Categorical",
    "ExportRequest",
    "GateSpec",
    "GridRule",
    "ImportRequest",
    "KnnRule",
    "LabelSpec",
    "NamedRegion",
    "NeighbourGraph",
    "QualitySpec",
    "RadiusRule",
    "RingRule",
    "SimTripletError",
    "SlideInfo",
    "SlideJob",
    "SlideReader",
    "SyntheticSlideSpec",
    "TileCoordinates",
    "TileRequest",
    "TileStore",
    "TilingSpec",
    "TissueSpec",
    "build_neighbours",
    "check_store",
    "draw_cohort",
    "draw_slide",
    "export_stores",
    "import_tiles",
    "index_store",
    "measure_neighbours",
    "open_slide",
    "open_stores",
    "read_annotations",
    "read_coordinates",
    "read_geojson",
    "score_tiles",
    "tile_slide",
]

_HOMES = {
    "Categorical": "table",
    "ExportRequest": "export_request",
    "GateSpec": "gate_spec",
    "GridRule": "neighbours",
    "ImportRequest": "tile_import",
    "KnnRule": "neighbours",
    "LabelSpec": "tile_request",
    "NamedRegion": "annotation",
    "NeighbourGraph": "neighbour_graph",
    "QualitySpec": "quality",
    "RadiusRule": "neighbours",
    "RingRule": "neighbours",
    "SimTripletError": "errors",
    "SlideInfo": "slide",
    "SlideJob": "tile_request",
    "SlideReader": "slide",
    "SyntheticSlideSpec": "synthetic",
    "TileCoordinates": "h5_coordinates",
    "TileRequest": "tile_request",
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
