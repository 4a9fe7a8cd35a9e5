"""Checking a store: any damaged byte and any lost file of data is reported, and a whole store is clean."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from simtriplet.wsi.check import check_store, inspect_store
from simtriplet.wsi.codec import CodecName
from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.metadata import metadata_is_signed
from simtriplet.wsi.neighbour_index import index_store, write_index
from simtriplet.wsi.neighbours import Adjacency
from simtriplet.wsi.store import TABLE, TileStore
from simtriplet.wsi.tiling import LabelSpec, SlideJob, TileRequest, tile_slide
from simtriplet.wsi.tissue import TissueSpec
from simtriplet.wsi.zarr_files import write_array

StoreFactory = Callable[..., TileStore]
DANGLING = "store 'slide.tiles.zarr': neighbour index 'spatial' is damaged (it points at tiles that do not exist); index it again"


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


def kind_of(place: str) -> str:
    """What a file of a store is, so that each kind is damaged as often as any other."""
    is_metadata = place.endswith("zarr.json")
    if place in ("zarr.json", "tiles/images/zarr.json"):
        return place
    if place.startswith("tiles/"):
        return "pixels"
    for part in ("obsp", "uns", "obsm/X_net", "obsm/spatial", "obs/label", "obs"):
        if place.startswith(f"{TABLE}/{part}"):
            return f"{part}, metadata" if is_metadata else part
    return f"{place.partition('/')[0]}, metadata" if is_metadata else place.partition("/")[0]


def node_of(place: str) -> str:
    """The node of a store that a file belongs to."""
    return place.removesuffix("zarr.json").partition("/c/")[0].removesuffix("/c").rstrip("/") or "zarr.json"


@pytest.mark.parametrize("codec", ["none", "zstd", "jpeg"])
def test_an_untouched_store_is_clean(stores: dict[str, Path], codec: str) -> None:
    seen: list[tuple[int, int]] = []
    assert check_store(stores[codec], progress=lambda *at: seen.append(at)) == []
    assert seen == [(150, 150)]


def test_a_flipped_byte_of_any_file_is_reported_and_named(stores: dict[str, Path], n_mutants: int) -> None:
    rng = np.random.default_rng(7)
    by_kind: dict[str, list[tuple[Path, Path]]] = {}
    for store in stores.values():
        for file in sorted(path for path in store.rglob("*") if path.is_file()):
            by_kind.setdefault(kind_of(file.relative_to(store).as_posix()), []).append((store, file))
    kinds = sorted(by_kind)
    assert len(kinds) >= 14
    for number in range(max(len(kinds), n_mutants // 10)):
        store, file = by_kind[kinds[number % len(kinds)]][int(rng.integers(len(by_kind[kinds[number % len(kinds)]])))]
        content = file.read_bytes()
        place, mask = int(rng.integers(len(content))), int(rng.integers(1, 256))
        file.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
        try:
            problems = check_store(store)
        finally:
            file.write_bytes(content)
        name = file.relative_to(store).as_posix()
        told = f"byte {place} of {store.name}/{name} ^ {mask}: {problems}"
        assert problems, told
        by_tile = name.startswith("tiles/images/c.") and any("tile" in problem for problem in problems)
        assert by_tile or any(node_of(name) in problem for problem in problems), told


def test_every_byte_of_metadata_counts(stores: dict[str, Path]) -> None:
    file = stores["none"] / TABLE / "obs/x/zarr.json"
    content = file.read_bytes()
    assert metadata_is_signed(content)
    for place in range(len(content)):
        for mask in (1, 0x20, 0x80):
            with pytest.raises(ValueError, match="was changed after it was written"):
                metadata_is_signed(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])


def test_what_has_no_checksum_is_told_and_no_error(stores: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "old.tiles.zarr"
    shutil.copytree(stores["none"], copy)
    files = list(copy.rglob("zarr.json"))
    for file in files:
        document = json.loads(file.read_text())
        del document["attributes"]["simtriplet_checksum"]
        file.write_text(json.dumps(document))
    found = inspect_store(copy)
    assert found.problems == ()
    assert found.notes == (
        f"{len(files)} of {len(files)} metadata files have no checksum: an older version wrote them",
    )
    assert np.array_equal(TileStore(copy).images.read([3]), TileStore(stores["none"]).images.read([3]))


@pytest.mark.parametrize("codec", ["none", "zstd", "jpeg"])
def test_every_file_of_data_is_missed_when_it_is_gone(stores: dict[str, Path], codec: str) -> None:
    files = data_files(stores[codec])
    if codec == "none":
        files += sorted(stores[codec].rglob("zarr.json"))
    # the arrays are the same whatever the codec, the shards are not
    chosen = files if codec == "none" else [file for file in files if "tiles/images" in file.as_posix()]
    assert len(chosen) >= 3
    for file in chosen:
        content = file.read_bytes()
        file.unlink()
        try:
            problems = check_store(stores[codec])
            name = file.relative_to(stores[codec]).as_posix()
            assert any(node_of(name) in one or (codec != "none" and "tile" in one) for one in problems), (
                name,
                problems,
            )
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
    assert f"array {part}: is missing" in check_store(copy)
    assert all(part.rpartition("/")[0] in problem for problem in check_store(copy))


def test_a_store_without_its_table_is_damaged(store_factory: StoreFactory) -> None:
    store = store_factory()
    shutil.rmtree(store.path / TABLE)
    assert check_store(store.path) == [f"group {TABLE}: is missing"]


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
        ([[7], []], DANGLING),
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
    assert check_store(store.path) == [
        "column row: store 'slide.tiles.zarr': column 'row' is damaged (row has 7 rows, not 24); tile the slide again"
    ]


def test_an_empty_store_is_clean(store_factory: StoreFactory) -> None:
    assert check_store(store_factory(keep=np.zeros(24, bool)).path) == []


def test_something_else_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        check_store(tmp_path / "none.tiles.zarr")
