"""The tile store, write side: everything goes to `<name>.partial`; the state comes last, then the rename."""

import datetime
import glob
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.checksum import crc32c
from simtriplet.wsi.codec import Encoded, TileCodec
from simtriplet.wsi.content_id import content_id
from simtriplet.wsi.disk_room import why_not_written
from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.folder_hold import claim_scratch, remove_leftover
from simtriplet.wsi.images import (
    IMAGES,
    TILES_PER_SHARD,
    checksum_column,
    context_name,
    write_image_metadata,
    write_image_shard,
)
from simtriplet.wsi.replace_folder import replace_folder, restore_folder
from simtriplet.wsi.store import FORMAT_VERSION, PARTIAL_SUFFIX, SCHEMA, SPATIAL, TABLE, TileStore
from simtriplet.wsi.table import Categorical, write_table
from simtriplet.wsi.thumbnail import write_thumbnail
from simtriplet.wsi.zarr_files import write_array, write_group

if TYPE_CHECKING:
    import shapely

__all__ = ["StoreContents", "StoreWriter", "library_versions", "remove_leftovers"]

_LIBRARIES = ("simtriplet", "numpy", "zarr", "shapely", "openslide-python", "tiffslide", "tifffile", "imagecodecs")


@dataclass(frozen=True, slots=True)
class StoreContents:
    """All of a store but its pixels; n tiles in storage order.

    Attributes:
        slide: id, patient_id (or None), mpp, width, height (level-0 px), level_downsamples, objective_power, vendor, fingerprint.
        tiling: mpp, size_px, stride_px and whatever else reproduces the lattice.
        tissue: how tissue was found.
        base_xy: (n, 2) int64, level-0 pixels, top-left.
        row: (n,) int, lattice row.
        col: (n,) int, lattice column.
        tissue_id: (n,) int, tissue region; -1 where unknown.
        tissue_fraction: (n,) float in [0, 1].
        columns: further obs columns, (n,) each.
        label: class per tile, or None when the slide has no annotations.
        thumbnail: (h, w, 3) uint8 RGB of the whole slide.
        thumbnail_downsample: level-0 pixels per thumbnail pixel.
        tissue_mask: (h, w) uint16 region number plus one, 0 where there is no tissue; as the thumbnail.
        regions: tissue regions, level-0 pixels.
    """

    slide: Mapping[str, Any]
    tiling: Mapping[str, Any]
    tissue: Mapping[str, Any]
    base_xy: npt.NDArray[np.int64]
    row: npt.NDArray[np.integer[Any]]
    col: npt.NDArray[np.integer[Any]]
    tissue_id: npt.NDArray[np.integer[Any]]
    tissue_fraction: npt.NDArray[np.floating[Any]]
    thumbnail: npt.NDArray[np.uint8]
    thumbnail_downsample: float
    tissue_mask: npt.NDArray[np.uint16]
    regions: "Sequence[shapely.Polygon | shapely.MultiPolygon]" = ()
    label: Categorical | None = None
    columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


