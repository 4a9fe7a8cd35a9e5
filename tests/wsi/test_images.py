"""tiles/images: what this package writes zarr-python reads and the other way round, at random and from threads."""

import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from simtriplet.wsi.codec import CodecName, make_codec
from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.images import TILES_PER_SHARD, TileImages, shard_path, write_image_metadata, write_image_shard
from simtriplet.wsi.open_shards import OPEN_SHARDS
from simtriplet.wsi.zarr_jpeg import JpegTileCodec

Tiles = npt.NDArray[np.uint8]
CODEC_NAMES: tuple[CodecName, ...] = ("none", "zstd", "jpeg")


def make_tiles(n_tiles: int, size_px: int, seed: int = 0) -> Tiles:
    return np.random.default_rng(seed).integers(0, 256, (n_tiles, size_px, size_px, 3), dtype=np.uint8)


def write_images(folder: Path, tiles: Tiles, codec_name: CodecName = "none") -> Path:
    """Write tiles as the store does; return the folder of the array."""
    array, codec = folder / "slide.tiles.zarr" / "tiles" / "images", make_codec(codec_name)
    for shard, start in enumerate(range(0, len(tiles), TILES_PER_SHARD)):
        write_image_shard(array, shard, [codec.encode(tile) for tile in tiles[start : start + TILES_PER_SHARD]])
    write_image_metadata(array, n_tiles=len(tiles), size_px=tiles.shape[1], codec=codec)
    return array


def read_with_zarr(array: Path) -> Tiles:
    return np.asarray(zarr.open_array(array, mode="r")[...])


def n_open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("codec_name", CODEC_NAMES)
@pytest.mark.parametrize("n_tiles", [1, TILES_PER_SHARD, TILES_PER_SHARD + 1, 150])
def test_zarr_reads_what_is_written(tmp_path: Path, codec_name: CodecName, n_tiles: int) -> None:
    tiles = make_tiles(n_tiles, 16)
    array = write_images(tmp_path, tiles, codec_name)
    seen, read = read_with_zarr(array), TileImages(array).read(np.arange(n_tiles))
    assert np.array_equal(seen, read)
    if codec_name == "jpeg":
        codec, decoded = make_codec("jpeg"), np.empty_like(tiles)
        for tile, out in zip(tiles, decoded, strict=True):
            codec.decode(bytes(codec.encode(tile)), out)
        assert np.array_equal(read, decoded)
    else:
        assert np.array_equal(read, tiles)


@pytest.mark.parametrize("codec_name", CODEC_NAMES)
def test_what_zarr_writes_with_the_same_metadata_is_read(tmp_path: Path, codec_name: CodecName) -> None:
    tiles = make_tiles(130, 16)
    path = tmp_path / "other.tiles.zarr" / "tiles" / "images"
    write_image_metadata(path, n_tiles=len(tiles), size_px=16, codec=make_codec(codec_name))
    zarr.open_array(path, mode="r+")[...] = tiles
    ids = np.random.default_rng(1).integers(0, 130, 60)
    read = TileImages(path).read(ids)
    assert np.array_equal(read, read_with_zarr(path)[ids])
    assert np.array_equal(read, TileImages(write_images(tmp_path, tiles, codec_name)).read(ids))


def test_zarr_sees_names_and_shapes(tmp_path: Path) -> None:
    array = zarr.open_array(write_images(tmp_path, make_tiles(70, 8)), mode="r")
    assert (array.shape, array.chunks, array.shards) == ((70, 8, 8, 3), (1, 8, 8, 3), (TILES_PER_SHARD, 8, 8, 3))
    assert array.dtype == np.uint8
    assert array.metadata.dimension_names == ("tile", "y", "x", "channel")


