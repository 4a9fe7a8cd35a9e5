"""The store, both sides: whole under its final name or not there at all, and refused with what to do otherwise."""

import dataclasses
import datetime
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from simtriplet.evaluate.feature_array import write_features
from simtriplet.wsi.codec import make_codec
from simtriplet.wsi.errors import NeighbourError, StoreError, StoreVersionError
from simtriplet.wsi.store import TABLE, TileStore, find_stores, open_stores
from simtriplet.wsi.store_writer import StoreContents, StoreWriter
from simtriplet.wsi.thumbnail import write_thumbnail
from simtriplet.wsi.zarr_files import write_array, write_group


def contents(n_tiles: int = 2, **changes: Any) -> StoreContents:
    cells = np.arange(n_tiles)
    values: dict[str, Any] = {
        "slide": {"id": "s", "patient_id": "p", "mpp": 0.25, "width": 900, "height": 500},
        "tiling": {"mpp": 0.5, "size_px": 8, "stride_px": 6},
        "tissue": {"method": "all"},
        "base_xy": np.column_stack([cells * 12, cells * 0 + 3]),
        "row": cells * 0,
        "col": cells,
        "tissue_id": cells * 0,
        "tissue_fraction": np.full(n_tiles, 0.75),
        "thumbnail": np.full((5, 9, 3), 7, np.uint8),
        "thumbnail_downsample": 100.0,
        "tissue_mask": np.ones((5, 9), np.uint16),
    }
    return StoreContents(**(values | changes))


def write(path: Path, made: StoreContents) -> TileStore:
    with StoreWriter(path, size_px=8, codec=make_codec("none")) as writer:
        writer.write_tiles(np.zeros((len(made.base_xy), 8, 8, 3), np.uint8))
        return writer.finish(made)