class StoreWriter:
    """Write one store; use as a context manager, which removes the half-written folder on an error.

    Args:
        path: the final folder, `<slide_id>.tiles.zarr`.
        size_px: side of a tile.
        codec: encodes each tile.
        context_mpp: resolutions of the co-centred arrays, micrometres per pixel.
        room: bytes that the store will take, for the message of a full disk; what was written until then when not given.

    Raises:
        StoreError: if the folder cannot be made, or another process is writing this store.
    """

    def __init__(
        self,
        path: Path,
        *,
        size_px: int,
        codec: TileCodec,
        context_mpp: Sequence[float] = (),
        room: int | None = None,
    ) -> None:
        self.path = path
        self.size_px = size_px
        self.codec = codec
        self.arrays = (IMAGES, *(context_name(mpp) for mpp in context_mpp))
        self.partial = path.with_name(path.name + PARTIAL_SUFFIX)
        self._checksums: dict[str, dict[int, npt.NDArray[np.uint32]]] = {name: {} for name in self.arrays}
        self._sizes: dict[tuple[str, int], int] = {}
        self._has_overview = False
        self._room = room
        try:
            self._hold = claim_scratch(self.partial)
            restore_folder(self.partial, path)
            _remove_older_leftovers(path)
        except BlockingIOError as error:
            raise StoreError(f"store '{path.name}': another run is writing it; wait for that run to end") from error
        except OSError as error:
            raise StoreError(
                f"output '{path.parent}': cannot be written ({error.strerror}); choose another --out"
            ) from error

    @property
    def bytes_written(self) -> int:
        """Size of the shards written so far."""
        return sum(self._sizes.values())

    def _array(self, name: str) -> Path:
        return self.partial / "tiles" / name

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._hold.is_of(self.partial):  # once renamed, a folder of the old name is that of the next run
            shutil.rmtree(self.partial, ignore_errors=True)
        self._hold.release()

    def write_shard(self, shard: int, tiles: Sequence[npt.NDArray[np.uint8]]) -> None:
        """Encode and write shard number `shard`: tiles shard * 64 and following, (s, s, 3) uint8 each. Thread-safe.

        Raises:
            StoreError: if the disk is full or fails.
        """
        self.write_encoded(shard, {IMAGES: [self.codec.encode(tile) for tile in tiles]})

    def write_encoded(self, shard: int, encoded: Mapping[str, Sequence[Encoded]]) -> None:
        """Write shard number `shard` of each array, of chunks that are encoded already. Thread-safe.

        Raises:
            StoreError: if the disk is full or fails.
        """
        with self._telling():
            for name, chunks in encoded.items():
                self._checksums[name][shard] = np.array([crc32c(chunk) for chunk in chunks], dtype=np.uint32)
                self._sizes[name, shard] = write_image_shard(self._array(name), shard, chunks)

    def write_tiles(self, tiles: npt.NDArray[np.uint8]) -> None:
        """Write all tiles at once, (n, s, s, 3) uint8."""
        for shard, start in enumerate(range(0, len(tiles), TILES_PER_SHARD)):
            self.write_shard(shard, list(tiles[start : start + TILES_PER_SHARD]))

    def write_overview(
        self,
        thumbnail: npt.NDArray[np.uint8],
        tissue_mask: npt.NDArray[np.uint16],
        regions: "Sequence[shapely.Polygon | shapely.MultiPolygon]",
        *,
        um_per_px: float,
    ) -> None:
        """Write thumbnail and tissue, which are known before the tiles; `finish` does it where nobody has. Thread-safe.

        Args:
            thumbnail: (h, w, 3) uint8 RGB.
            tissue_mask: (h, w) uint16, region number plus one, 0 outside tissue.
            regions: outline of each region, level-0 pixels.
            um_per_px: micrometres per thumbnail pixel.

        Raises:
            StoreError: if the disk is full or fails.
        """
        with self._telling():
            write_thumbnail(write_group(self.partial / "images", {}), thumbnail, tissue_mask, um_per_px=um_per_px)
            _write_regions(write_group(self.partial / "tissue", {}), regions)
        self._has_overview = True

    def finish(self, contents: StoreContents, *, before_rename: Callable[[], None] | None = None) -> TileStore:
        """Write everything else, then give the store its final name.

        Args:
            contents: all but the pixels.
            before_rename: called when the store is whole, for files beside it: under its final name it has them.

        Raises:
            StoreError: if the disk is full, or the shards do not hold as many tiles as the contents say.
        """
        n_tiles = len(contents.base_xy)
        checksums = {checksum_column(name): self._all_checksums(name, n_tiles) for name in self.arrays}
        if not self._has_overview:
            um_per_px = contents.slide["mpp"] * contents.thumbnail_downsample
            self.write_overview(contents.thumbnail, contents.tissue_mask, contents.regions, um_per_px=um_per_px)
        with self._telling():
            for name in self.arrays:
                write_image_metadata(self._array(name), n_tiles=n_tiles, size_px=self.size_px, codec=self.codec)
            columns = _columns(contents, checksums)
            attributes = _attributes(contents, columns, n_tiles=n_tiles, codec=self.codec)
            write_group(self.partial / "tiles", _made_from(attributes))
            _write_table(self.partial, contents, columns)
            # the state comes last: without it nothing opens the store
            write_group(self.partial, attributes)
            _fsync_tree(self.partial)
            if before_rename is not None:
                before_rename()
            replace_folder(self.partial, self.path)
        remove_leftover(self.partial)  # the store that was replaced
        return TileStore(self.path)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Turn a failure of the disk into an error that says what to do."""
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            why = why_not_written(error, self.path.parent, needed=self._room or self.bytes_written)
            raise StoreError(f"output '{self.path}': cannot be written ({why}); free space and tile again") from error

    def _all_checksums(self, name: str, n_tiles: int) -> npt.NDArray[np.uint32]:
        parts = [self._checksums[name][shard] for shard in sorted(self._checksums[name])]
        found = np.concatenate([*parts, np.zeros(0, np.uint32)])
        if len(found) != n_tiles:
            raise StoreError(
                f"store '{self.path.name}': {len(found)} tiles written, {n_tiles} described; report this as a bug"
            )
        return found


def remove_leftovers(path: Path) -> None:
    """Remove what a killed run left beside a finished store; what another run is writing stays.

    Args:
        path: of the store.
    """
    remove_leftover(path.with_name(path.name + PARTIAL_SUFFIX))
    _remove_older_leftovers(path)


def _remove_older_leftovers(path: Path) -> None:
    """Remove stores that earlier versions of this program, or a system without exchange, moved out of the way."""
    if path.exists():
        for old in path.parent.glob(f"{glob.escape(path.name)}.old*{PARTIAL_SUFFIX}"):
            remove_leftover(old)


def _columns(
    contents: StoreContents, checksums: Mapping[str, npt.NDArray[np.uint32]]
) -> dict[str, npt.NDArray[Any] | Categorical]:
    columns: dict[str, npt.NDArray[Any] | Categorical] = {
        "x": contents.base_xy[:, 0].astype(np.int64),
        "y": contents.base_xy[:, 1].astype(np.int64),
        "row": np.asarray(contents.row, dtype=np.int32),
        "col": np.asarray(contents.col, dtype=np.int32),
        "tissue_id": np.asarray(contents.tissue_id, dtype=np.int32),
        "tissue_fraction": np.asarray(contents.tissue_fraction, dtype=np.float32),
        **contents.columns,
        **checksums,
    }
    if contents.label is not None:
        columns["label"] = contents.label
    return columns


def _write_table(root: Path, contents: StoreContents, columns: Mapping[str, npt.NDArray[Any] | Categorical]) -> None:
    half = contents.tiling["size_px"] * contents.tiling["mpp"] / contents.slide["mpp"] / 2
    names = [f"r{r}_c{c}" for r, c in zip(contents.row.tolist(), contents.col.tolist(), strict=True)]
    write_table(
        write_group(root / "tables", {}) / "tiles",
        index=np.array(names, dtype=object),
        obs=columns,
        obsm={SPATIAL: contents.base_xy.astype(np.float64) + half},
        uns={"slide_id": contents.slide["id"]},
    )


def _write_regions(group: Path, regions: "Sequence[shapely.Polygon | shapely.MultiPolygon]") -> None:
    """Store polygons as ragged arrays: xy of all rings, and where each ring, polygon and region ends."""
    rings: list[npt.NDArray[np.float64]] = []
    polygon_ends, region_ends = [0], [0]
    for region in regions:
        for polygon in getattr(region, "geoms", [region]):
            rings.append(np.asarray(polygon.exterior.coords, dtype=np.float64))
            rings.extend(np.asarray(hole.coords, dtype=np.float64) for hole in polygon.interiors)
            polygon_ends.append(len(rings))
        region_ends.append(len(polygon_ends) - 1)
    ring_ends = np.cumsum([0, *(len(ring) for ring in rings)])
    write_array(group / "xy", np.concatenate([np.zeros((0, 2)), *rings]))
    write_array(group / "ring_offsets", ring_ends.astype(np.int64))
    write_array(group / "polygon_offsets", np.array(polygon_ends, dtype=np.int64))
    write_array(group / "region_offsets", np.array(region_ends, dtype=np.int64))


def _tiles_id(contents: StoreContents, columns: Mapping[str, npt.NDArray[Any] | Categorical], codec: TileCodec) -> str:
    """Return what tells these tiles, pixels, places and classes, from others; who the slide is of and when does not matter."""
    slide = {key: contents.slide.get(key) for key in ("id", "mpp", "fingerprint")}
    tiling = {key: contents.tiling.get(key) for key in ("mpp", "size_px", "stride_px")}
    return content_id({"slide": slide, "tiling": tiling, "codec": codec.name}, columns)


def _attributes(
    contents: StoreContents,
    columns: Mapping[str, npt.NDArray[Any] | Categorical],
    *,
    n_tiles: int,
    codec: TileCodec,
) -> dict[str, Any]:
    record = {
        "schema": SCHEMA,
        "version": FORMAT_VERSION,
        "tiles_id": _tiles_id(contents, columns, codec),
        "n_tiles": n_tiles,
        "table": TABLE,
        "slide": dict(contents.slide),
        "tiling": {**contents.tiling, "codec": codec.name},
        "tissue": dict(contents.tissue),
        "thumbnail": {"downsample": contents.thumbnail_downsample},
        "provenance": {
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": library_versions(),
        },
        "state": "complete",
    }
    return {"simtriplet": record}


def _made_from(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return a second copy of what tiling again needs, which a damaged root does not take along."""
    record = attributes["simtriplet"]
    return {"simtriplet_made_from": {part: record[part] for part in ("slide", "tiling", "tissue")}}


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that shape a store."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _fsync_tree(folder: Path) -> None:
    """Flush the small files (all metadata); pixels are covered by their checksums and flushed by the system."""
    for path in (folder / "zarr.json", folder):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
