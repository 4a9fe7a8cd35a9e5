"""Native tiles: the slide's own bytes, in valid shards, decoding to the slide's own pixels."""

import os
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
import zarr

from simtriplet.wsi.errors import ResolutionError, SettingsError, SlideReadError, TissueError
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.native_grid import TiffNativeTiles
from simtriplet.wsi.quality import QualitySpec
from simtriplet.wsi.slide import open_slide
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.synthetic import SyntheticSlideSpec, draw_slide
from simtriplet.wsi.tiling import SlideJob, TileRequest, tile_slide
from simtriplet.wsi.tissue import TissueSpec

SPEC = SyntheticSlideSpec(width_px=1930, height_px=1410, region_um=150.0, tissue_fraction=0.5, seed=3)


def tile_native(path: Path, out: Path, *, quality: QualitySpec | None = None, **tiling: object) -> TileStore:
    request = TileRequest(tiling=TilingSpec(**tiling), grid="native", quality=quality or QualitySpec())  # type: ignore[arg-type]
    tile_slide(SlideJob(path, "s"), out, request, existing="replace")
    return TileStore(out / "s.tiles.zarr")


def expected(path: Path, store: TileStore, level: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with openslide.OpenSlide(path) as slide:
        size = (store.size_px, store.size_px)
        tiles = [slide.read_region((x, y), level, size).convert("RGB") for x, y in store.base_xy().tolist()]
    return np.stack([np.asarray(tile) for tile in tiles])


@pytest.mark.parametrize(("native_px", "subsampling"), [(256, "420"), (240, "420"), (256, "444")])
def test_pixels_are_openslides_bit_for_bit(tmp_path: Path, native_px: int, subsampling: str) -> None:
    spec = SyntheticSlideSpec(
        width_px=1930,
        height_px=1410,
        region_um=150.0,
        native_tile_px=native_px,
        subsampling=subsampling,  # type: ignore[arg-type]
    )
    path = draw_slide(tmp_path / "s.svs", spec).path
    store = tile_native(path, tmp_path / "out", level=0)
    assert store.size_px == native_px
    assert len(store) > 3
    assert np.array_equal(store.images.read(range(len(store))), expected(path, store))


def test_any_zarr_reader_opens_it_where_the_package_is(tmp_path: Path) -> None:
    path = draw_slide(tmp_path / "s.svs", SPEC).path
    store = tile_native(path, tmp_path / "out", mpp=0.5)
    array = zarr.open_array(store.path / "tiles/images", mode="r")
    assert np.array_equal(np.asarray(array[...]), expected(path, store))


def test_chunks_are_the_files_own_bytes_but_for_tables_and_marker(tmp_path: Path) -> None:
    path = draw_slide(tmp_path / "s.svs", SPEC).path
    store = tile_native(path, tmp_path / "out", mpp=0.5)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offsets, sizes = page.dataoffsets, page.databytecounts
    n_cols = -(-SPEC.width_px // 256)
    data = path.read_bytes()
    for tile, (row, col) in enumerate(zip(store.numbers("row").tolist(), store.numbers("col").tolist(), strict=True)):
        number = row * n_cols + col
        own = data[offsets[number] : offsets[number] + sizes[number]]
        assert store.images.read_encoded(tile).endswith(own[2:])


def test_lower_level_is_copied_too(tmp_path: Path) -> None:
    spec = SyntheticSlideSpec(width_px=4200, height_px=3000, region_um=300.0, tissue_fraction=0.6)
    path = draw_slide(tmp_path / "s.svs", spec).path
    store = tile_native(path, tmp_path / "out", level=1, min_tissue=0.2)
    assert store.mpp == pytest.approx(2.0)
    assert np.array_equal(store.images.read(range(len(store))), expected(path, store, level=1))


def test_scores_only_where_asked_for_and_the_same_as_of_pixels(tmp_path: Path) -> None:
    path = draw_slide(tmp_path / "s.svs", SPEC).path
    plain = tile_native(path, tmp_path / "plain", mpp=0.5)
    assert "sharpness" not in plain.columns()
    scored = tile_native(path, tmp_path / "scored", mpp=0.5, quality=QualitySpec(max_pen=1.0))
    request = TileRequest(tiling=TilingSpec(mpp=0.5, size_px=256))
    tile_slide(SlideJob(path, "s"), tmp_path / "cut", request)
    cut = TileStore(tmp_path / "cut/s.tiles.zarr")
    assert np.array_equal(scored.base_xy(), cut.base_xy())
    assert np.array_equal(scored.numbers("sharpness"), cut.numbers("sharpness"))


def test_refused_with_the_reason(tmp_path: Path) -> None:
    deflate = SyntheticSlideSpec(width_px=1100, height_px=900, region_um=150.0, compression="deflate")
    path = draw_slide(tmp_path / "d.svs", deflate).path
    with pytest.raises(SettingsError, match=r"native tiles of level 0 are not baseline JPEG.*--grid mpp"):
        tile_native(path, tmp_path / "out", level=0)
    jpeg = draw_slide(tmp_path / "j.svs", SPEC).path
    with pytest.raises(ResolutionError, match=r"no level has 1 um per pixel.*0: 0.5, 1: 2, 2: 8"):
        tile_native(jpeg, tmp_path / "out", mpp=1.0)
    with pytest.raises(SettingsError, match="native tiles stay the JPEG they are"):
        TileRequest(grid="native", codec="zstd")
    with pytest.raises(SettingsError, match="gives no native tiles"):
        tile_slide(
            SlideJob(jpeg, "s"),
            tmp_path / "out",
            TileRequest(tiling=TilingSpec(level=0), grid="native", reader="openslide"),
        )
    with pytest.raises(TissueError, match="miss the quality limits"):
        tile_native(jpeg, tmp_path / "out", level=0, quality=QualitySpec(min_saturation=1.0))
    assert not list((tmp_path / "out").glob("*.zarr*"))


def test_real_aperio_slide_is_copied_bit_for_bit(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "slides/CMU-1-Small-Region.svs"
    store = tile_native(path, tmp_path, level=0)
    assert store.size_px == 240
    assert np.array_equal(store.images.read(range(len(store))), expected(path, store))
    with open_slide(shared_data / "slides/TCGA-CR-7395-01A-01-TS1.svs") as jpeg2000:
        assert jpeg2000.name == "tiff"
    with pytest.raises(SettingsError, match="not baseline JPEG"):
        tile_slide(
            SlideJob(jpeg2000.path, "t", slide_mpp=0.25),
            tmp_path,
            TileRequest(tiling=TilingSpec(level=0), grid="native"),
        )


def native_of(path: Path, streams: list[bytes], *, is_rgb: bool = False) -> TiffNativeTiles:
    path.write_bytes(b"".join(streams))
    sizes = [len(stream) for stream in streams]
    offsets = [sum(sizes[:place]) for place in range(len(sizes))]
    file = os.open(path, os.O_RDONLY)
    return TiffNativeTiles(
        file, name="s.svs", offsets=offsets, sizes=sizes, tables=None, is_rgb=is_rgb, size_px=32, n_cols=2
    )


def memory(n_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.full(n_bytes, 7, np.uint8)


@pytest.mark.parametrize("is_rgb", [True, False])
def test_a_copied_stream_says_its_colours(tmp_path: Path, is_rgb: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    space = "RGB" if is_rgb else "YCBCR"
    stream = imagecodecs.jpeg8_encode(pixels, level=100, outcolorspace=space, subsampling="444")
    native = native_of(tmp_path / "file", [b"12345", stream, stream], is_rgb=is_rgb)
    for whole in native.read([0, 1], [1, 0], memory):
        decoded = imagecodecs.jpeg8_decode(bytes(whole))
        assert np.array_equal(decoded, imagecodecs.jpeg8_decode(stream, colorspace=space, outcolorspace="RGB"))
        assert np.abs(decoded.astype(int) - pixels).max() < 8


@pytest.mark.parametrize("last", [b"no jpeg at all", b"\xff", b"\xff\xd8", b"\xff\xd8" + bytes(50)])
def test_what_is_no_jpeg_is_refused_with_its_place(tmp_path: Path, last: bytes) -> None:
    native = native_of(tmp_path / "file", [b"", b"", b"", last, b"\xff\xd8\xff\xd8\xff"])
    with pytest.raises(SlideReadError, match=r"slide 's.svs': native tile \(1, 1\) .*no JPEG stream.*is damaged"):
        native.read([1], [1], memory)


def test_a_tile_that_was_never_scanned_is_no_damage(tmp_path: Path) -> None:
    native = native_of(tmp_path / "file", [b"", b"\xff\xd8\xff\xe0"])
    with pytest.raises(SettingsError, match=r"native tile \(0, 0\) was never scanned.*use --grid mpp"):
        native.read([0], [0], memory)


def test_a_file_that_ends_within_a_tile_is_refused(tmp_path: Path) -> None:
    native = native_of(tmp_path / "file", [b"\xff\xd8" + bytes(100)])
    os.truncate(tmp_path / "file", 50)
    with pytest.raises(SlideReadError, match=r"native tile \(0, 0\) .*the file ends before the tile does"):
        native.read([0], [0], memory)


def segment(kind: int, content: bytes) -> bytes:
    return b"\xff" + bytes([kind]) + (len(content) + 2).to_bytes(2, "big") + content


def test_what_streams_and_tables_tell_of_their_making_is_left_behind(tmp_path: Path) -> None:
    """A name may stand in a comment, in EXIF or in what a program adds; the pixels are the same to the bit."""
    name = b"Hypatia-Q7X3"
    told = (
        segment(0xFE, name) + segment(0xE1, b"Exif\0\0" + name) + segment(0xE0, b"JFXX\0" + name) + segment(0xEC, name)
    )
    pixels = np.random.default_rng(0).integers(100, 200, (256, 256, 3), dtype=np.uint8)
    corners = [(y, x) for y in range(0, 256, 64) for x in range(0, 256, 64)]
    plain = [bytes(imagecodecs.jpeg8_encode(pixels[y : y + 64, x : x + 64].copy(), 85)) for y, x in corners]
    path, tables = tmp_path / "s.tif", b"\xff\xd8" + told + b"\xff\xd9"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            iter([stream[:2] + told + stream[2:] for stream in plain]),
            shape=pixels.shape,
            dtype=np.uint8,
            photometric="ycbcr",
            subsampling=(2, 2),
            compression=7,
            tile=(64, 64),
            metadata=None,
            extratags=[(347, 7, len(tables), tables, True)],
            resolution=(20_000, 20_000),
            resolutionunit="CENTIMETER",
        )
    assert path.read_bytes().count(name) == 4 * (len(plain) + 1)
    request = TileRequest(tiling=TilingSpec(level=0), tissue=TissueSpec(detector="all"), grid="native")
    tile_slide(SlideJob(path, "s"), tmp_path / "out", request)
    store = TileStore(tmp_path / "out/s.tiles.zarr")
    assert not [file for file in store.path.rglob("*") if file.is_file() and name in file.read_bytes()]
    assert np.array_equal(store.images.read(range(len(store))), expected(path, store))
    numbers = (store.numbers("row") * 4 + store.numbers("col")).tolist()
    assert all(store.images.read_encoded(tile).endswith(plain[number][20:]) for tile, number in enumerate(numbers))
