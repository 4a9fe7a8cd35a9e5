"""The pixels of a store: `tiles/images`, one tile a chunk, many tiles a shard, written in order and read at random."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr

from simtriplet.wsi.checksum import crc32c
from simtriplet.wsi.codec import NoneCodec, TileCodec, codec_from_metadata
from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.metadata import DAMAGE, metadata_bytes, read_metadata
from simtriplet.wsi.open_shards import OPEN_SHARDS, OpenShard, ShardSource
from simtriplet.wsi.shard import MISSING, Buffer, ShardIndex, write_shard
from simtriplet.wsi.store_files import StoreFiles
from simtriplet.wsi.table import read_array

__all__ = ["IMAGES", "TILES_PER_SHARD", "TileImages", "write_image_metadata", "write_image_shard"]

TILES_PER_SHARD = 64
"""In (region, Morton) order 79 % of the 8-neighbour pairs share a shard of this size."""

IMAGES = "images"
"""The array of the tiles, in the group `tiles`; co-centred tiles at another mpp lie beside it."""

_MOST_TILES, _MOST_PX, _MOST_PER_SHARD = 2**31 - 1, 8192, 1 << 16

KEY_SEPARATOR = "."
"""All shards lie in one folder: with "/" each would have three folders of its own, which on ext4 cost 3 ms each to remove."""


def context_name(mpp: float) -> str:
    """Return the name of the array of co-centred tiles at a resolution."""
    return f"context_{mpp:g}um"


def checksum_column(array: str) -> str:
    """Return the obs column that holds the CRC-32C of an array's chunks."""
    return "crc32c" if array == IMAGES else f"crc32c_{array}"


def image_metadata(n_tiles: int, size_px: int, codec: TileCodec) -> dict[str, Any]:
    """Return the zarr.json of `tiles/images`: shape (n, s, s, 3) uint8, dimensions tile, y, x, channel."""
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [1, size_px, size_px, 3],
            "codecs": codec.zarr_codecs(),
            "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "index_location": "end",
        },
    }
    shard_shape = [TILES_PER_SHARD, size_px, size_px, 3]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [n_tiles, size_px, size_px, 3],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard_shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": KEY_SEPARATOR}},
        "fill_value": 255,
        "codecs": [sharding],
        "attributes": {},
        "dimension_names": ["tile", "y", "x", "channel"],
    }


def shard_path(array: Path, shard: int, *, separator: str = KEY_SEPARATOR) -> Path:
    """Return where shard number `shard` of the array folder lies."""
    return array / separator.join(("c", str(shard), "0", "0", "0"))


def write_image_shard(array: Path, shard: int, chunks: Sequence[Buffer]) -> int:
    """Write the encoded tiles of one shard, in order; return the bytes written."""
    array.mkdir(parents=True, exist_ok=True)
    return write_shard(shard_path(array, shard), chunks, chunks_per_shard=TILES_PER_SHARD)


def write_image_metadata(array: Path, *, n_tiles: int, size_px: int, codec: TileCodec) -> None:
    """Write the array's zarr.json, after its shards."""
    array.mkdir(parents=True, exist_ok=True)
    (array / "zarr.json").write_bytes(metadata_bytes(image_metadata(n_tiles, size_px, codec), indent=2))


