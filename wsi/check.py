"""Verify a store: every byte of it against a checksum, and what must agree with what."""

import math
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import zarr

from simtriplet.wsi.checksum import crc32c
from simtriplet.wsi.errors import NeighbourError, StoreError
from simtriplet.wsi.images import IMAGES, TileImages, checksum_column, context_name
from simtriplet.wsi.metadata import DAMAGE, metadata_is_signed, read_metadata, read_regular_file
from simtriplet.wsi.neighbour_graph import NeighbourGraph
from simtriplet.wsi.reach import leads_to_folder
from simtriplet.wsi.store import PARTIAL_SUFFIX, SPATIAL, TABLE, TileStore
from simtriplet.wsi.table import check_chunks

__all__ = ["Problem", "StoreCheck", "check_store", "index_parts", "inspect_store"]

_MOST_RUNS = 10
_PIXELS = "tiles"

_ADDED = tuple(f"{TABLE}/{part}" for part in ("obsp/", "uns/", "obsm/X_"))
_GROUPS = (
    "",
    "tiles",
    "tables",
    TABLE,
    *(f"{TABLE}/{part}" for part in ("obs", "obsm", "obsp", "uns", "var", "varm", "varp", "layers")),
    "images",
    "images/thumbnail",
    "images/thumbnail/labels",
    "images/thumbnail/labels/tissue",
    "tissue",
)
_ARRAYS = (
    "tiles/images",
    f"{TABLE}/obs/tile_id",
    f"{TABLE}/obsm/{SPATIAL}",
    "images/thumbnail/0",
    "images/thumbnail/labels/tissue/0",
    "tissue/xy",
    "tissue/ring_offsets",
    "tissue/polygon_offsets",
    "tissue/region_offsets",
)


class Problem(NamedTuple):
    """One thing that is wrong with a store.

    Attributes:
        part: the node of the store that holds it, such as `tables/tiles/obs/x`; empty for the root.
        text: what it is, for a person.
    """

    part: str
    text: str


