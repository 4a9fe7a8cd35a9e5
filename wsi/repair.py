"""What of a damaged store can be made again: everything, as slides, rules and encoders are kept elsewhere, but not in place.

Tiles are made from the slide, and a neighbour index or features from the tiles: damage to the tiles takes all of them along.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zarr

from simtriplet.wsi.check import Problem, index_parts
from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.metadata import DAMAGE, metadata_is_signed, read_regular_file
from simtriplet.wsi.store import STORE_SUFFIX, TABLE, TileStore
from simtriplet.wsi.store_files import StoreFiles
from simtriplet.wsi.table import read_value

__all__ = ["RepairPlan", "plan_repair"]


class RepairPlan(NamedTuple):
    """What has to be made again.

    Attributes:
        slide_id: whose store it is.
        tiles: whether the slide has to be tiled again.
        made_from: what the store records of slide, tiling and tissue; None where that is lost too.
        indices: name of each neighbour index to build, and its parameters, None where they are lost.
        features: name of each set of features to embed, and what is recorded of the encoder.
        codec: of the tiles: none, zstd or jpeg, with the quality that was recorded.
    """

    slide_id: str
    tiles: bool
    made_from: dict[str, Any] | None
    indices: dict[str, dict[str, Any] | None]
    features: dict[str, dict[str, Any]]
    jpeg_quality: int | None


def plan_repair(path: Path, problems: Sequence[Problem]) -> RepairPlan:
    """Say what has to be made again to mend a store.

    Args:
        path: the store.
        problems: what inspect_store found.
    """
    indices, features = _added_names(path)
    of_index = {name: index_parts(name) for name in indices}
    of_features = {name: (f"{TABLE}/obsm/X_{name}",) for name in features}
    added = {part for parts in (*of_index.values(), *of_features.values()) for part in parts}
    tiles = not all(any(_is_in(problem.part, part) for part in added) for problem in problems)

    def is_hit(parts: Sequence[str]) -> bool:
        return tiles or any(_is_in(problem.part, part) for problem in problems for part in parts)

    root = StoreFiles(path, read_only=True)
    return RepairPlan(
        slide_id=path.name.removesuffix(STORE_SUFFIX),
        tiles=tiles,
        made_from=_made_from(path),
        indices={name: _index_params(root, name) for name, parts in of_index.items() if is_hit(parts)},
        features={name: _feature_record(path, name) for name, parts in of_features.items() if is_hit(parts)},
        jpeg_quality=_jpeg_quality(path),
    )


def _is_in(part: str, place: str) -> bool:
    return part == place or part.startswith(f"{place}/")


def _added_names(path: Path) -> tuple[list[str], list[str]]:
    """Return the names of indices and features by their folders, whatever is wrong inside."""
    table = path / TABLE
    suffix = "_connectivities"
    indices = {folder.name.removesuffix(suffix) for folder in (table / "obsp").glob(f"*{suffix}")}
    indices |= {folder.name.removesuffix("_distances") for folder in (table / "obsp").glob("*_distances")}
    indices |= {folder.name.removesuffix("_neighbors") for folder in (table / "uns").glob("*_neighbors")}
    return sorted(indices), sorted(folder.name.removeprefix("X_") for folder in (table / "obsm").glob("X_*"))


def _made_from(path: Path) -> dict[str, Any] | None:
    """Read slide, tiling and tissue from the root, or from the copy that the group of tiles holds."""
    try:
        return TileStore(path).attributes
    except StoreError:
        pass
    for file, key in (("zarr.json", "simtriplet"), ("tiles/zarr.json", "simtriplet_made_from")):
        record = _signed_attributes(path / file).get(key)
        if isinstance(record, dict) and all(
            isinstance(record.get(part), dict) for part in ("slide", "tiling", "tissue")
        ):
            return record
    return None


def _signed_attributes(file: Path) -> dict[str, Any]:
    """Return the attributes of a node if their checksum is right, else none."""
    try:
        data = read_regular_file(file)
        found = json.loads(data)["attributes"] if metadata_is_signed(data) else {}
    except DAMAGE:
        return {}
    return found if isinstance(found, dict) else {}


def _index_params(root: StoreFiles, name: str) -> dict[str, Any] | None:
    try:
        uns = zarr.open_group(root, path=index_parts(name)[0], mode="r", zarr_format=3)
        params = read_value(uns, "params")
    except DAMAGE:
        return None
    return params if isinstance(params, dict) and params.get("rule") else None


def _feature_record(path: Path, name: str) -> dict[str, Any]:
    return _signed_attributes(path / TABLE / "obsm" / f"X_{name}" / "zarr.json")


def _jpeg_quality(path: Path) -> int | None:
    try:
        document = json.loads(read_regular_file(path / "tiles" / "images" / "zarr.json"))
        quality = document["codecs"][0]["configuration"]["codecs"][0].get("configuration", {}).get("quality")
    except DAMAGE:
        return None
    return quality if isinstance(quality, int) else None