def edit_attributes(path: Path, **changes: Any) -> None:
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["simtriplet"].update(changes)
    document["attributes"].pop("simtriplet_checksum", None)  # as if the writer had meant it
    (path / "zarr.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TileStore:
    """A store that tests damage and mend again."""
    return write(tmp_path_factory.mktemp("damage") / "s.tiles.zarr", contents(9))


@pytest.fixture
def store(tmp_path: Path) -> TileStore:
    return write(tmp_path / "s.tiles.zarr", contents())


def test_the_store_says_what_it_was_given(store: TileStore) -> None:
    assert (store.slide_id, store.patient_id, len(store)) == ("s", "p", 2)
    assert (store.mpp, store.base_mpp, store.size_px, store.stride_px, store.base_size_px) == (0.5, 0.25, 8, 6, 16.0)
    assert store.base_xy().tolist() == [[0, 3], [12, 3]]
    assert store.centres().tolist() == [[8.0, 11.0], [20.0, 11.0]]
    assert store.numbers("tissue_fraction").tolist() == [0.75, 0.75]
    assert store.thumbnail().shape == (5, 9, 3)
    assert store.thumbnail_downsample == 100.0
    assert store.labels() is None
    assert TileStore.open(store.path).attributes == store.attributes


def test_without_a_patient_the_slide_stands_for_it(tmp_path: Path) -> None:
    slide = {"id": "s", "patient_id": None, "mpp": 0.25, "width": 9, "height": 9}
    assert write(tmp_path / "s.tiles.zarr", contents(slide=slide)).patient_id == "s"


def test_further_columns_are_read_by_name(tmp_path: Path) -> None:
    store = write(tmp_path / "s.tiles.zarr", contents(columns={"blur": np.array([0.5, 2.0], np.float32)}))
    assert store.numbers("blur").tolist() == [0.5, 2.0]
    with pytest.raises(StoreError, match=r"has no column 'blurr'; it has x, y, row"):
        store.column("blurr")


def test_provenance_has_versions_and_utc_time(store: TileStore) -> None:
    provenance = store.attributes["provenance"]
    created = datetime.datetime.fromisoformat(provenance["created"])
    assert created.utcoffset() == datetime.timedelta(0)
    assert abs(datetime.datetime.now(datetime.UTC) - created) < datetime.timedelta(minutes=5)
    assert provenance["versions"]["numpy"] == np.__version__
    assert provenance["versions"]["zarr"] == zarr.__version__


def test_tissue_polygons_come_back_ring_by_ring(tmp_path: Path) -> None:
    square = shapely.box(0, 0, 10, 10)
    holed = shapely.Polygon(shapely.box(20, 0, 40, 20).exterior.coords, [shapely.box(25, 5, 30, 10).exterior.coords])
    regions = [shapely.MultiPolygon([square, holed]), shapely.MultiPolygon(), square]
    store = write(tmp_path / "s.tiles.zarr", contents(regions=regions))
    again = [
        shapely.MultiPolygon([shapely.Polygon(rings[0], rings[1:]) for rings in polygons])
        for polygons in store.tissue_rings()
    ]
    assert all(
        shapely.equals_exact(a, shapely.MultiPolygon(getattr(b, "geoms", [b])))
        for a, b in zip(again, regions, strict=True)
    )


def test_no_regions_are_no_rings(store: TileStore) -> None:
    assert store.tissue_rings() == []


@pytest.mark.parametrize("shape", [(5, 9, 3), (3, 3, 3)])
def test_thumbnails_of_format_1_1_are_read_as_before(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    pixels = np.arange(math.prod(shape), dtype=np.uint8).reshape(shape)
    store = write(tmp_path / "s.tiles.zarr", contents(thumbnail=pixels))
    assert np.array_equal(store.thumbnail(), pixels)
    array = store.path / "images" / "thumbnail" / "0"
    shutil.rmtree(array)
    write_array(array, pixels, dimension_names=("y", "x", "c"))
    again = TileStore(store.path).thumbnail()
    assert np.array_equal(again, pixels)


def test_the_thumbnail_is_an_ome_image_with_its_label(tmp_path: Path) -> None:
    mask = np.arange(12, dtype=np.uint16).reshape(3, 4)
    write_thumbnail(write_group(tmp_path / "images", {}), np.full((3, 4, 3), 9, np.uint8), mask, um_per_px=8.5)
    group = zarr.open_group(tmp_path / "images", mode="r")
    image, label = group["thumbnail"], group["thumbnail/labels/tissue"]
    scales = []
    for node, axes in ((image, ["c", "y", "x"]), (label, ["y", "x"])):
        ome = node.attrs["ome"]
        assert ome["version"] == "0.5"
        assert [axis["name"] for axis in ome["multiscales"][0]["axes"]] == axes
        assert node["0"].metadata.dimension_names == tuple(axes)
        scales.append(ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"])
    assert scales == [[1.0, 8.5, 8.5], [8.5, 8.5]]
    assert group["thumbnail/labels"].attrs["ome"]["labels"] == ["tissue"]
    assert label.attrs["ome"]["image-label"]["source"] == {"image": "../../"}
    assert np.array_equal(label["0"][...], mask)


class TestWriting:
    def test_a_run_that_ends_leaves_the_folder_of_the_next_alone(self, tmp_path: Path) -> None:
        path, codec = tmp_path / "s.tiles.zarr", make_codec("none")
        tiles = np.arange(2 * 8 * 8 * 3, dtype=np.uint64).astype(np.uint8).reshape(2, 8, 8, 3)
        with StoreWriter(path, size_px=8, codec=codec) as first:
            first.write_tiles(np.zeros_like(tiles))
            first.finish(contents())
            second = StoreWriter(path, size_px=8, codec=codec)
            second.write_tiles(tiles)
        with second:
            second.finish(contents())
        assert np.array_equal(TileStore(path).images.read([0, 1]), tiles)

    def test_an_error_leaves_nothing(self, tmp_path: Path) -> None:
        def fail_on_the_way() -> None:
            with StoreWriter(tmp_path / "s.tiles.zarr", size_px=8, codec=make_codec("none")) as writer:
                writer.write_tiles(np.zeros((3, 8, 8, 3), np.uint8))
                assert [entry.name for entry in tmp_path.iterdir()] == ["s.tiles.zarr.partial"]
                raise RuntimeError("on the way")

        with pytest.raises(RuntimeError, match="on the way"):
            fail_on_the_way()
        assert list(tmp_path.iterdir()) == []

    def test_a_leftover_is_cleared_and_not_mixed_in(self, tmp_path: Path) -> None:
        leftover = tmp_path / "s.tiles.zarr.partial" / "tiles" / "images"
        leftover.mkdir(parents=True)
        (leftover / "c.9.0.0.0").write_bytes(b"old")
        store = write(tmp_path / "s.tiles.zarr", contents())
        assert sorted(entry.name for entry in (store.path / "tiles/images").iterdir()) == ["c.0.0.0.0", "zarr.json"]
        assert [entry.name for entry in tmp_path.iterdir()] == ["s.tiles.zarr"]

    def test_an_older_store_is_replaced_whole(self, tmp_path: Path) -> None:
        first = write(tmp_path / "s.tiles.zarr", contents(5))
        second = write(tmp_path / "s.tiles.zarr", contents(2))
        assert len(second) == 2
        assert first.attributes["tiles_id"] != second.attributes["tiles_id"]
        assert [entry.name for entry in tmp_path.iterdir()] == ["s.tiles.zarr"]

    def test_the_same_tiles_have_the_same_id(self, tmp_path: Path) -> None:
        tiles = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)
        other_pixel, other_place = tiles.copy(), contents(70)
        other_pixel[69, 7, 7, 2] ^= 1
        other_place.base_xy[69, 0] += 1
        other_slide = dataclasses.replace(contents(70), slide={**contents(70).slide, "fingerprint": "another"})
        ids = []
        for number, (pixels, rest, codec) in enumerate(
            [
                (tiles, contents(70), "none"),
                (tiles, contents(70), "none"),
                (other_pixel, contents(70), "none"),
                (tiles, other_place, "none"),
                (tiles, other_slide, "none"),
                (tiles, contents(70), "zstd"),
            ]
        ):
            with StoreWriter(tmp_path / f"{number}.tiles.zarr", size_px=8, codec=make_codec(codec)) as writer:
                writer.write_tiles(pixels)
                ids.append(writer.finish(rest).attributes["tiles_id"])
        assert ids[0] == ids[1]
        assert len(set(ids)) == 5

    def test_features_without_an_encoder_are_known_by_themselves(self, store_factory: Any) -> None:
        store = store_factory()
        values = np.arange(96, dtype=np.float32).reshape(24, 4)
        ids = []
        for features, attributes in (
            (values, {}),
            (values, {}),
            (values + 1, {}),
            (values + 1, {"encoder_hash": "abc"}),
        ):
            write_features(store, "f", features, attributes)
            ids.append(TileStore(store.path).features_id("f"))
        assert ids[0] == ids[1] != ids[2]
        assert ids[3] == "abc"

    def test_shards_may_come_in_any_order(self, tmp_path: Path) -> None:
        tiles = np.random.default_rng(0).integers(0, 256, (150, 8, 8, 3), dtype=np.uint8)
        with StoreWriter(tmp_path / "s.tiles.zarr", size_px=8, codec=make_codec("none")) as writer:
            for shard in (2, 0, 1):
                writer.write_shard(shard, list(tiles[shard * 64 : (shard + 1) * 64]))
            store = writer.finish(contents(150))
        assert np.array_equal(store.images.read(np.arange(150)), tiles)
        assert writer.bytes_written == sum(file.stat().st_size for file in (store.path / "tiles/images").glob("c.*"))

    def test_fewer_tiles_than_described_is_refused(self, tmp_path: Path) -> None:
        with StoreWriter(tmp_path / "s.tiles.zarr", size_px=8, codec=make_codec("none")) as writer:
            writer.write_tiles(np.zeros((3, 8, 8, 3), np.uint8))
            with pytest.raises(StoreError, match=r"3 tiles written, 2 described"):
                writer.finish(contents(2))
        assert list(tmp_path.iterdir()) == []

    def test_a_file_in_the_way_of_the_folder_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("a file")
        with pytest.raises(StoreError, match=r"^output '.*out': cannot be written \(.+\); choose another --out$"):
            StoreWriter(tmp_path / "out" / "s.tiles.zarr", size_px=8, codec=make_codec("none"))


class TestRefusals:
    def test_a_half_written_store(self, store: TileStore) -> None:
        partial = store.path.rename(store.path.with_name("s.tiles.zarr.partial"))
        with pytest.raises(StoreError, match=r"^store 's.tiles.zarr.partial': is half written; tile the slide again"):
            TileStore(partial)

    def test_a_store_that_is_not_complete(self, store: TileStore) -> None:
        edit_attributes(store.path, state="writing")
        with pytest.raises(StoreError, match=r"is writing, not complete; tile the slide again with --existing replace"):
            TileStore(store.path)

    def test_another_major_version(self, store: TileStore) -> None:
        edit_attributes(store.path, version="2.0")
        with pytest.raises(StoreVersionError, match=r"has format version 2.0, this program reads 1.2; tile the slide"):
            TileStore(store.path)
        edit_attributes(store.path, version="1.7")
        assert len(TileStore(store.path)) == 2

    def test_another_schema(self, store: TileStore) -> None:
        edit_attributes(store.path, schema="others.tiles")
        with pytest.raises(StoreError, match=r"is a 'others.tiles', not 'simtriplet.tiles'"):
            TileStore(store.path)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=r"does not exist or is no Zarr v3 group; run simtriplet tile first"):
            TileStore(tmp_path / "none.tiles.zarr")

    @pytest.mark.parametrize("document", ["", "{}", "[]", '{"attributes": {}}', '{"attributes": {"simtriplet": 3}}'])
    def test_something_else(self, store: TileStore, document: str) -> None:
        (store.path / "zarr.json").write_text(document)
        with pytest.raises(StoreError, match=r"is not a simtriplet tile store; make one with simtriplet tile"):
            TileStore(store.path)

    def test_a_slide_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.svs").write_bytes(b"II*\0")
        with pytest.raises(StoreError, match=r"is not a simtriplet tile store"):
            TileStore(tmp_path / "a.svs")

    def test_names_where_numbers_are_wanted(self, store_factory: Any) -> None:
        with pytest.raises(StoreError, match=r"column 'label' holds names, not numbers"):
            store_factory().numbers("label")

    def test_no_index_no_features(self, store: TileStore) -> None:
        with pytest.raises(NeighbourError, match=r"has no neighbour index 'spatial'; run simtriplet index on it"):
            store.neighbours()
        with pytest.raises(StoreError, match=r"has no features 'resnet' \(known: none\); run simtriplet embed"):
            store.features("resnet")


class TestDamage:
    @settings(deadline=None, max_examples=40)
    @given(data=st.data())
    def test_a_flipped_byte_in_a_column(self, whole: TileStore, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(whole.columns()))
        chunk = whole.path / TABLE / "obs" / name / "c" / "0"
        place = data.draw(st.integers(0, chunk.stat().st_size - 1))
        flip(chunk, place)
        try:
            with pytest.raises(
                StoreError, match=rf"^store 's.tiles.zarr': column '{name}' is damaged .*; tile the slide"
            ):
                TileStore(whole.path).column(name)
        finally:
            flip(chunk, place)
        assert len(TileStore(whole.path).numbers(name)) == 9

    @pytest.mark.parametrize(
        ("part", "read", "what"),
        [
            ("tables/tiles/obsm/spatial/c/0/0", TileStore.centres, "obsm/spatial"),
            ("images/thumbnail/0/c/0/0/0", TileStore.thumbnail, "the thumbnail"),
            ("tissue/xy/c/0/0", TileStore.tissue_rings, "the tissue outline"),
        ],
    )
    def test_a_flipped_byte_elsewhere(self, tmp_path: Path, part: str, read: Any, what: str) -> None:
        store = write(tmp_path / "s.tiles.zarr", contents(regions=[shapely.box(0, 0, 9, 9)]))
        flip(store.path / part, 3)
        with pytest.raises(StoreError, match=rf"^store 's.tiles.zarr': {what} is damaged"):
            read(TileStore(store.path))

    def test_a_lost_column(self, store: TileStore) -> None:
        shutil.rmtree(store.path / TABLE / "obs" / "x")
        with pytest.raises(StoreError, match="column 'x' is damaged"):
            TileStore(store.path).base_xy()


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 0x10
    path.write_bytes(data)


class TestFeatures:
    def add(self, store: TileStore, **attributes: Any) -> TileStore:
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        write_array(store.path / TABLE / "obsm/X_net", values, attributes)
        return TileStore(store.path)

    def test_features_and_what_was_recorded_beside_them(self, store: TileStore) -> None:
        store = self.add(store, checkpoint="abc", tiles_id=store.attributes["tiles_id"])
        assert store.feature_names() == ["net"]
        assert store.features_exist("net")
        assert not store.features_exist("spatial")
        assert store.features("net").tolist() == [[0, 1, 2], [3, 4, 5]]
        assert store.feature_attributes("net")["checkpoint"] == "abc"

    def test_features_of_older_tiles_are_refused(self, store: TileStore) -> None:
        store = self.add(store, tiles_id="of before")
        with pytest.raises(
            StoreError, match=r"features 'net' are of older tiles; run simtriplet embed, or import, again"
        ):
            store.features("net")

    def test_damaged_features_are_refused(self, store: TileStore) -> None:
        store = self.add(store)
        flip(store.path / TABLE / "obsm" / "X_net" / "c" / "0" / "0", 5)
        with pytest.raises(StoreError, match=r"features 'net' is damaged .*; run simtriplet embed, or import, again"):
            TileStore(store.path).features("net")


class TestFinding:
    def test_folders_and_stores_in_order_without_repeats(self, store_factory: Any, tmp_path: Path) -> None:
        a, b = (store_factory(name, rows=1, cols=1, index=False).path for name in "ab")
        (tmp_path / "c.tiles.zarr.partial").mkdir()
        assert find_stores([tmp_path]) == [a, b]
        assert find_stores([b, tmp_path]) == [b, a]
        assert find_stores([str(a)]) == [a]
        assert [store.slide_id for store in open_stores([tmp_path])] == ["a", "b"]

    def test_nothing_found_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=r"holds no tile stores \(\*.tiles.zarr\); run simtriplet tile first"):
            find_stores([tmp_path])
        with pytest.raises(StoreError, match=r"none': does not exist; run simtriplet tile first"):
            find_stores([tmp_path / "none"])

    def test_one_slide_twice_is_refused(self, store_factory: Any, tmp_path: Path) -> None:
        store = store_factory("a", rows=1, cols=1)
        shutil.copytree(store.path, tmp_path / "copy.tiles.zarr")
        with pytest.raises(StoreError, match=r"^stores '.*a.tiles.zarr' and '.*copy.tiles.zarr': hold the same slide"):
            open_stores([tmp_path])


def test_reading_changes_no_file(store: TileStore) -> None:
    def listing() -> list[tuple[Path, int]]:
        return sorted((path, path.stat().st_mtime_ns) for path in store.path.rglob("*"))

    before = listing()
    again = TileStore(store.path)
    again.images.read([0, 1])
    again.base_xy(), again.centres(), again.thumbnail(), again.tissue_rings(), again.neighbour_names()
    assert listing() == before
