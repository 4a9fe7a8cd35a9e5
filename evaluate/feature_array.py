"""Write features into a store's table: `obsm/X_<name>`, (n, d) float32, with what made them as attributes."""

import re
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.atomic_output import replace_folder
from simtriplet.wsi.errors import SettingsError, StoreError
from simtriplet.wsi.store import PARTIAL_SUFFIX, TABLE, TileStore
from simtriplet.wsi.zarr_files import write_array, write_group

__all__ = ["check_feature_name", "write_features"]

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def check_feature_name(name: str) -> str:
    """Return `name` if it can name an array of the table.

    Raises:
        SettingsError: if it holds anything but letters, digits, `_`, `.` and `-`.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"features name {name!r}: may hold letters, digits, '_', '.' and '-' only; choose another --name"
        )
    return name


def write_features(
    store: TileStore, name: str, features: npt.NDArray[np.float32], attributes: Mapping[str, Any]
) -> None:
    """Write or replace the features called `name`.

    Args:
        store: its tiles are the rows, in storage order.
        name: see check_feature_name.
        features: (n, d) float32.
        attributes: JSON values to keep beside them; the tiles' id is added.

    Raises:
        StoreError: if the store cannot be written, or the features are not one row per tile.
        SettingsError: if the name is not valid.
    """
    key = f"X_{check_feature_name(name)}"
    if features.ndim != 2 or len(features) != len(store):
        raise StoreError(
            f"store '{store.path.name}': {features.shape} features for {len(store)} tiles; give one row per tile"
        )
    table = store.path / TABLE
    scratch = table / f"{key}{PARTIAL_SUFFIX}"
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        record = {"tiles_id": store.attributes["tiles_id"], **attributes}
        write_array(write_group(scratch, {}) / key, features.astype(np.float32), record)
        replace_folder(scratch / key, table / "obsm" / key)
    except OSError as error:
        raise StoreError(
            f"store '{store.path}': cannot be written ({error.strerror or error}); check space and rights"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
