"""Copies of stored features for programs that read no Zarr: `<slide_id>.<name>.npy` or `.parquet` beside the store."""

import importlib
import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simtriplet.evaluate.atomic_output import replace_file
from simtriplet.evaluate.feature_array import check_feature_name
from simtriplet.evaluate.labels import tile_ids
from simtriplet.wsi.errors import MissingDependencyError
from simtriplet.wsi.store import STORE_SUFFIX, TileStore

__all__ = ["FeatureForm", "check_forms", "write_feature_file"]

FeatureForm = Literal["npy", "parquet"]


def check_forms(forms: Sequence[FeatureForm]) -> None:
    """Make sure that the package is there which a form needs, before a job rather than after it.

    Raises:
        MissingDependencyError: if it is missing.
    """
    if "parquet" in forms and importlib.util.find_spec("pyarrow") is None:
        raise MissingDependencyError(
            "features as 'parquet': need the package pyarrow, which is not installed; "
            "pip install 'simtriplet[parquet]', or write npy"
        )


def write_feature_file(store: TileStore, name: str, form: FeatureForm) -> Path:
    """Write a copy of the features called `name` beside the store.

    npy is the (n, d) float32 array in storage order. parquet has a row per tile: slide_id, tile_id, x, y (level-0 pixels,
    top-left) and the list `features`, and in its metadata, under `simtriplet`, what `embed` recorded.

    Returns:
        The file.

    Raises:
        StoreError: if the store has no such features.
        MissingDependencyError: if pyarrow is wanted and missing.
        EvaluationError: if the file cannot be written.
    """
    check_forms((form,))
    content = _npy(store, name) if form == "npy" else _parquet(store, name)
    stem = store.path.name.removesuffix(STORE_SUFFIX)
    return replace_file(store.path.with_name(f"{stem}.{check_feature_name(name)}.{form}"), content)


def _npy(store: TileStore, name: str) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, store.features(name), allow_pickle=False)
    return buffer.getvalue()


def _parquet(store: TileStore, name: str) -> bytes:
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    features, base_xy = store.features(name), store.base_xy()
    table = arrow.table(
        {
            "slide_id": arrow.array([store.slide_id] * len(store), arrow.string()),
            "tile_id": arrow.array(tile_ids(store).tolist(), arrow.string()),
            "x": base_xy[:, 0],
            "y": base_xy[:, 1],
            "features": arrow.FixedSizeListArray.from_arrays(features.reshape(-1), features.shape[1]),
        }
    )
    record = json.dumps(store.feature_attributes(name))
    buffer = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({"simtriplet": record}), buffer, compression="zstd")
    return buffer.getvalue()
