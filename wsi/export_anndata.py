"""Tiles as AnnData: the table, features, neighbour graphs and the thumbnail as scanpy and squidpy look for it."""

import io
import itertools
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simtriplet.wsi.export_request import ExportRequest
from simtriplet.wsi.export_table import TileColumns, tile_columns
from simtriplet.wsi.interop_package import interop_package
from simtriplet.wsi.store import SPATIAL, TileStore
from simtriplet.wsi.table import Categorical

__all__ = ["make_anndata", "write_h5ad"]

_OTHER_COLUMNS = ("slide_id", "patient_id", "region", "tile", "tile_id", "_index")
"""What the two exports add to the store's own columns, in lower case."""


def write_h5ad(store: TileStore, path: Path, request: ExportRequest) -> None:
    """Write one slide's table as .h5ad; `make_anndata` says what is in it.

    The file is made in memory, beside the table: where a disk fills up under it, HDF5 brings the process down.

    Raises:
        MissingDependencyError: if anndata is not installed.
        StoreError: if the store's features or its table are damaged or of older tiles.
        NeighbourError: if a neighbour index is.
    """
    table = make_anndata(store, request)
    table.uns[SPATIAL] = {store.slide_id: _picture(store)}
    path.write_bytes(_h5_file(table).getbuffer())


def _h5_file(table: Any) -> io.BytesIO:
    """Return what AnnData.write_h5ad would write, which takes nothing but a path."""
    anndata: Any = interop_package("anndata", "export to 'anndata'")
    h5py: Any = interop_package("h5py", "export to 'anndata'")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own future versions
        table.strings_to_categoricals()
        with h5py.File(buffer, "w") as file:
            anndata.io.write_elem(file, "/", table, dataset_kwargs={"compression": "gzip"})
            file.pop("raw", None)  # says that there is none, in a way that older versions do not read
    return buffer


def make_anndata(store: TileStore, request: ExportRequest) -> Any:
    """Return an AnnData of n tiles and no variables.

    obs has all columns of the store (and the predictions), slide_id and patient_id; obsm the tile centres (`spatial`,
    level-0 pixels) and features (`X_<name>`); obsp and uns each neighbour index; uns["simtriplet"] the store's attributes,
    what is known of the features, and which columns go by another name here (see `_plain_names`), as JSON.

    Raises:
        MissingDependencyError: if anndata is not installed.
        StoreError: if the store's features or its table are damaged or of older tiles.
        NeighbourError: if a neighbour index is.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        anndata: Any = interop_package("anndata", "export to 'anndata'")
        pandas: Any = interop_package("pandas", "export to 'anndata'")
        read = tile_columns(store, request)
        plain = _plain_names(read.columns)
        table = anndata.AnnData(obs=_obs(store, read, plain, pandas))
    table.obsm[SPATIAL] = store.centres()
    renamed = {here: name for name, here in plain.items() if here != name}
    about: dict[str, Any] = {"store": store.attributes, "features": {}, "columns": renamed}
    for name in store.feature_names():
        table.obsm[f"X_{name}"] = store.features(name)
        about["features"][name] = store.feature_attributes(name)
    table.uns["slide_id"] = store.slide_id
    table.uns["simtriplet"] = json.dumps(about)
    for name in store.neighbour_names():
        _add_graph(table, store, name)
    return table


def _obs(store: TileStore, read: TileColumns, plain: Mapping[str, str], pandas: Any) -> Any:
    columns: dict[str, Any] = {
        "slide_id": pandas.Categorical([store.slide_id] * len(store)),
        "patient_id": pandas.Categorical([store.patient_id] * len(store)),
    }
    for name, values in read.columns.items():
        if isinstance(values, Categorical):
            columns[plain[name]] = pandas.Categorical.from_codes(values.codes, list(values.categories))
        else:
            columns[plain[name]] = values
    return pandas.DataFrame(columns, index=pandas.Index(read.tile_id, name="tile_id"))


def _plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return what each column is called here.

    SpatialData takes letters, digits and `_-.` only, and no two names that differ in case alone; in HDF5 a slash begins a
    group. Classes such as QuPath's "Immune cells" and "Tumor: Positive" are part of the names of probabilities.
    """
    plain: dict[str, str] = {}
    taken = set(_OTHER_COLUMNS)
    for name in names:
        stem = "".join(letter if letter.isalnum() or letter in "_-." else "_" for letter in name)
        stem = f"column{stem}" if stem.startswith("__") or not stem.strip(".") else stem
        tries = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
        plain[name] = next(one for one in tries if one.lower() not in taken)
        taken.add(plain[name].lower())
    return plain


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
