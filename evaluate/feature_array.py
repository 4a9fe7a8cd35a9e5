"""Write features into a store's table: `obsm/X_<name>`, (n, d) float32, with what made them as attributes."""

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.disk_room import why_not_written
from simtriplet.wsi.errors import SettingsError, StoreError
from simtriplet.wsi.folder_hold import remove_leftover, scratch_folder
from simtriplet.wsi.replace_folder import replace_folder
from simtriplet.wsi.store import PARTIAL_SUFFIX, TABLE, TileStore
from simtriplet.wsi.zarr_files import write_array

__all__ = ["ClaimedFeatures", "check_feature_name", "claim_features", "remove_feature_leftovers", "write_features"]

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_FRAME_BYTES = 1 << 14
"""Of features beside their numbers: the metadata, and what files leave of their last blocks."""


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
        StoreError: if the store cannot be written, another process is writing these features, or they are not one row per
            tile.
        SettingsError: if the name is not valid.
    """
    with claim_features(store, name) as claimed:
        claimed.write(features, attributes)


@contextlib.contextmanager
def claim_features(store: TileStore, name: str) -> "Iterator[ClaimedFeatures]":
    """Hold the features called `name` while they are made; what a killed process left is removed.

    Raises:
        StoreError: if another process is making them, or the store's folder cannot be written.
        SettingsError: if the name is not valid.
    """
    key = f"X_{check_feature_name(name)}"
    with contextlib.ExitStack() as stack:
        try:
            scratch = stack.enter_context(scratch_folder(_scratch_of(store, key)))
        except BlockingIOError as error:
            raise StoreError(
                f"store '{store.path.name}': another run is making its features {name!r}; wait for that run to end"
            ) from error
        except OSError as error:
            raise StoreError(
                f"store '{store.path}': cannot be written ({error.strerror or error}); check space and rights"
            ) from error
        _remove_older_leftovers(store, key)
        yield ClaimedFeatures(store, key, scratch)


class ClaimedFeatures:
    """Features that one process alone may write.

    Args:
        store: its tiles are the rows.
        key: of the array in the table.
        scratch: a folder on the store's file system.
    """

    def __init__(self, store: TileStore, key: str, scratch: Path) -> None:
        self.store, self.key, self.scratch = store, key, scratch

    def write(self, features: npt.NDArray[np.float32], attributes: Mapping[str, Any]) -> None:
        """Write or replace them; see write_features.

        Raises:
            StoreError: if the store cannot be written, or the features are not one row per tile.
        """
        store = self.store
        if features.ndim != 2 or len(features) != len(store):
            raise StoreError(
                f"store '{store.path.name}': {features.shape} features for {len(store)} tiles; give one row per tile"
            )
        record = {"tiles_id": store.attributes["tiles_id"], **attributes}
        try:
            write_array(self.scratch / self.key, features.astype(np.float32), record)
            if TileStore(store.path).attributes["tiles_id"] != store.attributes["tiles_id"]:
                raise StoreError(f"store '{store.path.name}': was tiled anew meanwhile; embed it again")
            replace_folder(self.scratch / self.key, store.path / TABLE / "obsm" / self.key)
        except StoreError:
            raise
        except OSError as error:
            why = why_not_written(error, store.path, needed=features.nbytes + _FRAME_BYTES)
            raise StoreError(f"store '{store.path}': cannot be written ({why}); check space and rights") from error


def remove_feature_leftovers(store: TileStore, name: str) -> None:
    """Remove what a process that was killed left, unless another one is making these features."""
    key = f"X_{check_feature_name(name)}"
    remove_leftover(_scratch_of(store, key))
    _remove_older_leftovers(store, key)


def _scratch_of(store: TileStore, key: str) -> Path:
    """Return where features are written: beside the store, of which they are no part before they are whole."""
    path = store.path.resolve()
    return path.with_name(f"{path.name}.{key}{PARTIAL_SUFFIX}")


def _remove_older_leftovers(store: TileStore, key: str) -> None:
    """Earlier versions wrote in the table itself, whose readers then met it."""
    shutil.rmtree(store.path / TABLE / f"{key}{PARTIAL_SUFFIX}", ignore_errors=True)
