"""Write plain Zarr v3 nodes (groups, scalars, arrays) straight to disk, as zarr-python lays them out, with AnnData's attributes.

zarr-python takes 2 to 4 ms for each array, so that the 40 small arrays of a store and its index would take longer than
copying the tiles of a slide; the layout is simple and published (https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html).
Every array and every zarr.json carries a CRC-32C, and every chunk is written, so that a missing file always means a lost one.
"""

import itertools
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numcodecs.zstd
import numpy as np
import numpy.typing as npt
from numcodecs import Blosc, VLenUTF8

from simtriplet.wsi.checksum import crc32c
from simtriplet.wsi.metadata import metadata_bytes

__all__ = ["write_array", "write_group", "write_mapping", "write_scalar", "write_vector"]

_CHUNK_ROWS, _VECTOR_ROWS = 1 << 18, 1 << 20
_THREADS = 2
_ZSTD_LEVEL = 1
_CRC: dict[str, Any] = {"name": "crc32c"}
_BYTES: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
_UTF8: dict[str, Any] = {"name": "vlen-utf8", "configuration": {}}
_ZSTD: dict[str, Any] = {"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}}


def write_group(path: Path, attributes: Mapping[str, Any]) -> Path:
    """Make a folder a group; the folder is made where it is missing, its parent must exist.

    Returns:
        `path`.
    """
    path.mkdir(exist_ok=True)
    _write_node(path, {"node_type": "group"}, attributes)
    return path


def write_mapping(path: Path, values: Mapping[str, Any]) -> None:
    """Write nested mappings of strings, numbers and arrays, as AnnData keeps them in `uns`; None is left out."""
    write_group(path, {"encoding-type": "dict", "encoding-version": "0.1.0"})
    for key, value in values.items():
        if isinstance(value, Mapping):
            write_mapping(path / key, value)
        elif isinstance(value, (np.ndarray, list, tuple)):
            write_array(path / key, np.asarray(value))
        elif value is not None:
            write_scalar(path / key, value)


def write_scalar(path: Path, value: str | bool | int | float) -> None:
    """Write one string or number."""
    if isinstance(value, str):
        text = value.encode()
        data, data_type, fill, kind = struct.pack("<II", 1, len(text)) + text, "string", "", "string"
        codecs = [_UTF8, _CRC]
    else:
        number = np.asarray(value)
        data, data_type, fill, kind = _little(number).tobytes(), number.dtype.name, _zero(number), "numeric-scalar"
        codecs = [_bytes_codec(number), _CRC]
    path.mkdir()
    _write_node(path, _array((), (), data_type, fill, codecs), {"encoding-type": kind, "encoding-version": "0.2.0"})
    (path / "c").write_bytes(_with_crc(data))


def write_array(
    path: Path,
    values: npt.NDArray[Any],
    attributes: Mapping[str, Any] | None = None,
    *,
    chunks: Sequence[int] | None = None,
    dimension_names: Sequence[str] | None = None,
) -> None:
    """Write an array of numbers, booleans or strings, compressed by zstd.

    Args:
        path: the array's folder, which is made; its parent must exist.
        values: of any shape but ().
        attributes: beside those that AnnData expects.
        chunks: at most this shape; by default 262,144 rows and all of the other axes.
        dimension_names: one an axis.
    """
    is_text = values.dtype.kind in "OU"
    limits = chunks or (_CHUNK_ROWS, *values.shape[1:])
    chunk = tuple(max(1, min(size, limit)) for size, limit in zip(values.shape, limits, strict=True))
    if is_text:
        data_type, fill, first = "string", "", _UTF8
    else:
        data_type, fill, first = values.dtype.name, _zero(values), _bytes_codec(values)
    encoding = {"encoding-type": "string-array" if is_text else "array", "encoding-version": "0.2.0"}
    node = _array(values.shape, chunk, data_type, fill, [first, _ZSTD, _CRC])
    if dimension_names is not None:
        node["dimension_names"] = list(dimension_names)
    path.mkdir()
    _write_node(path, node, encoding | dict(attributes or {}))
    counts = [-(-size // side) for size, side in zip(values.shape, chunk, strict=True)]
    for place in itertools.product(*map(range, counts)):
        part = values[tuple(slice(i * side, (i + 1) * side) for i, side in zip(place, chunk, strict=True))]
        if part.shape != chunk:  # chunks at the border are stored in full
            inside = tuple(map(slice, part.shape))
            whole = np.full(chunk, fill, object if is_text else part.dtype)
            whole[inside] = part
            part = whole
        file = path.joinpath("c", *map(str, place))
        file.parent.mkdir(parents=True, exist_ok=True)
        raw = VLenUTF8().encode(part.astype(object)) if is_text else np.ascontiguousarray(_little(part))
        file.write_bytes(_with_crc(numcodecs.zstd.compress(raw, _ZSTD_LEVEL)))


def write_vector(path: Path, values: npt.NDArray[Any]) -> None:
    """Write (n,) numbers of at least two bytes each, in chunks of a million, compressed by blosc.

    Neighbours in Morton order differ in few bits, which bitshuffle lays together: of 8 million, 32 MB become 1.3, in a tenth
    of a second (9 MB with zstd alone).
    """
    rows = min(max(1, len(values)), _VECTOR_ROWS)
    settings = {"typesize": values.itemsize, "cname": "zstd", "clevel": 1, "shuffle": "bitshuffle", "blocksize": 0}
    codecs = [_BYTES, {"name": "blosc", "configuration": settings}, _CRC]
    path.mkdir()
    attributes = {"encoding-type": "array", "encoding-version": "0.2.0"}
    _write_node(path, _array((len(values),), (rows,), values.dtype.name, _zero(values), codecs), attributes)
    chunks = range(0, len(values), rows)
    if not chunks:
        return
    (path / "c").mkdir()
    compressor = Blosc(cname="zstd", clevel=1, shuffle=Blosc.BITSHUFFLE)

    def write(number: int) -> None:
        chunk = _little(values[number * rows : (number + 1) * rows])
        if len(chunk) < rows:  # the last chunk is stored in full
            chunk = np.concatenate([chunk, np.zeros(rows - len(chunk), chunk.dtype)])
        (path / "c" / str(number)).write_bytes(_with_crc(compressor.encode(np.ascontiguousarray(chunk))))

    if len(chunks) == 1:
        write(0)
        return
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="write-index") as pool:
        list(pool.map(write, range(len(chunks))))


def _array(
    shape: tuple[int, ...], chunk: tuple[int, ...], data_type: str, fill: Any, codecs: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "node_type": "array",
        "shape": shape,
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": codecs,
        "storage_transformers": [],
    }


def _write_node(path: Path, node: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    (path / "zarr.json").write_bytes(metadata_bytes({"zarr_format": 3, **node, "attributes": attributes}))


def _bytes_codec(values: npt.NDArray[Any]) -> dict[str, Any]:
    return {"name": "bytes"} if values.dtype.itemsize == 1 else _BYTES


def _little(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values.astype(values.dtype.newbyteorder("<"), copy=False)


def _zero(values: npt.NDArray[Any]) -> Any:
    return values.dtype.type(0).item()


def _with_crc(data: bytes) -> bytes:
    return data + struct.pack("<I", crc32c(data))
