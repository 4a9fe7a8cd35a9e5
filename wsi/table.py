"""The tile table as AnnData lays it out on disk, written and read without the anndata package.

Follows the AnnData on-disk format (https://anndata.readthedocs.io/en/stable/fileformat-prose.html), so that
`anndata.read_zarr` and squidpy open it as it stands, while a trainer needs neither.
Every array carries a CRC-32C, which zarr verifies on reading.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import zarr

from simtriplet.wsi.zarr_files import write_array, write_group, write_mapping

__all__ = ["Categorical", "read_array", "read_column", "read_value", "write_categorical", "write_table"]


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
    """Read a scalar, an array or a nested mapping written by `write_mapping`."""
    node = group[name]
    if isinstance(node, zarr.Group):
        return {key: read_value(node, key) for key in sorted(node.keys())}
    value = np.asarray(node[...])
    return value.item() if value.shape == () else value
