"""Write a neighbour index into a store, under the names squidpy uses, so that readers see the old one or the new one.

Everything is written beside the table first, then three folders are renamed into place. All parts carry one build id, so
that a reader tells a swap under way, or one that a kill cut short, from a whole index (simtriplet.wsi.index_reader).
"""

import contextlib
import fcntl
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from simtriplet.wsi.adjacency import Adjacency
from simtriplet.wsi.errors import NeighbourError, StoreError
from simtriplet.wsi.store import PARTIAL_SUFFIX, SPATIAL, TABLE, TileStore
from simtriplet.wsi.zarr_files import write_group, write_mapping, write_vector

__all__ = ["check_index_name", "write_index"]

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SCRATCH = "neighbours-"


def check_index_name(name: str) -> str:
    """Return `name` if it can be that of an index.

    Raises:
        NeighbourError: if it could not be part of a path.
    """
    if not _NAME.fullmatch(name):
        raise NeighbourError(
            f"index name {name!r}: must be letters, digits, '_', '-' or '.', at most 64; pass another --name"
        )
    return name


def write_index(
    store: TileStore,
    adjacency: Adjacency,
    params: dict[str, Any],
    *,
    name: str = SPATIAL,
    measured: dict[str, Any] | None = None,
) -> None:
    """Write connectivities, distances and the rule; an older index of the same name is replaced, the tiles stay untouched.

    Writers of one store take turns; what a killed one left behind is removed.

    Args:
        store: the tiles.
        adjacency: of all tiles of the store.
        params: rule and gates as they were asked for.
        name: of the index.
        measured: what came out of them, such as the similarity that a quantile stands for.

    Raises:
        StoreError: if the store cannot be written.
        NeighbourError: if the name cannot be one, or the slide was tiled anew since the store was opened.
    """
    check_index_name(name)
    scratch = store.path / f"{_SCRATCH}{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}"
    try:
        with _turn(store.path / TABLE):
            _remove_leftovers(store.path)
            try:
                _write_parts(scratch, store, adjacency, {"params": params, "measured": measured or {}}, name)
                if TileStore(store.path).attributes["tiles_id"] != store.attributes["tiles_id"]:
                    raise NeighbourError(f"store '{store.path.name}': was tiled anew meanwhile; index it again")
                _swap(scratch, store.path / TABLE, name)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"store '{store.path}': cannot be written ({error.strerror or error}); check space and rights"
        ) from error


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait until no other process writes an index here; the system ends the turn of a process that dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks on folders
            _log.debug("'%s' cannot be locked (%s): do not index it twice at the same time", folder, error.strerror)
        yield
    finally:
        os.close(handle)


def _remove_leftovers(store: Path) -> None:
    for left in store.glob(f"{_SCRATCH}*{PARTIAL_SUFFIX}"):
        _log.info("removing '%s', left by a process that was killed", left.name)
        shutil.rmtree(left, ignore_errors=True)


def _write_parts(scratch: Path, store: TileStore, adjacency: Adjacency, record: dict[str, Any], name: str) -> None:
    build_id = uuid.uuid4().hex
    n_tiles = len(adjacency.indptr) - 1
    write_group(scratch, {})
    attributes = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_tiles, n_tiles]}
    pairs = write_group(scratch / "connectivities", {**attributes, "build_id": build_id})
    write_vector(pairs / "data", np.ones(len(adjacency.indices), np.float32))
    write_vector(pairs / "indices", adjacency.indices.astype(np.int32, copy=False))
    write_vector(pairs / "indptr", adjacency.indptr.astype(np.int64, copy=False))
    far = write_group(scratch / "distances", {**attributes, "build_id": build_id})
    write_vector(far / "data", adjacency.distances_um.astype(np.float64, copy=False))
    for part in ("indices", "indptr"):  # both matrices have the same places
        shutil.copytree(pairs / part, far / part)
    keys = {"connectivities_key": f"{name}_connectivities", "distances_key": f"{name}_distances"}
    write_mapping(scratch / "uns", {**keys, **record, "build_id": build_id, "tiles_id": store.attributes["tiles_id"]})


def _swap(scratch: Path, table: Path, name: str) -> None:
    places = {
        "connectivities": table / "obsp" / f"{name}_connectivities",
        "distances": table / "obsp" / f"{name}_distances",
        "uns": table / "uns" / f"{name}_neighbors",
    }
    for part, final in places.items():
        if final.exists():
            os.rename(final, scratch / f"{part}.old")
        os.rename(scratch / part, final)