class TileImages:
    """Read tiles at random from the shards of one store, without going through zarr-python.

    Safe to use from several threads at once; all readers of a process share one set of open files (see open_shards.py).

    Args:
        array: the folder `tiles/images`.

    Raises:
        StoreError: if the metadata is not that of a simtriplet image array.
    """

    def __init__(self, array: Path) -> None:
        self.path = array
        try:
            meta = read_metadata(array / "zarr.json")
            self.n_tiles, self.size_px, self.tiles_per_shard = _read_shape(meta)
            self._separator = meta["chunk_key_encoding"]["configuration"]["separator"]
            if self._separator not in (".", "/"):
                raise ValueError(f"separator {self._separator!r}")
            chain = meta["codecs"][0]["configuration"]["codecs"]
            self.codec = codec_from_metadata(chain, where=str(array.parent.parent))
        except StoreError:
            raise
        except DAMAGE as error:
            raise StoreError(
                f"store '{array.parent.parent}': has no readable tiles/{array.name}; tile the slide again"
            ) from error
        self._checksums: npt.NDArray[np.uint32] | None = None
        self._seen = bytearray()
        """1 where a tile need not be compared with its checksum: it was before, or there is none."""
        self._verify_lock = threading.Lock()
        self._is_prepared = False
        self._reader = OPEN_SHARDS.new_reader()

    def check_extent(self) -> None:
        """Make sure that the last shard exists, before anyone makes room for as many tiles as the metadata tell of.

        Raises:
            StoreError: if it does not.
        """
        last = shard_path(self.path, (self.n_tiles - 1) // self.tiles_per_shard, separator=self._separator)
        if self.n_tiles and not last.is_file():
            raise StoreError(
                f"store '{self.path.parent.parent}': tells of {self.n_tiles} tiles, but tiles/{self.path.name}/{last.name} is "
                "missing; tile the slide again with --existing replace"
            )

    def _prepare(self) -> None:
        """Read the checksums of the tiles, once; a store of another writer may have none."""
        with self._verify_lock:
            if self._is_prepared:
                return
            self.check_extent()
            self._checksums = _read_checksums(self.path, self.n_tiles)
            self._seen = bytearray(self.n_tiles) if self._checksums is not None else bytearray(b"\1") * self.n_tiles
            self._is_prepared = True

    def __len__(self) -> int:
        return self.n_tiles

    def read(
        self,
        ids: npt.ArrayLike,
        *,
        out: npt.NDArray[np.uint8] | None = None,
        places: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Read tiles.

        Args:
            ids: (m,) integers in [0, n), any order, repeats allowed.
            out: (m, s, s, 3) uint8, C-contiguous; made when not given.
            places: (m,) where in a longer `out` each tile goes.

        Returns:
            (m, s, s, 3) uint8 RGB, or `out`.

        Raises:
            IndexError: if an id is out of range.
            StoreError: if a shard is missing or damaged.
        """
        wanted = np.asarray(ids, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.n_tiles):
            raise IndexError(f"tile ids {wanted.min()}..{wanted.max()}: must lie in 0..{self.n_tiles - 1}")
        if not self._is_prepared:
            self._prepare()
        tiles = self._make_room(len(wanted)) if out is None else out
        shards = wanted // self.tiles_per_shard
        order = np.argsort(shards, kind="stable")
        for which in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1) if len(order) else ():
            targets = which if places is None else places[which]
            self._read_from_shard(int(shards[which[0]]), wanted[which] % self.tiles_per_shard, targets, tiles)
        return tiles

    def _make_room(self, n_tiles: int) -> npt.NDArray[np.uint8]:
        try:
            return np.empty((n_tiles, self.size_px, self.size_px, 3), np.uint8)
        except MemoryError as error:
            raise StoreError(
                f"store '{self.path.parent.parent}': {n_tiles} tiles of {self.size_px} px do not fit into memory; read fewer"
            ) from error

    def read_encoded(self, tile: int) -> bytes:
        """Return one tile's chunk bytes as stored (empty when the chunk is missing)."""
        shard, entry = divmod(int(tile), self.tiles_per_shard)
        opened = self._acquire(shard)
        try:
            index = opened.index
            if index.offsets[entry] == MISSING:
                return b""
            return os.pread(opened.file, int(index.sizes[entry]), int(index.offsets[entry]))
        except OSError as error:
            raise self._damaged(tile, error) from error
        finally:
            OPEN_SHARDS.release(opened)

    def _read_from_shard(
        self, shard: int, entries: npt.NDArray[np.int64], places: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]
    ) -> None:
        opened = self._acquire(shard)
        try:
            for entry, place in zip(entries.tolist(), places.tolist(), strict=True):
                self._read_one(opened.file, opened.index, entry, out[place], shard)
        finally:
            OPEN_SHARDS.release(opened)

    def _read_one(self, file: int, index: ShardIndex, entry: int, out: npt.NDArray[np.uint8], shard: int) -> None:
        tile = shard * self.tiles_per_shard + entry
        try:
            offset, size = index.offsets.item(entry), index.sizes.item(entry)
            if offset == MISSING:
                self._verify(tile, b"")
                out[...] = 255
                return
            if isinstance(self.codec, NoneCodec) and size == out.nbytes:
                pixels = out.data.cast("B")
                if os.preadv(file, [pixels], offset) == size:
                    if not self._seen[tile]:
                        self._verify(tile, pixels)
                    return
            encoded = os.pread(file, size, offset)
            if not self._seen[tile]:
                self._verify(tile, encoded)
            self.codec.decode(encoded, out)
        except (OSError, ValueError, MemoryError) as error:
            raise self._damaged(tile, error) from error

    def _verify(self, tile: int, encoded: bytes | memoryview) -> None:
        """Compare a tile with its checksum, the first time that it is read.

        Raises:
            ValueError: if it is another.
        """
        if not self._seen[tile] and self._checksums is not None and crc32c(encoded) != self._checksums[tile]:
            raise ValueError("its bytes do not match their checksum")
        self._seen[tile] = 1

    def _damaged(self, tile: int, error: Exception) -> StoreError:
        what = f"store '{self.path.parent.parent}': tile {tile}"
        if isinstance(error, OSError) and error.errno is not None:  # it may be whole, where only its disk fails
            return StoreError(f"{what} cannot be read ({error.strerror}); check its disk")
        return StoreError(f"{what} is damaged ({error}); tile the slide again")

    def _acquire(self, shard: int) -> OpenShard:
        return OPEN_SHARDS.acquire((self._reader, shard), lambda: self._source(shard))

    def _source(self, shard: int) -> ShardSource:
        path = shard_path(self.path, shard, separator=self._separator)
        name = f"{self.path.parent.parent.name}/tiles/images/{path.relative_to(self.path)}"
        return ShardSource(path, name, self.tiles_per_shard)

    def close(self) -> None:
        """Close all shard files; they open again when needed."""
        OPEN_SHARDS.close_reader(self._reader)

    def __del__(self) -> None:
        if hasattr(self, "_reader"):
            OPEN_SHARDS.leave(self._reader)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]


