"""The tile table: the anndata package opens it, and every value comes back as it went in."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from simtriplet.wsi.store import TABLE, TileStore
from simtriplet.wsi.table import Categorical, read_array, read_column, read_value, write_table
from simtriplet.wsi.zarr_files import write_array, write_group, write_mapping

anndata = pytest.importorskip("anndata")


def open_with_anndata(path: Path) -> Any:
    with warnings.catch_warnings():
        # anndata announces changes of its own future versions while it reads
        warnings.simplefilter("ignore", FutureWarning)
        return anndata.read_zarr(path)


def write(folder: Path, **parts: Any) -> Path:
    table = {"index": np.array(["a", "b", "c"], dtype=object), "obs": {}, "obsm": {}, "uns": {}} | parts
    write_table(write_group(folder / "tables", {}) / "tiles", **table)
    return folder / "tables/tiles"


def test_anndata_reads_a_store(store_factory: Any) -> None:
    keep = np.ones(24, bool)
    keep[[5, 11]] = False
    store: TileStore = store_factory("s1", rows=4, cols=6, keep=keep)
    read = open_with_anndata(store.path / TABLE)
    assert read.shape == (22, 0)
    assert list(read.obs.columns) == ["x", "y", "row", "col", "tissue_id", "tissue_fraction", "crc32c", "label"]
    assert {name: str(read.obs[name].dtype) for name in read.obs.columns} == {
        "x": "int64",
        "y": "int64",
        "row": "int32",
        "col": "int32",
        "tissue_id": "int32",
        "tissue_fraction": "float32",
        "crc32c": "uint32",
        "label": "category",
    }
    assert np.array_equal(read.obs[["x", "y"]].to_numpy(), store.base_xy())
    assert list(read.obs["label"].cat.categories) == ["dots", "stripes"]
    labels = store.labels()
    assert labels is not None
    assert list(read.obs["label"]) == list(labels.names())
    assert list(read.obs_names[:3]) == ["r0_c0", "r0_c1", "r0_c2"]
    assert read.obs_names.name == "tile_id"
    assert read.obsm["spatial"].dtype == np.float64
    assert np.array_equal(read.obsm["spatial"], store.base_xy() + store.base_size_px / 2)
    assert read.uns["slide_id"] == "s1"


def test_anndata_reads_the_neighbour_index_under_the_names_of_squidpy(store_factory: Any) -> None:
    store: TileStore = store_factory(rows=3, cols=4)
    read = open_with_anndata(store.path / TABLE)
    graph = store.neighbours()
    pairs, far = read.obsp["spatial_connectivities"], read.obsp["spatial_distances"]
    assert pairs.shape == far.shape == (12, 12)
    assert (pairs != pairs.T).nnz == 0
    assert (far != far.T).nnz == 0
    assert pairs.diagonal().sum() == 0
    assert np.array_equal(pairs.indices, graph.indices)
    assert np.array_equal(pairs.indptr, graph.indptr)
    assert set(np.unique(pairs.data)) == {1.0}
    pitch = 32 * 0.5
    assert np.allclose(np.unique(far.data), [pitch, pitch * np.sqrt(2)])
    assert read.uns["spatial_neighbors"]["connectivities_key"] == "spatial_connectivities"
    assert read.uns["spatial_neighbors"]["distances_key"] == "spatial_distances"
    assert read.uns["spatial_neighbors"]["params"]["rule"] == "grid"


def test_a_column_without_some_labels(tmp_path: Path) -> None:
    column = Categorical(np.array([1, -1, 0]), ("gland", "stroma"))
    path = write(tmp_path, obs={"label": column})
    read = open_with_anndata(path)
    assert read.obs["label"].isna().tolist() == [False, True, False]
    assert column.names().tolist() == ["stroma", None, "gland"]
    again = read_column(zarr.open_group(path / "obs", mode="r"), "label")
    assert isinstance(again, Categorical)
    assert again.categories == column.categories
    assert again.codes.tolist() == [1, -1, 0]


def test_more_classes_than_a_small_code_holds(tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(200))
    codes = np.array([0, 130, 199])
    again = read_column(zarr.open_group(write(tmp_path, obs={"c": Categorical(codes, names)}) / "obs", mode="r"), "c")
    assert isinstance(again, Categorical)
    assert again.names().tolist() == ["class 0", "class 130", "class 199"]


def test_an_empty_table_opens(tmp_path: Path) -> None:
    path = write(
        tmp_path, index=np.array([], object), obs={"x": np.zeros(0, np.int64)}, obsm={"spatial": np.zeros((0, 2))}
    )
    read = open_with_anndata(path)
    assert read.shape == (0, 0)
    assert read.obsm["spatial"].shape == (0, 2)


# zarr-python drops NULs at the end of a text that it reads
texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=8)
plain = st.recursive(
    st.booleans() | st.integers(-(2**31), 2**31) | st.floats(allow_nan=False) | texts,
    lambda values: st.dictionaries(st.text("abc", min_size=1, max_size=4), values, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=15)
@given(values=st.dictionaries(st.text("xyz", min_size=1, max_size=3), plain, max_size=3))
def test_nested_values_come_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    folder = write_group(tmp_path_factory.mktemp("values") / "group", {})
    write_mapping(folder / "uns", values)
    assert read_value(zarr.open_group(folder, mode="r"), "uns") == values


def test_lists_become_arrays_and_none_is_left_out(tmp_path: Path) -> None:
    folder = write_group(tmp_path / "group", {})
    write_mapping(folder / "uns", {"a": [1, 2], "b": None, "c": ["x", "y"]})
    read = read_value(zarr.open_group(folder, mode="r"), "uns")
    assert sorted(read) == ["a", "c"]
    assert read["a"].tolist() == [1, 2]
    assert read["c"].tolist() == ["x", "y"]


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "uint32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(0,), (1,), (5,), (0, 3), (4, 3)])
def test_arrays_keep_shape_and_type(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    write_array(write_group(tmp_path / "group", {}) / "a", values, {"note": "n"})
    group = zarr.open_group(tmp_path / "group", mode="r")
    read = read_array(group, "a")
    assert read.dtype == values.dtype
    assert read.shape == shape
    assert np.array_equal(read, values)
    assert group["a"].attrs["encoding-type"] == "array"
    assert group["a"].attrs["note"] == "n"


def test_a_column_longer_than_one_chunk(tmp_path: Path) -> None:
    values = np.arange((1 << 18) + 5)
    write_array(write_group(tmp_path / "group", {}) / "a", values)
    group = zarr.open_group(tmp_path / "group", mode="r")
    assert group["a"].nchunks == 2
    assert np.array_equal(read_array(group, "a"), values)


@pytest.mark.parametrize(("shape", "chunks"), [((5, 7), (2, 3)), ((4, 6, 3), (4, 4, 3)), ((3, 3), (8, 8))])
def test_pieces_at_the_border_of_an_array_are_whole(
    tmp_path: Path, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> None:
    values = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape) + 1
    axes = ["y", "x", "c"][: len(shape)]
    write_array(write_group(tmp_path / "group", {}) / "a", values, chunks=chunks, dimension_names=axes)
    read = zarr.open_array(tmp_path / "group/a", mode="r")
    assert np.array_equal(read[...], values)
    assert read.chunks == tuple(map(min, shape, chunks))
    assert read.metadata.dimension_names == tuple(axes)  # type: ignore[union-attr]


def test_texts_of_any_script_and_length_come_back(tmp_path: Path) -> None:
    texts = np.array(["", "a", "Ärztin", "病理", "x" * 5000], dtype=object)
    write_array(write_group(tmp_path / "group", {}) / "a", texts)
    assert read_array(zarr.open_group(tmp_path / "group", mode="r"), "a").tolist() == texts.tolist()


@pytest.mark.parametrize("dtype", [object, "U"])
def test_texts_of_more_than_one_piece_come_back(tmp_path: Path, dtype: Any) -> None:
    texts = np.array([f"r{number}" for number in range(11)], dtype=dtype)
    write_array(write_group(tmp_path / "group", {}) / "a", texts, chunks=(4,))
    read = zarr.open_array(tmp_path / "group/a", mode="r")
    assert read.nchunks == 3
    assert np.asarray(read[...]).tolist() == texts.tolist()


def test_a_flipped_byte_is_found_on_reading(tmp_path: Path) -> None:
    write_array(write_group(tmp_path / "group", {}) / "a", np.arange(50))
    file = tmp_path / "group/a/c/0"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"(?i)crc|checksum"):
        read_array(zarr.open_group(tmp_path / "group", mode="r"), "a")
