"""Read a neighbour index while another process may be replacing it: the old one or the new one, never a mixture.

The writer swaps three folders one after the other, and each carries the id of its build. A reader takes the ids before
it reads and again afterwards: when all are one, everything between was of that build, as ids never come back.
"""

import time
from typing import Any

import zarr

from simtriplet.wsi.errors import NeighbourError
from simtriplet.wsi.store import SPATIAL, TABLE, NeighbourGraph, TileStore
from simtriplet.wsi.table import read_array, read_value

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
        if graph.rule.get("tiles_id") != store.attributes["tiles_id"]:
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
            read_array(pairs, "indptr").astype("int64", copy=False),
            read_array(pairs, "indices").astype("int32", copy=False),
            read_array(far, "data").astype("float64", copy=False),
            {key: read_value(rule, key) for key in sorted(rule.keys())},
        )
        after = _builds(store, name)
    except (KeyError, ValueError, RuntimeError, FileNotFoundError) as error:
        raise _ChangedError("damaged") from error
    n_entries = int(graph.indptr[-1]) if len(graph.indptr) else -1
    whole = len(graph.indptr) == len(store) + 1 and n_entries == len(graph.indices) == len(graph.distances_um)
    if len({*before, *after}) != 1 or not whole:
        raise _ChangedError("half written")
    return graph


def _builds(store: TileStore, name: str) -> list[Any]:
    rule, *matrices = (_group(store, part) for part in _parts(name))
    return [read_value(rule, "build_id"), *(matrix.attrs.get("build_id") for matrix in matrices)]


def _group(store: TileStore, part: str) -> zarr.Group:
    node = store.group[f"{TABLE}/{part}"]
    if not isinstance(node, zarr.Group):
        raise KeyError(part)
    return node