def test_a_chunk_that_was_never_written_is_white_for_both(tmp_path: Path) -> None:
    array = write_images(tmp_path, make_tiles(3, 4))
    write_image_metadata(array, n_tiles=5, size_px=4, codec=make_codec("none"))
    read = TileImages(array).read([4, 0, 3])
    assert np.array_equal(read, read_with_zarr(array)[[4, 0, 3]])
    assert (read[[0, 2]] == 255).all()
    assert TileImages(array).read_encoded(4) == b""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiles, TileImages]:
    """More shards than are held open at once: 200 x 64 tiles of 4 px, each with its number written into it."""
    tiles = np.zeros((200 * TILES_PER_SHARD - 7, 4, 4, 3), np.uint8)
    tiles.reshape(len(tiles), -1)[:, :4] = np.arange(len(tiles), dtype="<u4").view(np.uint8).reshape(-1, 4)
    return tiles, TileImages(write_images(tmp_path_factory.mktemp("many"), tiles))


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_random_ids_with_repeats(many: tuple[Tiles, TileImages], data: st.DataObject) -> None:
    tiles, images = many
    ids = data.draw(st.lists(st.integers(0, len(tiles) - 1), max_size=60))
    assert np.array_equal(images.read(ids), tiles[np.array(ids, np.int64)])


def test_threads_read_the_same_while_files_close_and_open(many: tuple[Tiles, TileImages]) -> None:
    tiles, images = many

    def read(seed: int) -> bool:
        ids = np.random.default_rng(seed).integers(0, len(tiles), 500)
        return np.array_equal(images.read(ids), tiles[ids])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(40)))


