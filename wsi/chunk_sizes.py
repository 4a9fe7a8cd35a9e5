"""How much memory a chunk takes once it is decompressed, told by its own head: before zarr believes it.

A chunk of 100 KB may hold 3 GB of zeros, whatever shape the array has, and a list of texts tells its own length.
"""

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numcodecs.zstd
import zarr

from simtriplet.wsi.metadata import read_regular_file
from simtriplet.wsi.zstd_frame import zstd_size

__all__ = ["refuse_swelling_chunks"]

_HEAD_BYTES, _CRC_BYTES = 32, 4
_SLACK_BYTES, _TEXT_SLACK_BYTES = 1 << 16, 1 << 24
_TEXT_BYTES = 1 << 9
"""Of one text and its length, on average over a chunk: names of tiles have ten letters."""

_TEXTS = ("vlen-utf8", "vlen-bytes")


def refuse_swelling_chunks(array: zarr.Array[Any], files: Sequence[Path]) -> None:
    """Compare what chunks say that they hold with what the array says; codecs that say nothing are passed.

    Args:
        array: of any codecs.
        files: of its chunks.

    Raises:
        ValueError: if one would take more memory than its place in the array.
        OSError: if one cannot be read.
    """
    codecs = [codec.to_dict()["name"] for codec in getattr(array.metadata, "codecs", ())]
    if not codecs or "sharding_indexed" in codecs:
        return
    n_items = math.prod(array.chunks)
    is_text = any(name in _TEXTS for name in codecs)
    each, slack = (_TEXT_BYTES, _TEXT_SLACK_BYTES) if is_text else (array.dtype.itemsize, _SLACK_BYTES)
    most = slack + n_items * each
    for file in files:
        if file.stat().st_size > 2 * most:
            raise ValueError(f"its chunk {file.name} is larger than its place")
        claimed = _claimed_bytes(read_regular_file(file, n_bytes=_HEAD_BYTES), codecs)
        if claimed is not None and claimed > most:
            raise ValueError(f"its chunk {file.name} swells to {claimed} bytes, beyond its place")
        if is_text and _n_texts(file, codecs) not in (None, n_items):
            raise ValueError(f"its chunk {file.name} does not hold {n_items} texts")


def _claimed_bytes(head: bytes, codecs: Sequence[str]) -> int | None:
    """Return the bytes that a chunk decompresses to, None where its codec does not say."""
    if "zstd" in codecs:
        return zstd_size(head)
    if "blosc" in codecs and len(head) >= 8:
        return int(struct.unpack_from("<I", head, 4)[0])
    return None


def _n_texts(file: Path, codecs: Sequence[str]) -> int | None:
    """Return how many texts a chunk says that it holds, None where another codec hides that."""
    if not set(codecs) <= {*_TEXTS, "zstd", "crc32c"}:
        return None
    data = read_regular_file(file)
    data = data[:-_CRC_BYTES] if "crc32c" in codecs else data
    try:
        raw = numcodecs.zstd.decompress(data) if "zstd" in codecs else data
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return int(struct.unpack_from("<I", raw)[0]) if len(raw) >= 4 else None