class StoreCheck(NamedTuple):
    """What is wrong with a store, and what could not be looked at.

    Attributes:
        problems: in the order of the format; none when the store is whole.
        notes: what an older version or another program wrote without a checksum.
    """

    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def check_store(path: str | Path, *, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Look for damage in one store; see inspect_store.

    Returns:
        One line a problem; empty when the store is whole.
    """
    path = Path(path)
    return [problem.text for problem in inspect_store(path, progress=progress).problems]


def inspect_store(path: str | Path, *, progress: Callable[[int, int], None] | None = None) -> StoreCheck:
    """Look for damage in one store: all of its files are read.

    Args:
        path: the store.
        progress: called with (tiles checked, tiles in all).

    Returns:
        What was found.

    Raises:
        StoreError: if it is not a store at all.
    """
    path = Path(path)
    if not leads_to_folder(path / "tables"):
        TileStore(path)  # which says what it is instead
    nodes = dict(_find_nodes(path))
    problems, n_unsigned = _check_metadata(path, nodes)
    notes = []
    if n_unsigned:
        told = "an older version" if n_unsigned == len(nodes) else "other programs"
        notes.append(f"{n_unsigned} of {len(nodes)} metadata files have no checksum: {told} wrote them")
    try:
        store = TileStore(path)
    except StoreError as error:
        opening = [] if problems else [Problem("", str(error))]
        return StoreCheck((*problems, *opening), tuple(notes))
    problems += _missing_columns(store, nodes, problems)
    problems += _check_arrays(store, nodes, problems)
    if not any(problem.part.startswith("tables") and not problem.part.startswith(_ADDED) for problem in problems):
        problems += _check_table(store)
    if (
        not any(_touching(problems, part) for part in (f"{TABLE}/obs", _PIXELS))
        and (store.path / TABLE / "obs").exists()
    ):
        problems += _check_pixels(store, progress)
    problems += _check_added(store, problems)
    return StoreCheck(tuple(problems), tuple(notes))


def _find_nodes(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the place in the store and the folder of each node, of those too whose zarr.json is lost."""
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        place = "" if here == root else here.relative_to(root).as_posix()
        is_array = "c" in folders or "c" in files or (place.startswith(f"{_PIXELS}/"))
        # what a run that was killed left behind is no part of the store
        folders[:] = [] if is_array else sorted(name for name in folders if PARTIAL_SUFFIX not in name)
        yield place, here


def _check_metadata(root: Path, nodes: dict[str, Path]) -> tuple[list[Problem], int]:
    """Compare each zarr.json with its checksum; return the problems, and how many have none."""
    gone = [(place, "group") for place in _GROUPS if place not in nodes]
    gone += [(place, "array") for place in _ARRAYS if place not in nodes]
    lost = {place for place, _ in gone}
    # what is in a group that is gone goes without saying
    problems = [_missing(place, kind) for place, kind in gone if place.rpartition("/")[0] not in lost]
    n_unsigned = 0
    for place, folder in nodes.items():
        name = f"{place}/zarr.json".lstrip("/")
        try:
            n_unsigned += not metadata_is_signed(read_regular_file(folder / "zarr.json"))
        except FileNotFoundError:
            problems.append(Problem(place, f"metadata {name}: is missing"))
        except OSError as error:
            problems.append(Problem(place, f"metadata {name}: cannot be read ({error.strerror})"))
        except ValueError as error:
            problems.append(Problem(place, f"metadata {name}: {error}"))
    return problems, n_unsigned


def _missing(place: str, kind: str) -> Problem:
    return Problem(place, f"{kind} {place or 'root'}: is missing")


def _touching(problems: list[Problem], place: str) -> bool:
    return any(problem.part == place or problem.part.startswith(f"{place}/") for problem in problems)


def _missing_columns(store: TileStore, nodes: dict[str, Path], known: list[Problem]) -> list[Problem]:
    try:
        columns = [f"{TABLE}/obs/{column}" for column in store.columns()]
    except StoreError as error:
        return [] if _touching(known, TABLE) or _touching(known, "tables") else [Problem(f"{TABLE}/obs", str(error))]
    named = {problem.part for problem in known}
    return [_missing(place, "array") for place in columns if place not in nodes and place not in named]


def _check_arrays(store: TileStore, nodes: dict[str, Path], known: list[Problem]) -> list[Problem]:
    """Compare every chunk but the pixels with its CRC-32C; arrays of other programs, which have none, are read."""
    named = {problem.part for problem in known}
    problems = []
    for place, folder in nodes.items():
        if place in named or place.startswith(f"{_PIXELS}/"):
            continue
        try:
            document = read_metadata(folder / "zarr.json")
            if document.get("node_type") == "array":
                if document["codecs"][-1]["name"] == "crc32c":
                    _check_chunks(folder / "c", document)
                else:
                    array = cast("zarr.Array[Any]", store.group[place])
                    check_chunks(array)
                    array[...]
        except DAMAGE as error:
            problems.append(Problem(place, f"array {place}: {error}"))
    return problems


def _check_chunks(folder: Path, document: dict[str, Any]) -> None:
    """Look at all chunks of an array that we wrote, which stores every one.

    Raises:
        ValueError: if one is lost or damaged.
    """
    sides = zip(document["shape"], document["chunk_grid"]["configuration"]["chunk_shape"], strict=True)
    n_chunks = math.prod(-(-size // side) for size, side in sides)
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if not path.is_dir())
    for file in files:
        data = read_regular_file(file)
        if len(data) < 4 or struct.pack("<I", crc32c(data[:-4])) != data[-4:]:
            raise ValueError(f"is damaged (chunk {file.relative_to(folder.parent)} does not match its checksum)")
    if len(files) < n_chunks:
        raise ValueError(f"has lost {n_chunks - len(files)} of {n_chunks} chunks")


def _check_table(store: TileStore) -> list[Problem]:
    problems = []
    if (store.path / _PIXELS / IMAGES).exists() and len(store.images) != len(store):
        told = f"tiles/images holds {len(store.images)} tiles, the store announces {len(store)}"
        problems.append(Problem("tiles/images", told))
    for column in store.columns():
        try:
            store.column(column)
        except StoreError as error:
            problems.append(Problem(f"{TABLE}/obs/{column}", f"column {column}: {error}"))
    for place, read in (("obs/x", store.base_xy), ("obsm/spatial", store.centres)):
        try:
            if not problems:
                read()
        except StoreError as error:
            problems.append(Problem(f"{TABLE}/{place}", str(error)))
    return problems


def _check_pixels(store: TileStore, progress: Callable[[int, int], None] | None) -> list[Problem]:
    problems = []
    for array in (IMAGES, *map(context_name, store.context_mpp)):
        tell = progress if array == IMAGES else None
        try:
            images = TileImages(store.path / _PIXELS / array)
            found = _check_tiles(store, images, checksum_column(array), tell)
        except StoreError as error:
            found = [str(error)]
        problems += [Problem(f"{_PIXELS}/{array}", f"tiles/{array}, {text}"[_skip(array) :]) for text in found]
    return problems


def _skip(array: str) -> int:
    """The tiles themselves are called tiles, those at another resolution by the name of their array."""
    return len(f"tiles/{array}, ") if array == IMAGES else 0


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


def _check_added(store: TileStore, known: list[Problem]) -> list[Problem]:
    """Look at what was added to the tiles: neighbour indices and features."""
    problems = []
    try:
        indices, features = store.neighbour_names(), store.feature_names()
    except StoreError as error:
        return [] if _touching(known, TABLE) else [Problem(TABLE, str(error))]
    for name in indices:
        parts = index_parts(name)
        if not any(_touching(known, part) for part in parts):
            problems += [Problem(parts[0], f"neighbour index {name}: {text}") for text in _check_graph(store, name)]
    for name in features:
        part = f"{TABLE}/obsm/X_{name}"
        try:
            made_for = None if _touching(known, part) else store.feature_attributes(name).get("tiles_id")
        except StoreError as error:
            problems.append(Problem(part, str(error)))
            continue
        if made_for not in (None, store.attributes["tiles_id"]):
            problems.append(
                Problem(part, f"features {name}: are of older tiles; run simtriplet embed, or import, again")
            )
    return problems


def index_parts(name: str) -> tuple[str, str, str]:
    """Return the three nodes that make a neighbour index."""
    return (
        f"{TABLE}/uns/{name}_neighbors",
        f"{TABLE}/obsp/{name}_connectivities",
        f"{TABLE}/obsp/{name}_distances",
    )


def _check_graph(store: TileStore, name: str) -> list[str]:
    try:
        graph = store.neighbours(name)
    except NeighbourError as error:
        return [str(error)]
    return _graph_problems(graph, len(store))


def _graph_problems(graph: NeighbourGraph, n_tiles: int) -> list[str]:
    anchors = np.repeat(np.arange(n_tiles, dtype=np.int64), graph.degrees)
    others = graph.indices.astype(np.int64)
    problems = []
    if (anchors == others).any():
        problems.append("a tile is its own neighbour")
    forward, backward = anchors * n_tiles + others, np.sort(others * n_tiles + anchors)
    if (np.diff(forward) <= 0).any():
        problems.append("rows are not sorted")
    if not np.array_equal(np.sort(forward), backward):
        problems.append("is not symmetric")
    return problems
