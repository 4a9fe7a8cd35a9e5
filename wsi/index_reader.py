"""Read a neighbour index while another process may be replacing it: the old one or the new one, never a mixture.

The writer swaps three folders one after the other, and each carries the id of its build. A reader takes the ids before
it reads and again afterwards: when all are one, everything between was of that build, as ids never come back.
"""

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from simtriplet.wsi.errors import NeighbourError
from simtriplet.wsi.metadata import DAMAGE
from simtriplet.wsi.neighbour_graph import NeighbourGraph
from simtriplet.wsi.store import SPATIAL, TABLE, TileStore
from simtriplet.wsi.table import member_names, read_array, read_value

__all__ = ["read_index"]

_ATTEMPTS = 6
_PAUSE_S = 0.02  # a swap takes well under a millisecond, unless its process waits for a processor


class _ChangedError(Exception):
    """The parts do not belong together, for now or for good; the message says how."""


def read_index(store: TileStore, name: str = SPATIAL) -> NeighbourGraph:
    """Read a neighbour index.

    Args:
        store: the tiles.
        name: of the index.

    Raises:
        NeighbourError: if there is none of that name, it is damaged or half written, or it belongs to other tiles.
    """
    reason = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S * attempt)
        if not any((store.path / TABLE / part).exists() for part in _parts(name)):
            raise NeighbourError(
                f"store '{store.path.name}': has no neighbour index {name!r}; run simtriplet index on it"
            )
        try:
            graph = _read(store, name)
        except _ChangedError as error:
            reason = str(error)
            continue
        if str(graph.rule.get("tiles_id")) != store.attributes["tiles_id"]:
            raise NeighbourError(
                f"store '{store.path.name}': neighbour index {name!r} is of older tiles; index it again"
            )
        return graph
    raise NeighbourError(f"store '{store.path.name}': neighbour index {name!r} is {reason}; index it again")


def _parts(name: str) -> tuple[str, str, str]:
    return f"uns/{name}_neighbors", f"obsp/{name}_connectivities", f"obsp/{name}_distances"


def _read(store: TileStore, name: str) -> NeighbourGraph:
    try:
        before = _builds(store, name)
        rule, pairs, far = (_group(store, part) for part in _parts(name))
        graph = NeighbourGraph(
            _vector(pairs, "indptr", "int64"),
            _vector(pairs, "indices", "int32"),
            _vector(far, "data", "float64"),
            {key: read_value(rule, key) for key in member_names(rule)},
        )
        after = _builds(store, name)
    except DAMAGE as error:
        raise _ChangedError("damaged") from error
    if len({*map(str, before), *map(str, after)}) != 1:
        raise _ChangedError("half written")
    try:
        graph.check_extent(len(store))
    except ValueError as error:
        raise _ChangedError(str(error)) from error
    return graph


def _vector(group: zarr.Group, name: str, kind: str) -> npt.NDArray[Any]:
    found = read_array(group, name)
    if found.ndim != 1 or not np.can_cast(found.dtype, kind, casting="same_kind"):
        raise TypeError(f"{name} holds {found.dtype} of shape {found.shape}")
    if found.dtype.itemsize > np.dtype(kind).itemsize and len(found) and abs(found).max() > np.iinfo(kind).max:
        raise ValueError(f"{name} holds numbers beyond {kind}")
    return found.astype(kind, copy=False)


def _builds(store: TileStore, name: str) -> list[Any]:
    rule, *matrices = (_group(store, part) for part in _parts(name))
    return [read_value(rule, "build_id"), *(matrix.attrs.get("build_id") for matrix in matrices)]


def _group(store: TileStore, part: str) -> zarr.Group:
    node = store.group[f"{TABLE}/{part}"]
    if not isinstance(node, zarr.Group):
        raise KeyError(part)
    return node
