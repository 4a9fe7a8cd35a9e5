"""Write and read Zarr v3 shards directly: chunks back to back, then the index, as the sharding_indexed codec lays them out.

zarr-python encodes about 1,000 tiles/s into shards and reads them one by one at the same rate; the layout is simple and
published (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html), so it is written here as it
stands: chunk bytes in order, then one (offset, nbytes) pair of little-endian uint64 a chunk, then the CRC-32C of the index.
"""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.checksum import crc32c
from simtriplet.wsi.direct_write import write_direct
from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.packed_chunks import PackedChunks

__all__ = ["MISSING", "ShardIndex", "read_shard_index", "write_shard"]

MISSING = np.iinfo(np.uint64).max
"""Offset and length of a chunk that is not stored (it reads as the fill value)."""

_MAX_IOV = 512

Buffer = bytes | bytearray | memoryview


def write_shard(path: Path, chunks: Sequence[Buffer], *, chunks_per_shard: int) -> int:
    """Write one shard file; chunks beyond those given are marked missing.

    Args:
        path: the shard file; its folder must exist.
        chunks: encoded chunks in C order, at most `chunks_per_shard`.
        chunks_per_shard: number of entries in the index.

    Returns:
        The size of the file in bytes.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    index = np.full((chunks_per_shard, 2), MISSING, dtype="<u8")
    sizes = chunks.sizes if isinstance(chunks, PackedChunks) else _sizes(chunks)
    index[: len(chunks), 1] = sizes
    index[: len(chunks), 0] = np.cumsum(sizes) - sizes
    table = index.tobytes()
    end = table + struct.pack("<I", crc32c(table))
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        if not isinstance(chunks, PackedChunks):
            return _write_all(file, [*chunks, end])
        done = os.lseek(file, write_direct(path, chunks.memory), os.SEEK_SET)
        return done + _write_all(file, [chunks.memory[done:].data, end])
    finally:
        os.close(file)


def _sizes(chunks: Sequence[Buffer]) -> npt.NDArray[np.int64]:
    return np.array([memoryview(chunk).nbytes for chunk in chunks], dtype=np.int64)


def _write_all(file: int, buffers: Sequence[Buffer]) -> int:
    total = 0
    for start in range(0, len(buffers), _MAX_IOV):
        views = [memoryview(buffer).cast("B") for buffer in buffers[start : start + _MAX_IOV]]
        while views:
            written = os.writev(file, views)
            total += written
            while views and written >= views[0].nbytes:
                written -= views.pop(0).nbytes
            if written:
                views[0] = views[0][written:]
    return total


class ShardIndex:
    """Where each chunk of one shard lies.

    Attributes:
        offsets: (c,) uint64, bytes from the start of the file; MISSING where there is no chunk.
        sizes: (c,) uint64, bytes.
    """

    __slots__ = ("offsets", "sizes")

    def __init__(self, table: npt.NDArray[np.uint64]) -> None:
        self.offsets = table[:, 0]
        self.sizes = table[:, 1]


def read_shard_index(file: int, *, chunks_per_shard: int, name: str) -> ShardIndex:
    """Read and verify the index at the end of an open shard file.

    Args:
        file: file descriptor.
        chunks_per_shard: number of entries.
        name: what to call the file in an error message.

    Raises:
        StoreError: if the file is too short or the checksum of the index does not match.
    """
    size = os.fstat(file).st_size
    length = 16 * chunks_per_shard + 4
    if size < length:
        raise StoreError(f"shard '{name}': is cut short at {size} bytes; tile the slide again with --existing replace")
    try:
        raw = os.pread(file, length, size - length)
    except OSError as error:
        raise StoreError(f"shard '{name}': cannot be read ({error.strerror}); check its disk") from error
    if len(raw) != length:
        raise StoreError(f"shard '{name}': was cut short meanwhile; tile the slide again with --existing replace")
    table, checksum = raw[:-4], struct.unpack("<I", raw[-4:])[0]
    if crc32c(table) != checksum:
        raise StoreError(f"shard '{name}': its index is damaged; tile the slide again with --existing replace")
    index = ShardIndex(np.frombuffer(table, dtype="<u8").astype(np.uint64).reshape(-1, 2))
    stored = index.offsets != MISSING
    ends = index.offsets[stored] + index.sizes[stored]
    if stored.any() and (int(ends.max()) > size - length or bool((ends < index.offsets[stored]).any())):
        raise StoreError(
            f"shard '{name}': its index points outside the file; tile the slide again with --existing replace"
        )
    return index
