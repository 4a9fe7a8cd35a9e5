"""The pixels of a store: `tiles/images`, one tile a chunk, many tiles a shard, written in order and read at random."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.codec import NoneCodec, TileCodec, codec_from_metadata
from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.open_shards import OPEN_SHARDS, OpenShard, ShardSource
from simtriplet.wsi.shard import MISSING, Buffer, ShardIndex, write_shard

__all__ = ["IMAGES", "TILES_PER_SHARD", "TileImages", "write_image_metadata", "write_image_shard"]

TILES_PER_SHARD = 64
"""In (region, Morton) order 79 % of the 8-neighbour pairs share a shard of this size."""

IMAGES = "images"
"""The array of the tiles, in the group `tiles`; co-centred tiles at another mpp lie beside it."""

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
    (array / "zarr.json").write_text(json.dumps(image_metadata(n_tiles, size_px, codec), indent=2))


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
            meta = json.loads((array / "zarr.json").read_text())
            sharding = meta["codecs"][0]["configuration"]
            self.n_tiles, self.size_px = int(meta["shape"][0]), int(meta["shape"][1])
            self.tiles_per_shard = int(meta["chunk_grid"]["configuration"]["chunk_shape"][0])
            chain = sharding["codecs"]
            self._separator = str(meta["chunk_key_encoding"]["configuration"]["separator"])
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise StoreError(
                f"store '{array.parent.parent}': has no readable tiles/images; tile the slide again"
            ) from error
        self.codec = codec_from_metadata(chain, where=str(array.parent.parent))
        self._reader = OPEN_SHARDS.new_reader()

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
        shape = (len(wanted), self.size_px, self.size_px, 3)
        tiles = np.empty(shape, np.uint8) if out is None else out
        shards = wanted // self.tiles_per_shard
        order = np.argsort(shards, kind="stable")
        for which in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1) if len(order) else ():
            targets = which if places is None else places[which]
            self._read_from_shard(int(shards[which[0]]), wanted[which] % self.tiles_per_shard, targets, tiles)
        return tiles

    def read_encoded(self, tile: int) -> bytes:
        """Return one tile's chunk bytes as stored (empty when the chunk is missing)."""
        shard, entry = divmod(int(tile), self.tiles_per_shard)
        opened = self._acquire(shard)
        try:
            index = opened.index
            if index.offsets[entry] == MISSING:
                return b""
            return os.pread(opened.file, int(index.sizes[entry]), int(index.offsets[entry]))
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
        if index.offsets[entry] == MISSING:
            out[...] = 255
            return
        offset, size = int(index.offsets[entry]), int(index.sizes[entry])
        if isinstance(self.codec, NoneCodec) and size == out.nbytes:
            read = os.preadv(file, [out.data.cast("B")], offset)
            if read == size:
                return
        try:
            self.codec.decode(os.pread(file, size, offset), out)
        except ValueError as error:
            tile = shard * self.tiles_per_shard + entry
            raise StoreError(
                f"store '{self.path.parent.parent}': tile {tile} is damaged ({error}); tile the slide again"
            ) from error

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
