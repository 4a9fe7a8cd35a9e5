"""The tile table as AnnData lays it out on disk, written and read without the anndata package.

Follows the AnnData on-disk format (https://anndata.readthedocs.io/en/stable/fileformat-prose.html), so that
`anndata.read_zarr` and squidpy open it as it stands, while a trainer needs neither.
Every array carries a CRC-32C, which zarr verifies on reading.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore

from simtriplet.wsi.chunk_sizes import refuse_swelling_chunks
from simtriplet.wsi.zarr_files import write_array, write_group, write_mapping

__all__ = [
    "Categorical",
    "check_chunks",
    "member_names",
    "read_array",
    "read_column",
    "read_value",
    "write_categorical",
    "write_table",
]

_SMALL_BYTES = 1 << 26
_MOST_COMPRESSION = 100_000
"""zstd makes at most 32,768 of a byte; blosc, which splits a chunk into streams, somewhat more."""


class Categorical(NamedTuple):
    """A column of named classes.

    Attributes:
        codes: (n,) int, -1 where there is no label.
        categories: the class names, in code order.
    """

    codes: npt.NDArray[np.integer[Any]]
    categories: tuple[str, ...]

    def names(self) -> npt.NDArray[np.object_]:
        """Return (n,) class names, None where there is no label."""
        table = np.array([*self.categories, None], dtype=object)
        return cast("npt.NDArray[np.object_]", table[np.asarray(self.codes, dtype=np.int64)])


def write_table(
    path: Path,
    *,
    index: npt.NDArray[np.object_],
    obs: Mapping[str, npt.NDArray[Any] | Categorical],
    obsm: Mapping[str, npt.NDArray[Any]],
    uns: Mapping[str, Any],
) -> None:
    """Write an AnnData group without X and with no variables.

    Args:
        path: of the table, which is made; the group that holds it must exist.
        index: (n,) unique strings, the obs names.
        obs: (n,) columns.
        obsm: (n, k) arrays.
        uns: nested plain values.
    """
    write_group(path, {"encoding-type": "anndata", "encoding-version": "0.1.0"})
    _write_frame(path / "obs", index, "tile_id", obs)
    _write_frame(path / "var", np.array([], dtype=object), "_index", {})
    for name, values in {"obsm": obsm, "layers": {}, "obsp": {}, "varm": {}, "varp": {}, "uns": uns}.items():
        write_mapping(path / name, values)


def _write_frame(
    path: Path,
    index: npt.NDArray[np.object_],
    index_name: str,
    columns: Mapping[str, npt.NDArray[Any] | Categorical],
) -> None:
    attributes = {
        "encoding-type": "dataframe",
        "encoding-version": "0.2.0",
        "_index": index_name,
        "column-order": list(columns),
    }
    write_group(path, attributes)
    write_array(path / index_name, index)
    for name, column in columns.items():
        if isinstance(column, Categorical):
            write_categorical(path / name, column)
        else:
            write_array(path / name, column)


def write_categorical(path: Path, column: Categorical) -> None:
    """Write a categorical column."""
    write_group(path, {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
    smallest = np.int8 if len(column.categories) < 127 else np.int32
    write_array(path / "codes", np.asarray(column.codes).astype(smallest))
    write_array(path / "categories", np.array(column.categories, dtype=object))


def read_column(frame: zarr.Group, name: str, *, n_rows: int | None = None) -> npt.NDArray[Any] | Categorical:
    """Read one column of a dataframe group.

    Args:
        frame: the group.
        name: of the column.
        n_rows: how long it must be, where that is known.

    Raises:
        KeyError: if there is no such column.
        ValueError: if it is of another length, or its codes stand for no category.
    """
    node = frame[name]
    if not isinstance(node, zarr.Group):
        return read_array(frame, name, n_rows=n_rows)
    codes = read_array(node, "codes", n_rows=n_rows)
    categories = tuple(str(name) for name in read_array(node, "categories"))
    if codes.dtype.kind != "i" or (len(codes) and not -1 <= codes.min() <= codes.max() < len(categories)):
        raise ValueError(f"{name}: its codes stand for no category")
    return Categorical(codes, categories)


def read_array(group: zarr.Group, name: str, *, n_rows: int | None = None) -> npt.NDArray[Any]:
    """Read a whole array into memory.

    Args:
        group: that holds it.
        name: of the array.
        n_rows: how long it must be, where that is known; looked at before memory is taken.

    Raises:
        KeyError: if there is no such array.
        ValueError: if it is of another length, has lost chunks, or claims far more than its files can hold.
    """
    node = group[name]
    if not isinstance(node, zarr.Array):
        raise KeyError(name)
    if n_rows is not None and node.shape[:1] != (n_rows,):
        raise ValueError(f"{name} has {node.shape[0] if node.shape else 'no'} rows, not {n_rows}")
    check_chunks(node)
    return np.asarray(node[...])


def check_chunks(array: zarr.Array[Any]) -> None:
    """Make sure that the files of an array are all there and can hold what it claims; other than local ones are passed.

    zarr reads a lost chunk as the fill value. Our arrays, which a CRC-32C tells from those of others, store every chunk.

    Raises:
        ValueError: if they are not.
        OSError: if one cannot be read.
    """
    folder = _folder_of(array)
    if folder is None or not array.size:
        return
    files = _files_in(folder / "c")
    sizes = [file.stat().st_size for file in files]
    lost = array.nchunks - len(sizes)
    if lost > 0 and _is_ours(array):
        raise ValueError(f"has lost {lost} of {array.nchunks} chunks")
    if array.nbytes > _SMALL_BYTES + _MOST_COMPRESSION * sum(sizes):
        raise ValueError(f"claims {array.nbytes} bytes, which its files cannot hold")
    refuse_swelling_chunks(array, files)


def member_names(group: zarr.Group) -> list[str]:
    """Return the names of the nodes right inside a group, sorted; zarr itself warns of each folder that is none."""
    folder = _folder_of(group)
    if folder is None:
        return sorted(group.keys())
    return sorted(entry.name for entry in folder.iterdir() if (entry / "zarr.json").exists())


def _folder_of(node: zarr.Array[Any] | zarr.Group) -> Path | None:
    store = node.store_path.store
    return store.root / node.path if isinstance(store, LocalStore) else None


def _files_in(path: Path) -> list[Path]:
    """Return the files in a folder and its folders, or the one file that it is; pipes and devices are none."""
    if path.is_file():  # the only chunk of a scalar
        return [path]
    found = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    return [file for file in found if file.is_file()]


def _is_ours(array: zarr.Array[Any]) -> bool:
    return any(isinstance(codec, Crc32cCodec) for codec in getattr(array.metadata, "codecs", ()))


def read_value(group: zarr.Group, name: str) -> Any:
    """Read a scalar, an array or a nested mapping written by `write_mapping`."""
    node = group[name]
    if isinstance(node, zarr.Group):
        return {key: read_value(node, key) for key in member_names(node)}
    value = read_array(group, name)
    return value.item() if value.shape == () else value
