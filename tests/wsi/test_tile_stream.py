"""Streaming: quality limits drop the same tiles as a filter afterwards; co-centred tiles; room on the disk."""

from pathlib import Path

import numpy as np
import openslide
import pytest

from simtriplet.wsi.errors import SettingsError, SlideReadError, StoreError
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.quality import QUALITY_COLUMNS, QualitySpec
from simtriplet.wsi.slide import open_slide
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.survey import Room, estimate_batch, estimate_room, refuse_full_disk, survey_slide
from simtriplet.wsi.synthetic import SyntheticSlideSpec, draw_slide
from simtriplet.wsi.tiling import SlideJob, TileRequest, tile_slide

SPEC = SyntheticSlideSpec(width_px=2600, height_px=1900, region_um=150.0, tissue_fraction=0.5, seed=4)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_slide(tmp_path_factory.mktemp("slide") / "s.svs", SPEC).path


def tile(slide: Path, out: Path, request: TileRequest, *, threads: int = 2) -> TileStore:
    tile_slide(SlideJob(slide, "s"), out, request, threads=threads)
    return TileStore(out / "s.tiles.zarr")


@pytest.mark.parametrize("codec", ["none", "zstd", "jpeg"])
def test_limits_drop_what_a_filter_afterwards_would(slide: Path, tmp_path: Path, codec: str) -> None:
    spec = TilingSpec(mpp=0.5, size_px=64)
    everything = tile(slide, tmp_path / "all", TileRequest(tiling=spec, codec=codec))  # type: ignore[arg-type]
    sharpness = everything.numbers("sharpness")
    limit = float(np.quantile(sharpness, 0.4))
    quality = QualitySpec(min_sharpness=limit)
    some = tile(slide, tmp_path / "some", TileRequest(tiling=spec, codec=codec, quality=quality))  # type: ignore[arg-type]
    kept = quality.keeps({name: everything.numbers(name) for name in QUALITY_COLUMNS})
    assert 64 < kept.sum() < len(everything)
    assert np.array_equal(some.base_xy(), everything.base_xy()[kept])
    assert np.array_equal(some.images.read(range(len(some))), everything.images.read(np.flatnonzero(kept)))
    assert np.array_equal(some.numbers("crc32c"), everything.numbers("crc32c")[kept])
    assert some.attributes["tiling"]["rejected"]["blur"] == int((~kept).sum())


def test_result_does_not_depend_on_threads(slide: Path, tmp_path: Path) -> None:
    request = TileRequest(tiling=TilingSpec(mpp=0.7, size_px=64, stride_px=40))
    one, four = (tile(slide, tmp_path / str(threads), request, threads=threads) for threads in (1, 4))
    assert np.array_equal(one.numbers("crc32c"), four.numbers("crc32c"))
    assert np.array_equal(one.numbers("fold"), four.numbers("fold"))


def test_context_tiles_share_the_centre_and_match_openslide(slide: Path, tmp_path: Path) -> None:
    request = TileRequest(tiling=TilingSpec(mpp=0.5, size_px=96, context_mpp=(1.0, 2.0)))
    store = tile(slide, tmp_path, request)
    assert store.context_mpp == (1.0, 2.0)
    with openslide.OpenSlide(slide) as opened:
        whole = np.asarray(opened.read_region((0, 0), 0, opened.dimensions).convert("RGB")).astype(np.float64)
    padded = np.pad(whole, ((200, 200), (200, 200), (0, 0)), constant_values=255)
    # at 1 um per pixel level 0 is averaged 2 x 2; the window is twice as wide around the same centre
    tiles = store.context(1.0).read(range(len(store)))
    for tile_pixels, (x, y) in zip(tiles, store.base_xy().tolist(), strict=True):
        window = padded[200 + y - 48 : 200 + y + 144, 200 + x - 48 : 200 + x + 144]
        mean = window.reshape(96, 2, 96, 2, 3).mean(axis=(1, 3))
        assert np.abs(tile_pixels - mean).max() <= 1
    assert store.context(2.0).read([0]).shape == (1, 96, 96, 3)
    with pytest.raises(StoreError, match="has no tiles at 4 um per pixel"):
        store.context(4.0)
    with pytest.raises(SettingsError, match="must be different positive numbers"):
        TilingSpec(context_mpp=(1.0, 1.0))


def test_damaged_native_tile_stops_the_slide_and_leaves_nothing(slide: Path, tmp_path: Path) -> None:
    import tifffile

    with tifffile.TiffFile(slide) as tiff:
        page = tiff.pages[0]
        largest = int(np.argmax(page.databytecounts))
        offset, size = page.dataoffsets[largest], page.databytecounts[largest]
    data = bytearray(slide.read_bytes())
    data[offset : offset + size] = b"\0" * size
    (tmp_path / "bad.svs").write_bytes(data)
    with pytest.raises(SlideReadError, match=f"native tile {largest} of level 0 cannot be decoded"):
        tile(tmp_path / "bad.svs", tmp_path / "out", TileRequest(tiling=TilingSpec(mpp=0.5, size_px=256, min_tissue=0)))
    assert not list((tmp_path / "out").glob("*.zarr*"))


def test_estimate_is_near_the_truth(slide: Path, tmp_path: Path) -> None:
    for codec, slack in (("none", 0.01), ("zstd", 0.3), ("jpeg", 0.6)):
        request = TileRequest(tiling=TilingSpec(mpp=0.5, size_px=128), codec=codec)  # type: ignore[arg-type]
        with open_slide(slide) as reader:
            room = estimate_room(survey_slide(reader, SlideJob(slide, "s"), request), request)
        store = tile(slide, tmp_path / codec, request)
        stored = sum(file.stat().st_size for file in (store.path / "tiles").rglob("*") if file.is_file())
        assert abs(room.chosen - (2 << 20) - stored) <= slack * stored
        assert room.jpeg < room.chosen or codec == "jpeg"


def test_batch_estimate_scales_and_ignores_what_is_no_slide(slide: Path, tmp_path: Path) -> None:
    request = TileRequest(tiling=TilingSpec(mpp=0.5, size_px=128))
    one = estimate_batch([SlideJob(slide, "a")], request)
    many = estimate_batch([SlideJob(slide, f"s{number}") for number in range(100)], request)
    assert many.chosen == pytest.approx(100 * one.chosen, rel=1e-6)
    (tmp_path / "no.svs").write_text("no")
    assert estimate_batch([SlideJob(tmp_path / "no.svs", "n")], request) == Room(0, 0)


def test_full_disk_is_refused_with_both_numbers(tmp_path: Path) -> None:
    refuse_full_disk(tmp_path / "not" / "there", Room(1, 1))
    with pytest.raises(
        StoreError, match=r"needs about 9000000\.0 GB, .* are free; --codec jpeg would take about 1000000\.0 GB"
    ):
        refuse_full_disk(tmp_path, Room(9 * 10**15, 10**15))


def test_picture_lies_beside_the_store(slide: Path, tmp_path: Path) -> None:
    import imagecodecs

    tile(slide, tmp_path, TileRequest(tiling=TilingSpec(mpp=0.5, size_px=128)))
    picture = imagecodecs.jpeg8_decode((tmp_path / "s.tiling.jpg").read_bytes())
    assert picture.shape[1] == 1600
    assert not list(tmp_path.glob("*.partial"))