def _read_shape(meta: dict[str, Any]) -> tuple[int, int, int]:
    """Return number and side of the tiles, and tiles a shard.

    Raises:
        ValueError: if it is not an array of tiles as image_metadata describes it.
    """
    n_tiles, height, width, channels = meta["shape"]
    shard, *tile = meta["chunk_grid"]["configuration"]["chunk_shape"]
    chunk = meta["codecs"][0]["configuration"]["chunk_shape"]
    whole = all(type(size) is int for size in (n_tiles, height, shard))
    square = [height, width, channels] == [height, height, 3] == tile and chunk == [1, *tile]
    if not (whole and square and meta["data_type"] == "uint8" and meta["codecs"][0]["name"] == "sharding_indexed"):
        raise ValueError("is no array of RGB tiles")
    if not (0 <= n_tiles <= _MOST_TILES and 1 <= height <= _MOST_PX and 1 <= shard <= _MOST_PER_SHARD):
        raise ValueError(f"cannot hold {n_tiles} tiles of {height} px, {shard} a shard")
    return n_tiles, height, shard


def _read_checksums(array: Path, n_tiles: int) -> npt.NDArray[np.uint32] | None:
    """Read the obs column that belongs to an array of tiles, None where there is none."""
    root, column = array.parent.parent, checksum_column(array.name)
    if not (root / "tables/tiles/obs").exists():
        return None
    try:
        obs = zarr.open_group(StoreFiles(root, read_only=True), path="tables/tiles/obs", mode="r", zarr_format=3)
        if column not in obs and column not in list(cast("Any", obs.attrs.get("column-order", ()))):
            return None
        found = read_array(obs, column, n_rows=n_tiles)
        if found.dtype.kind != "u" or found.ndim != 1:
            raise TypeError(f"holds {found.dtype}")
    except StoreError:
        raise
    except DAMAGE as error:
        raise StoreError(
            f"store '{root}': the checksums of its tiles are damaged ({error}); tile the slide again"
        ) from error
    return found.astype(np.uint32)
