"""Write a neighbour index into a store, under the names squidpy uses, so that readers see the old one or the new one.

Everything is written beside the store first, then three folders are renamed into place, the rule last and an older rule
away first: a swap that a kill cut short is an index that is not there. All parts carry one build id, so that a reader tells
a swap under way from a whole index (simtriplet.wsi.index_reader). The pairs id is that of the content: the same pairs built
again have it again.
"""

import logging
import os
import re
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from simtriplet.wsi.adjacency import Adjacency
from simtriplet.wsi.content_id import content_id
from simtriplet.wsi.disk_room import why_not_written
from simtriplet.wsi.errors import NeighbourError, StoreError
from simtriplet.wsi.folder_hold import FolderHold, remove_leftover, scratch_folder
from simtriplet.wsi.replace_folder import replace_folder
from simtriplet.wsi.store import PARTIAL_SUFFIX, SPATIAL, TABLE, TileStore
from simtriplet.wsi.zarr_files import write_group, write_mapping, write_vector

__all__ = ["check_index_name", "remove_index_leftovers", "write_index"]

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_OLD_SCRATCH = "neighbours-*" + PARTIAL_SUFFIX
"""Where earlier versions wrote, in the store itself, whose readers then met it."""


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

    The table is held meanwhile: a second process is refused, and what a killed one left behind is removed.

    Args:
        store: the tiles.
        adjacency: of all tiles of the store.
        params: rule and gates as they were asked for.
        name: of the index.
        measured: what came out of them, such as the similarity that a quantile stands for.

    Raises:
        StoreError: if the store cannot be written, or another process is indexing it.
        NeighbourError: if the name cannot be one, or the slide was tiled anew since the store was opened.
    """
    check_index_name(name)
    try:
        with FolderHold(store.path / TABLE), scratch_folder(_scratch_of(store)) as scratch:
            _remove_older_leftovers(store)
            _write_parts(scratch, store, adjacency, {"params": params, "measured": measured or {}}, name)
            if TileStore(store.path).attributes["tiles_id"] != store.attributes["tiles_id"]:
                raise NeighbourError(f"store '{store.path.name}': was tiled anew meanwhile; index it again")
            _swap(scratch, store.path / TABLE, name)
    except BlockingIOError as error:
        raise StoreError(f"store '{store.path.name}': another run is indexing it; wait for that run to end") from error
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        why = why_not_written(error, store.path, needed=_n_bytes(adjacency))
        raise StoreError(f"store '{store.path}': cannot be written ({why}); check space and rights") from error


def remove_index_leftovers(store: TileStore) -> None:
    """Remove what a process that was killed left, unless another one is writing there."""
    remove_leftover(_scratch_of(store))
    _remove_older_leftovers(store)


def _scratch_of(store: TileStore) -> Path:
    """Return where an index is written: beside the store, of which it is no part before it is whole."""
    path = store.path.resolve()
    return path.with_name(f"{path.name}.neighbours{PARTIAL_SUFFIX}")


def _remove_older_leftovers(store: TileStore) -> None:
    for left in store.path.glob(_OLD_SCRATCH):
        _log.info("removing '%s', left by a process that was killed", left.name)
        shutil.rmtree(left, ignore_errors=True)


def _n_bytes(adjacency: Adjacency) -> int:
    """Return the bytes of both matrices, which is more than they take compressed."""
    return 2 * (adjacency.indptr.nbytes + adjacency.indices.nbytes) + 2 * adjacency.distances_um.nbytes


def _write_parts(scratch: Path, store: TileStore, adjacency: Adjacency, record: dict[str, Any], name: str) -> None:
    tiles_id, build_id = str(store.attributes["tiles_id"]), uuid.uuid4().hex
    with ThreadPoolExecutor(1) as beside:  # of ten million tiles it is a gigabyte
        pairs_id = beside.submit(content_id, {"tiles_id": tiles_id}, adjacency._asdict())
        _write_matrices(scratch, adjacency, build_id)
    keys = {"connectivities_key": f"{name}_connectivities", "distances_key": f"{name}_distances"}
    ids = {"build_id": build_id, "pairs_id": pairs_id.result(), "tiles_id": tiles_id}
    write_mapping(scratch / "uns", {**keys, **record, **ids})


def _write_matrices(scratch: Path, adjacency: Adjacency, build_id: str) -> None:
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


def _swap(scratch: Path, table: Path, name: str) -> None:
    places = {
        "connectivities": table / "obsp" / f"{name}_connectivities",
        "distances": table / "obsp" / f"{name}_distances",
        "uns": table / "uns" / f"{name}_neighbors",
    }
    if places["uns"].exists():
        os.rename(places["uns"], scratch / "uns.old")
    for part, final in places.items():
        replace_folder(scratch / part, final)