def test_open_files_are_bounded_over_all_stores_together(many: tuple[Tiles, TileImages]) -> None:
    tiles, source = many
    readers = [
        TileImages(source.path) for _ in range(1 + 2 * OPEN_SHARDS.max_files // -(-len(tiles) // TILES_PER_SHARD))
    ]
    before = n_open_files() - len(OPEN_SHARDS)
    for images in readers:
        for start in range(0, len(tiles), TILES_PER_SHARD):
            assert np.array_equal(images.read([start])[0], tiles[start])
    assert n_open_files() - before == len(OPEN_SHARDS) == OPEN_SHARDS.max_files
    for images in readers:
        images.close()
    assert np.array_equal(readers[0].read([5])[0], tiles[5])


def test_a_reader_that_is_gone_leaves_no_file_open(many: tuple[Tiles, TileImages]) -> None:
    _, source = many
    images = TileImages(source.path)
    images.read([0, 700])
    before = n_open_files()
    del images
    source.read([0])
    assert n_open_files() <= before - 1


def test_pixels_go_into_the_array_that_is_given(many: tuple[Tiles, TileImages]) -> None:
    tiles, images = many
    out = np.zeros((2, 4, 4, 3), np.uint8)
    assert images.read([9, 700], out=out) is out
    assert np.array_equal(out, tiles[[9, 700]])


def test_a_pickled_reader_reads(many: tuple[Tiles, TileImages]) -> None:
    tiles, images = many
    again: TileImages = pickle.loads(pickle.dumps(images))
    assert np.array_equal(again.read([3, 12_000]), tiles[[3, 12_000]])


@pytest.mark.parametrize("ids", [[-1], [0, 70], [2**40]])
def test_ids_outside_are_an_index_error(tmp_path: Path, ids: list[int]) -> None:
    images = TileImages(write_images(tmp_path, make_tiles(70, 4)))
    with pytest.raises(IndexError, match=r"must lie in 0\.\.69"):
        images.read(ids)


def test_no_ids_are_no_tiles(tmp_path: Path) -> None:
    assert TileImages(write_images(tmp_path, make_tiles(2, 4))).read([]).shape == (0, 4, 4, 3)
    empty = TileImages(write_images(tmp_path / "empty", make_tiles(0, 4)))
    assert len(empty) == 0
    assert empty.read([]).shape == (0, 4, 4, 3)


NAME = r"^shard 'slide.tiles.zarr/tiles/images/c.1.0.0.0': "


def test_a_missing_shard_is_named_and_the_others_read(tmp_path: Path) -> None:
    tiles = make_tiles(150, 4)
    array = write_images(tmp_path, tiles)
    shard_path(array, 1).unlink()
    images = TileImages(array)
    with pytest.raises(StoreError, match=NAME + r"cannot be opened \(No such file"):
        images.read([0, 64])
    assert np.array_equal(images.read([63, 128]), tiles[[63, 128]])


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    array = write_images(tmp_path, make_tiles(150, 4))
    path = shard_path(array, 1)
    for length in (0, 500, path.stat().st_size - 1):
        os.truncate(path, length)
        with pytest.raises(StoreError, match=NAME):
            TileImages(array).read([64])


@settings(deadline=None, max_examples=30)
@given(place=st.integers(1, 16 * TILES_PER_SHARD + 4))
def test_a_flipped_byte_in_the_index_is_named(tmp_path_factory: pytest.TempPathFactory, place: int) -> None:
    array = write_images(tmp_path_factory.mktemp("flip"), make_tiles(150, 2))
    path = shard_path(array, 1)
    data = bytearray(path.read_bytes())
    data[-place] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(StoreError, match=NAME + "its index is damaged"):
        TileImages(array).read([64])


@pytest.mark.parametrize("codec_name", ["zstd", "jpeg"])
def test_a_chunk_that_cannot_be_decoded_names_its_tile(tmp_path: Path, codec_name: CodecName) -> None:
    array = write_images(tmp_path, make_tiles(70, 16), codec_name)
    with shard_path(array, 1).open("r+b") as file:
        file.write(b"\0" * 8)
    with pytest.raises(StoreError, match=r"slide.tiles.zarr': tile 64 is damaged"):
        TileImages(array).read([64])


def test_a_raw_chunk_of_another_size_names_its_tile(tmp_path: Path) -> None:
    array = write_images(tmp_path, make_tiles(2, 4))
    write_image_shard(array, 0, [b"\1", b"\2" * 48])
    with pytest.raises(StoreError, match="tile 0 is damaged"):
        TileImages(array).read([0])


@pytest.mark.parametrize("document", ["", "[]", "{}", "3", '{"shape": [1], "codecs": []}'])
def test_metadata_of_something_else_is_refused(tmp_path: Path, document: str) -> None:
    array = write_images(tmp_path, make_tiles(2, 4))
    (array / "zarr.json").write_text(document)
    with pytest.raises(StoreError, match="has no readable tiles/images; tile the slide again"):
        TileImages(array)


def test_an_array_without_shards_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tiles.zarr" / "tiles" / "images"
    zarr.create_array(path, shape=(4, 8, 8, 3), chunks=(1, 8, 8, 3), dtype="uint8")
    with pytest.raises(StoreError, match="has no readable tiles/images"):
        TileImages(path)


class TestJpegZarrCodec:
    def test_the_entry_in_the_metadata_round_trips(self) -> None:
        codec = JpegTileCodec.from_dict(JpegTileCodec(quality=80).to_dict())
        assert codec == JpegTileCodec(quality=80)
        assert JpegTileCodec.from_dict({"name": "simtriplet.jpeg"}).quality == 90

    def test_a_quality_that_is_no_number_is_refused(self) -> None:
        with pytest.raises(TypeError, match="must be an integer"):
            JpegTileCodec.from_dict({"name": "simtriplet.jpeg", "configuration": {"quality": "high"}})

    @pytest.mark.parametrize(
        ("shape", "dtype"), [((4, 8, 8), "uint8"), ((4, 8, 8, 1), "uint8"), ((4, 8, 8, 3), "uint16")]
    )
    def test_arrays_that_are_not_rgb_are_refused(self, tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
        with pytest.raises(ValueError, match=r"encodes \(n, h, w, 3\) uint8 arrays"):
            zarr.create_array(
                tmp_path / "a", shape=shape, chunks=(1, *shape[1:]), dtype=dtype, serializer=JpegTileCodec()
            )

    def test_its_name_is_an_entry_point_of_zarr(self) -> None:
        from zarr.registry import get_codec_class

        assert get_codec_class("simtriplet.jpeg") is JpegTileCodec

    def test_metadata_survive_a_rewrite_by_zarr(self, tmp_path: Path) -> None:
        array = write_images(tmp_path, make_tiles(3, 16), "jpeg")
        before = TileImages(array).read([0, 1, 2])
        opened: Any = zarr.open_array(array, mode="r+")
        opened.attrs["note"] = "by hand"
        assert json.loads((array / "zarr.json").read_text())["attributes"]["note"] == "by hand"
        assert np.array_equal(TileImages(array).read([0, 1, 2]), before)
