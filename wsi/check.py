"""Verify a store: every tile against its checksum, every array against its own, and what must agree with what."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from simtriplet.wsi.checksum import crc32c
from simtriplet.wsi.errors import NeighbourError, StoreError
from simtriplet.wsi.images import IMAGES, TileImages, checksum_column, context_name
from simtriplet.wsi.store import SPATIAL, TABLE, NeighbourGraph, TileStore

__all__ = ["check_store"]

_MOST_RUNS = 10

_REQUIRED = (
    "tiles/images",
    f"{TABLE}/obsm/{SPATIAL}",
    "images/thumbnail/0",
    "images/thumbnail/labels/tissue/0",
    "tissue/xy",
    "tissue/ring_offsets",
    "tissue/polygon_offsets",
    "tissue/region_offsets",
)


def check_store(path: Path, *, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Look for damage in one store.

    Args:
        path: the store.
        progress: called with (tiles checked, tiles in all).

    Returns:
        One line a problem; empty when the store is whole.

    Raises:
        StoreError: if it is not a store at all.
    """
    store = TileStore(path)
    problems = _check_arrays(store)
    if problems:
        return problems
    problems = _check_table(store) + _check_tiles(store, store.images, checksum_column(IMAGES), progress)
    for mpp in store.context_mpp:
        problems += _check_tiles(store, store.context(mpp), checksum_column(context_name(mpp)), None)
    for name in store.neighbour_names():
        problems += _check_graph(store, name)
    return problems


def _check_arrays(store: TileStore) -> list[str]:
    """Read every array but the pixels; zarr verifies their CRC-32C."""
    arrays = dict(_walk(store.group, ""))
    columns = [f"{TABLE}/obs/{column}" for column in store.columns()]
    # a column of names is a group of codes and categories
    missing = [name for name in (*_REQUIRED, *columns) if name not in arrays and f"{name}/codes" not in arrays]
    problems = [f"array {name}: is missing" for name in missing]
    for name, node in arrays.items():
        if name.startswith("tiles/"):
            continue
        try:
            node[...]
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            problems.append(f"array {name}: is damaged ({error})")
        else:
            problems += _lost_chunks(store.path / name, node, name)
    return problems


def _walk(group: zarr.Group, prefix: str) -> list[tuple[str, zarr.Array[Any]]]:
    found = []
    for key, node in group.members():
        if isinstance(node, zarr.Array):
            found.append((prefix + key, node))
        else:
            found += _walk(node, f"{prefix}{key}/")
    return found


def _lost_chunks(folder: Path, array: zarr.Array[Any], name: str) -> list[str]:
    """Report a chunk that is gone, which zarr would silently read as the fill value (the writer stores every chunk)."""
    chunks = folder / "c"
    stored = int(chunks.is_file()) + sum(1 for file in chunks.rglob("*") if file.is_file())
    lost = array.nchunks - stored
    return [f"array {name}: has lost {lost} of {array.nchunks} chunks"] if array.size and lost > 0 else []


def _check_table(store: TileStore) -> list[str]:
    problems = []
    n_tiles = len(store)
    if len(store.images) != n_tiles:
        problems.append(f"tiles/images holds {len(store.images)} tiles, the store announces {n_tiles}")
    for column in store.columns():
        values = store.column(column)
        length = len(values.codes) if hasattr(values, "codes") else len(values)
        if length != n_tiles:
            problems.append(f"column {column}: has {length} rows, not {n_tiles}")
    return problems


def _check_tiles(
    store: TileStore, images: TileImages, column: str, progress: Callable[[int, int], None] | None
) -> list[str]:
    damaged: dict[str, list[int]] = {}
    expected = store.numbers(column)
    n_tiles = min(len(expected), len(images))
    scratch = np.empty((images.size_px, images.size_px, 3), np.uint8)
    for tile in range(n_tiles):
        try:
            encoded = images.read_encoded(tile)
            if crc32c(encoded) != int(expected[tile]):
                damaged.setdefault("its bytes do not match their checksum", []).append(tile)
            elif images.codec.name != "none":
                images.codec.decode(encoded, scratch)
        except (StoreError, ValueError) as error:
            damaged.setdefault(str(error), []).append(tile)
        if progress is not None and (tile % 256 == 255 or tile == n_tiles - 1):
            progress(tile + 1, n_tiles)
    return [f"{_name_tiles(tiles)}: {reason}" for reason, tiles in damaged.items()]


def _name_tiles(tiles: list[int]) -> str:
    """Name tiles, ascending, as a person reads them: a lost shard is one range and not 64 lines."""
    runs = np.split(tiles, np.flatnonzero(np.diff(tiles) > 1) + 1)
    named = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    shown = ", ".join(named[:_MOST_RUNS]) + (
        f" and {len(named) - _MOST_RUNS} more places" if len(named) > _MOST_RUNS else ""
    )
    return f"tile {shown}" if len(tiles) == 1 else f"{len(tiles)} tiles, {shown}"


def _check_graph(store: TileStore, name: str) -> list[str]:
    try:
        graph = store.neighbours(name)
    except NeighbourError as error:
        return [f"neighbour index {name}: {error}"]
    return [f"neighbour index {name}: {problem}" for problem in _graph_problems(graph, len(store))]


def _graph_problems(graph: NeighbourGraph, n_tiles: int) -> list[str]:
    anchors = np.repeat(np.arange(n_tiles, dtype=np.int64), graph.degrees)
    others = graph.indices.astype(np.int64)
    if len(others) and (others.min() < 0 or others.max() >= n_tiles):
        return ["points at tiles that do not exist"]
    problems = []
    if (anchors == others).any():
        problems.append("a tile is its own neighbour")
    forward, backward = anchors * n_tiles + others, np.sort(others * n_tiles + anchors)
    if (np.diff(forward) <= 0).any():
        problems.append("rows are not sorted")
    if not np.array_equal(np.sort(forward), backward):
        problems.append("is not symmetric")
    return problems
