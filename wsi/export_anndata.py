"""Tiles as AnnData: the table, features, neighbour graphs and the thumbnail as scanpy and squidpy look for it."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from simtriplet.wsi.export_request import ExportRequest
from simtriplet.wsi.export_table import tile_columns
from simtriplet.wsi.interop_package import interop_package
from simtriplet.wsi.store import SPATIAL, TileStore
from simtriplet.wsi.table import Categorical

__all__ = ["make_anndata", "write_h5ad"]


def write_h5ad(store: TileStore, path: Path, request: ExportRequest) -> None:
    """Write one slide's table as .h5ad; `make_anndata` says what is in it.

    Raises:
        MissingDependencyError: if anndata is not installed.
        StoreError: if the store's features or its table are damaged or of older tiles.
        NeighbourError: if a neighbour index is.
    """
    table = make_anndata(store, request)
    table.uns[SPATIAL] = {store.slide_id: _picture(store)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own future versions
        table.write_h5ad(path, compression="gzip")


def make_anndata(store: TileStore, request: ExportRequest) -> Any:
    """Return an AnnData of n tiles and no variables.

    obs has all columns of the store (and the predictions), slide_id and patient_id; obsm the tile centres (`spatial`,
    level-0 pixels) and features (`X_<name>`); obsp and uns each neighbour index; uns["simtriplet"] the store's attributes and
    what is known of the features, as JSON.

    Raises:
        MissingDependencyError: if anndata is not installed.
        StoreError: if the store's features or its table are damaged or of older tiles.
        NeighbourError: if a neighbour index is.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        anndata: Any = interop_package("anndata", "export to 'anndata'")
        pandas: Any = interop_package("pandas", "export to 'anndata'")
        table = anndata.AnnData(obs=_obs(store, request, pandas))
    table.obsm[SPATIAL] = store.centres()
    about: dict[str, Any] = {"store": store.attributes, "features": {}}
    for name in store.feature_names():
        table.obsm[f"X_{name}"] = store.features(name)
        about["features"][name] = store.feature_attributes(name)
    table.uns["slide_id"] = store.slide_id
    table.uns["simtriplet"] = json.dumps(about)
    for name in store.neighbour_names():
        _add_graph(table, store, name)
    return table


def _obs(store: TileStore, request: ExportRequest, pandas: Any) -> Any:
    read = tile_columns(store, request)
    columns: dict[str, Any] = {
        "slide_id": pandas.Categorical([store.slide_id] * len(store)),
        "patient_id": pandas.Categorical([store.patient_id] * len(store)),
    }
    for name, values in read.columns.items():
        if isinstance(values, Categorical):
            columns[name] = pandas.Categorical.from_codes(values.codes, list(values.categories))
        else:
            columns[name] = values
    return pandas.DataFrame(columns, index=pandas.Index(read.tile_id, name="tile_id"))


def _add_graph(table: Any, store: TileStore, name: str) -> None:
    from scipy.sparse import csr_matrix

    graph = store.neighbours(name)
    shape = (len(store), len(store))
    ones = np.ones(len(graph.indices), np.float32)
    table.obsp[f"{name}_connectivities"] = csr_matrix((ones, graph.indices, graph.indptr), shape=shape)
    table.obsp[f"{name}_distances"] = csr_matrix((graph.distances_um, graph.indices, graph.indptr), shape=shape)
    table.uns[f"{name}_neighbors"] = graph.rule


def _picture(store: TileStore) -> dict[str, Any]:
    """Return the thumbnail as scanpy and squidpy draw it under the tiles."""
    return {
        "images": {"hires": store.thumbnail()},
        "scalefactors": {
            "tissue_hires_scalef": 1 / store.thumbnail_downsample,
            "spot_diameter_fullres": store.base_size_px,
        },
    }
