"""The tile table as AnnData lays it out on disk, written and read with zarr alone.

Follows the AnnData on-disk format (https://anndata.readthedocs.io/en/stable/fileformat-prose.html), so that
`anndata.read_zarr` and squidpy open it as it stands, while a trainer needs neither.
Every array carries a CRC-32C, which zarr verifies on reading.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.dtype import VariableLengthUTF8

__all__ = [
    "Categorical",
    "add_column",
    "read_array",
    "read_column",
    "read_value",
    "write_array",
    "write_categorical",
    "write_dict",
    "write_table",
    "write_value",
]

_CHUNK_ROWS = 1 << 18
_STRING: Any = VariableLengthUTF8()
_STORE_ALL: Any = {"write_empty_chunks": True}
"""A chunk of zeros is written too, so that a missing file always means a lost one."""


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


def write_array(group: zarr.Group, name: str, values: npt.NDArray[Any], **attributes: Any) -> None:
    """Write a numeric or string array with the attributes AnnData expects."""
    attrs = {"encoding-type": "array", "encoding-version": "0.2.0", **attributes}
    chunks = tuple(
        min(max(1, size), _CHUNK_ROWS if axis == 0 else max(1, size)) for axis, size in enumerate(values.shape)
    )
    if values.dtype.kind in "OU":
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=_STRING,
            chunks=chunks,
            compressors=[ZstdCodec(), Crc32cCodec()],
            attributes={**attrs, "encoding-type": "string-array"},
            config=_STORE_ALL,
        )
        if values.size:
            array[...] = values.astype(object)
        return
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunks,
        compressors=[ZstdCodec(), Crc32cCodec()],
        attributes=attrs,
        config=_STORE_ALL,
    )
    if values.size:
        array[...] = values


def write_value(group: zarr.Group, name: str, value: str | bool | int | float) -> None:
    """Write one string or number, as AnnData keeps scalars in `uns`."""
    if isinstance(value, str):
        dtype: Any = _STRING
        attributes: dict[str, Any] = {"encoding-type": "string", "encoding-version": "0.2.0"}
    else:
        dtype = np.asarray(value).dtype
        attributes = {"encoding-type": "numeric-scalar", "encoding-version": "0.2.0"}
    array = group.create_array(
        name,
        shape=(),
        dtype=dtype,
        compressors=[ZstdCodec(), Crc32cCodec()],
        attributes=attributes,
        config=_STORE_ALL,
    )
    array[...] = value


def write_dict(group: zarr.Group, name: str, values: Mapping[str, Any]) -> zarr.Group:
    """Write nested mappings of strings, numbers and arrays; None is left out."""
    made = group.create_group(name, attributes={"encoding-type": "dict", "encoding-version": "0.1.0"})
    for key, value in values.items():
        if isinstance(value, Mapping):
            write_dict(made, key, value)
        elif isinstance(value, (np.ndarray, list, tuple)):
            write_array(made, key, np.asarray(value))
        elif value is not None:
            write_value(made, key, value)
    return made


def write_categorical(group: zarr.Group, name: str, column: Categorical) -> None:
    """Write a categorical column."""
    attributes = {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}
    made = group.create_group(name, attributes=attributes)
    smallest = np.int8 if len(column.categories) < 127 else np.int32
    write_array(made, "codes", np.asarray(column.codes).astype(smallest))
    write_array(made, "categories", np.array(column.categories, dtype=object))


def write_table(
    parent: zarr.Group,
    name: str,
    *,
    index: npt.NDArray[np.object_],
    obs: Mapping[str, npt.NDArray[Any] | Categorical],
    obsm: Mapping[str, npt.NDArray[Any]],
    uns: Mapping[str, Any],
) -> None:
    """Write an AnnData group without X and with no variables.

    Args:
        parent: the group that holds the table.
        name: its name there.
        index: (n,) unique strings, the obs names.
        obs: (n,) columns.
        obsm: (n, k) arrays.
        uns: nested plain values.
    """
    table = parent.create_group(name, attributes={"encoding-type": "anndata", "encoding-version": "0.1.0"})
    _write_frame(table, "obs", index, "tile_id", obs)
    _write_frame(table, "var", np.array([], dtype=object), "_index", {})
    matrices = write_dict(table, "obsm", {})
    for key, values in obsm.items():
        write_array(matrices, key, values)
    for empty in ("layers", "obsp", "varm", "varp"):
        write_dict(table, empty, {})
    write_dict(table, "uns", uns)


def _write_frame(
    parent: zarr.Group,
    name: str,
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
    frame = parent.create_group(name, attributes=attributes)
    write_array(frame, index_name, index)
    for key, column in columns.items():
        add_column(frame, key, column)


def add_column(frame: zarr.Group, name: str, column: npt.NDArray[Any] | Categorical) -> None:
    """Write one column into a dataframe group (its `column-order` is the caller's)."""
    if isinstance(column, Categorical):
        write_categorical(frame, name, column)
    else:
        write_array(frame, name, column)


def read_column(frame: zarr.Group, name: str) -> npt.NDArray[Any] | Categorical:
    """Read one column of a dataframe group.

    Raises:
        KeyError: if there is no such column.
    """
    node = frame[name]
    if isinstance(node, zarr.Group):
        codes = read_array(node, "codes")
        categories = tuple(str(name) for name in read_array(node, "categories"))
        return Categorical(codes, categories)
    return read_array(frame, name)


def read_array(group: zarr.Group, name: str) -> npt.NDArray[Any]:
    """Read a whole array into memory."""
    node = group[name]
    if not isinstance(node, zarr.Array):
        raise KeyError(name)
    return np.asarray(node[...])


def read_value(group: zarr.Group, name: str) -> Any:
    """Read a scalar, an array or a nested mapping written by `write_dict`."""
    node = group[name]
    if isinstance(node, zarr.Group):
        return {key: read_value(node, key) for key in sorted(node.keys())}
    value = np.asarray(node[...])
    return value.item() if value.shape == () else value
