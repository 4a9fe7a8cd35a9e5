"""Checking a store: any damaged byte and any lost file of data is reported, and a whole store is clean."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from simtriplet.wsi.check import check_store
from simtriplet.wsi.codec import CodecName
from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.neighbour_index import index_store, write_index
from simtriplet.wsi.neighbours import Adjacency
from simtriplet.wsi.store import TABLE, TileStore
from simtriplet.wsi.tiling import LabelSpec, SlideJob, TileRequest, tile_slide
from simtriplet.wsi.tissue import TissueSpec
from simtriplet.wsi.zarr_files import write_array

StoreFactory = Callable[..., TileStore]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, picture: Any, write_slide: Any) -> dict[str, Path]:
    """A store of each codec with everything in it: index, labels, tissue outline and features."""
    folder = tmp_path_factory.mktemp("check")
    slide = write_slide(folder / "a.tif", picture(600, 400))
    made = {}
    names: tuple[CodecName, ...] = ("none", "zstd", "jpeg")
    for codec in names:
        request = TileRequest(
            TilingSpec(size_px=40), TissueSpec(detector="all"), LabelSpec(background="rest"), codec=codec
        )
        tile_slide(SlideJob(slide, codec, patient_id="p", regions=()), folder, request, threads=1)
        made[codec] = folder / f"{codec}.tiles.zarr"
        store = TileStore(made[codec])
        index_store(store)
        features = np.random.default_rng(0).random((len(store), 5), dtype=np.float32)
        write_array(store.path / TABLE / "obsm/X_net", features)
    return made


def data_files(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file() and path.name != "zarr.json")


@pytest.mark.parametrize("codec", ["none", "zstd", "jpeg"])
def test_an_untouched_store_is_clean(stores: dict[str, Path], codec: str) -> None:
    seen: list[tuple[int, int]] = []
    assert check_store(stores[codec], progress=lambda *at: seen.append(at)) == []
    assert seen == [(150, 150)]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_flipped_byte_anywhere_is_reported(stores: dict[str, Path], data: st.DataObject) -> None:
    store = stores[data.draw(st.sampled_from(sorted(stores)))]
    files = data_files(store)
    file = files[data.draw(st.integers(0, len(files) - 1))]
    content = file.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    mask = data.draw(st.integers(1, 255))
    file.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
    try:
        assert check_store(store) != [], file.relative_to(store)
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("codec", ["none", "zstd", "jpeg"])
def test_every_file_of_data_is_missed_when_it_is_gone(stores: dict[str, Path], codec: str) -> None:
    files = data_files(stores[codec])
    # the arrays are the same whatever the codec, the shards are not
    chosen = files if codec == "none" else [file for file in files if "tiles/images" in file.as_posix()]
    assert len(chosen) >= 3
    for file in chosen:
        content = file.read_bytes()
        file.unlink()
        try:
            assert check_store(stores[codec]) != [], file.relative_to(stores[codec])
        finally:
            file.write_bytes(content)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_every_file_cut_short_is_reported(stores: dict[str, Path], share: float) -> None:
    for file in data_files(stores["jpeg"]):
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])
        try:
            assert check_store(stores["jpeg"]) != [], file.relative_to(stores["jpeg"])
        finally:
            file.write_bytes(content)


@pytest.mark.parametrize(
    "part",
    [
        "tables/tiles/obs/x",
        "tables/tiles/obs/label",
        "tables/tiles/obsm/spatial",
        "tissue/xy",
        "images/thumbnail/0",
        "tiles/images",
    ],
)
def test_an_array_that_is_gone_is_named(stores: dict[str, Path], tmp_path: Path, part: str) -> None:
    copy = tmp_path / "copy.tiles.zarr"
    shutil.copytree(stores["zstd"], copy)
    shutil.rmtree(copy / part)
    assert check_store(copy) == [f"array {part}: is missing"]


def test_a_store_without_its_table_is_damaged(store_factory: StoreFactory) -> None:
    store = store_factory()
    shutil.rmtree(store.path / TABLE)
    with pytest.raises(StoreError, match="the table is damaged"):
        check_store(store.path)


def test_the_damaged_tile_is_named(store_factory: StoreFactory) -> None:
    store = store_factory(rows=3, cols=5, size_px=8)
    shard = store.path / "tiles/images/c.0.0.0.0"
    content = bytearray(shard.read_bytes())
    content[8 * 8 * 3 * 6 + 10] ^= 0xFF
    shard.write_bytes(content)
    assert check_store(store.path) == ["tile 6: its bytes do not match their checksum"]


def test_a_lost_shard_is_one_line(store_factory: StoreFactory) -> None:
    store = store_factory(rows=10, cols=13)
    (store.path / "tiles/images/c.1.0.0.0").unlink()
    (problem,) = check_store(store.path)
    assert problem.startswith("64 tiles, 64-127: shard")


def test_the_damaged_array_is_named(store_factory: StoreFactory) -> None:
    store = store_factory()
    chunk = store.path / TABLE / "obs/row/c/0"
    chunk.write_bytes(b"\0" * chunk.stat().st_size)
    (problem,) = check_store(store.path)
    assert problem.startswith("array tables/tiles/obs/row: is damaged (")


def test_a_lost_chunk_is_counted(store_factory: StoreFactory) -> None:
    store = store_factory()
    (store.path / TABLE / "obs/x/c/0").unlink()
    assert check_store(store.path) == ["array tables/tiles/obs/x: has lost 1 of 1 chunks"]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([[1], []], "is not symmetric"),
        ([[0], []], "a tile is its own neighbour"),
        ([[7], []], "points at tiles that do not exist"),
        ([[1, 1], [0, 0]], "rows are not sorted"),
    ],
)
def test_a_relation_that_breaks_its_promises(store_factory: StoreFactory, rows: list[list[int]], problem: str) -> None:
    store = store_factory(rows=1, cols=2, index=False)
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    indices = np.array([other for row in rows for other in row], np.int32)
    write_index(store, Adjacency(indptr, indices, np.ones(len(indices))), {"rule": "by hand"})
    assert f"neighbour index spatial: {problem}" in check_store(store.path)


def test_a_stale_index_is_reported(store_factory: StoreFactory) -> None:
    store = store_factory()
    other = dataclasses.replace(store.neighbours(), rule={})
    assert other.n_pairs > 0
    zarr.open_array(store.path / TABLE / "uns/spatial_neighbors/tiles_id", mode="r+")[...] = "of before"
    (problem,) = check_store(store.path)
    assert "is of older tiles; index it again" in problem


def test_rows_and_tiles_must_agree(store_factory: StoreFactory) -> None:
    store = store_factory(index=False)
    shutil.rmtree(store.path / TABLE / "obs/row")
    write_array(store.path / TABLE / "obs/row", np.zeros(7, np.int32))
    assert check_store(store.path) == ["column row: has 7 rows, not 24"]


def test_an_empty_store_is_clean(store_factory: StoreFactory) -> None:
    assert check_store(store_factory(keep=np.zeros(24, bool)).path) == []


def test_something_else_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        check_store(tmp_path / "none.tiles.zarr")
