"""The slide browser's pictures from slide files, and what it keeps in memory."""

import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simtriplet.evaluate.slide_browser_cache import BoundedCache, OpenSlides
from simtriplet.evaluate.slide_browser_pyramid import Overview, Pyramid, Window, compose_window, read_window
from simtriplet.evaluate.slide_browser_slides import BrowsedSlides
from simtriplet.wsi.errors import SlideOpenError
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.slide import SlideReader, open_slide
from simtriplet.wsi.store import TileStore, open_stores
from simtriplet.wsi.synthetic import SyntheticSlideSpec, draw_slide
from simtriplet.wsi.tile_request import SlideJob, TileRequest
from simtriplet.wsi.tiling import tile_slide

StoreFactory = Callable[..., TileStore]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = SyntheticSlideSpec(width_px=1500, height_px=1100, region_um=180.0, tissue_fraction=0.5, n_pieces=1)
    return draw_slide(tmp_path_factory.mktemp("slides") / "a.svs", spec).path


NO_THUMBNAIL = Overview(np.zeros((4, 4, 3), np.uint8), 1e9)


@pytest.mark.parametrize("size", [(1, 1), (255, 7), (256, 256), (257, 100), (100_000, 60_001)])
def test_squares_cover_each_level_once(size: tuple[int, int]) -> None:
    pyramid = Pyramid(size)
    for level in {pyramid.min_level, (pyramid.min_level + pyramid.max_level) // 2, pyramid.max_level}:
        shrink = 2 ** (pyramid.max_level - level)
        width, height = (-(-side // shrink) for side in size)
        n_cols, n_rows = -(-width // 256), -(-height // 256)
        corner = pyramid.window(level, n_cols - 1, n_rows - 1)
        assert corner.downsample == shrink
        assert (n_cols - 1) * 256 + corner.size[0] == width
        assert (n_rows - 1) * 256 + corner.size[1] == height
        for col, row in ((n_cols, 0), (0, n_rows)):
            with pytest.raises(IndexError):
                pyramid.window(level, col, row)
    assert max(pyramid.window(pyramid.min_level, 0, 0).size) <= 256
    with pytest.raises(IndexError):
        pyramid.window(pyramid.min_level, 1, 0)
    with pytest.raises(IndexError):
        pyramid.window(pyramid.max_level + 1, 0, 0)


def test_the_finest_level_is_the_slide_bit_for_bit(slide: Path) -> None:
    with open_slide(slide) as reader:
        pyramid = Pyramid((reader.info.width, reader.info.height))
        for col, row, size in ((0, 0, (256, 256)), (5, 4, (220, 76))):
            found = read_window(reader, pyramid.window(pyramid.max_level, col, row), NO_THUMBNAIL)
            np.testing.assert_array_equal(found, reader.read(0, (col * 256, row * 256), size))


def test_coarser_levels_are_area_averages(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the next finer level of the file; read in one go or in bounded parts, it is the same but for rounding."""
    with open_slide(slide) as reader:
        window = Window((512.0, 256.0), 2.0, (256, 192))
        found = read_window(reader, window, NO_THUMBNAIL)
        base = reader.read(0, (512, 256), (512, 384)).reshape(192, 2, 256, 2, 3).mean(axis=(1, 3))
        assert np.abs(found - base).max() <= 1.0  # rounded once along each axis
        monkeypatch.setattr("simtriplet.evaluate.slide_browser_pyramid._MAX_READ_PX", 100)
        np.testing.assert_allclose(read_window(reader, window, NO_THUMBNAIL).astype(int), found, atol=1)


def test_far_out_the_thumbnail_is_shown(slide: Path) -> None:
    overview = Overview(np.full((110, 150, 3), 77, np.uint8), 10.0)
    with open_slide(slide) as reader:
        assert (read_window(reader, Window((0.0, 0.0), 16.0, (90, 60)), overview) == 77).all()
        assert (read_window(reader, Window((0.0, 0.0), 2.0, (90, 60)), overview) != 77).any()


def test_touching_tiles_leave_no_gap_at_any_scale(store_factory: StoreFactory) -> None:
    store = store_factory(rows=8, cols=8, size_px=32)
    thumbnail = Overview(np.zeros((16, 16, 3), np.uint8), 16.0)  # black, which no tile is
    for downsample in (0.7, 1.0, 1.3, 1.9, 2.4):
        side = int(200 / downsample)
        window = Window((16.0, 8.0), downsample, (side, side))
        picture = compose_window(store, store.base_xy(), window, thumbnail)
        assert picture.max(axis=2).min() > 20, downsample


def test_where_tiles_are_tiny_all_squares_are_of_the_thumbnail(store_factory: StoreFactory) -> None:
    store = store_factory(rows=8, cols=8, size_px=32)
    black = Overview(np.zeros((8, 8, 3), np.uint8), 32.0)
    assert not compose_window(store, store.base_xy(), Window((0.0, 0.0), 4.0, (8, 64)), black).any()
    assert compose_window(store, store.base_xy(), Window((0.0, 0.0), 2.0, (8, 64)), black).all()


def test_a_slide_of_another_size_is_not_shown_as_the_stores(slide: Path, store_factory: StoreFactory) -> None:
    store = store_factory("a")
    browsed = BrowsedSlides([store], slides={"a": slide})
    about = browsed.describe(0)
    assert not about["from_slide"]
    assert "(1500, 1100) px" in about["notes"][0]
    browsed.close()
    missing = BrowsedSlides([store], slides={"a": slide.with_name("gone.svs")})
    assert "does not exist" in missing.describe(0)["notes"][0]
    missing.close()


def test_another_slide_of_the_same_size_is_not_shown_as_the_stores(slide: Path, tmp_path: Path) -> None:
    """Many scanners and crops give all slides one size."""
    spec = SyntheticSlideSpec(width_px=1500, height_px=1100, region_um=180.0, tissue_fraction=0.5, n_pieces=1)
    other = draw_slide(tmp_path / "b.svs", dataclasses.replace(spec, seed=1)).path
    tile_slide(SlideJob(slide, "a"), tmp_path / "stores", TileRequest(TilingSpec(mpp=1.0, size_px=64)))
    stores = open_stores([tmp_path / "stores"])
    for file, is_shown in ((slide, True), (other, False)):
        browsed = BrowsedSlides(stores, slides={"a": file})
        about = browsed.describe(0)
        assert (about["width"], about["from_slide"]) == (1500, is_shown)
        assert [note for note in about["notes"] if "not the one that the store was made of" in note] == about["notes"]
        assert len(about["notes"]) == (not is_shown)
        browsed.close()


def test_a_slide_that_is_slow_to_open_keeps_no_other_waiting(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one on a network disk; there is none here, so the opening waits."""
    let_open, opens = threading.Event(), []

    def open_late(path: Path) -> SlideReader:
        opens.append(path.name)
        if path.name == "late.svs":
            assert let_open.wait(30)
        return open_slide(slide)

    monkeypatch.setattr("simtriplet.evaluate.slide_browser_cache.open_slide", open_late)
    slides = OpenSlides({name: Path(f"{name}.svs") for name in ("here", "late")})
    with ThreadPoolExecutor(2) as pool:
        assert slides.use("here", lambda reader: reader.info.width) == 1500
        late = [pool.submit(slides.use, "late", lambda reader: reader.info.width) for _ in range(2)]
        while "late.svs" not in opens:
            time.sleep(0.01)
        assert slides.use("here", lambda reader: reader.info.width) == 1500
        assert not any(one.done() for one in late)
        let_open.set()
        assert [one.result() for one in late] == [1500, 1500]
    assert opens == ["here.svs", "late.svs"]
    slides.close()


def test_few_slides_are_open_however_many_are_read(slide: Path, tmp_path: Path) -> None:
    files = {}
    for number in range(6):
        files[str(number)] = tmp_path / f"{number}.svs"
        files[str(number)].symlink_to(slide)
    slides = OpenSlides(files, max_open=2)
    with open_slide(slide) as reader:
        wanted = reader.read(0, (300, 300), (64, 64))
    with ThreadPoolExecutor(8) as pool:
        tasks = [str(number % 6) for number in range(60)]
        found = list(pool.map(lambda key: slides.use(key, lambda one: one.read(0, (300, 300), (64, 64))), tasks))
    assert all(np.array_equal(pixels, wanted) for pixels in found)
    slides.use("0", lambda one: None)
    assert len(slides) <= 2
    with pytest.raises(SlideOpenError):
        OpenSlides({"x": tmp_path / "none.svs"}).use("x", lambda one: None)
    slides.close()
    assert len(slides) == 0
    with pytest.raises(SlideOpenError, match="closed"):
        slides.use("0", lambda one: None)


def test_a_slide_that_cannot_be_opened_takes_no_place(slide: Path, tmp_path: Path) -> None:
    files = {"a": slide, "b": tmp_path / "b.svs", "none": tmp_path / "none.svs", "gone": tmp_path / "gone.svs"}
    files["b"].symlink_to(slide)
    slides = OpenSlides(files, max_open=2)
    readers = {name: slides.use(name, lambda one: one) for name in ("a", "b")}
    for _ in range(2):
        for name in ("none", "gone"):
            with pytest.raises(SlideOpenError):
                slides.use(name, lambda one: None)
    assert len(slides) == 2
    assert all(slides.use(name, lambda one: one) is reader for name, reader in readers.items())
    slides.close()


def test_a_cache_holds_no_more_than_it_may(tmp_path: Path) -> None:
    made = []

    def make(key: int, size: int) -> Callable[[], bytes]:
        def value() -> bytes:
            made.append(key)
            return bytes(size)

        return value

    cache: BoundedCache[int, bytes] = BoundedCache(100, len)
    for key in (1, 2, 3):
        cache.get(key, make(key, 30))
    cache.get(1, make(1, 30))
    cache.get(4, make(4, 30))  # 2 is the one not used for longest
    assert cache.held_bytes == 90
    assert [cache.get(key, make(key, 30)) for key in (1, 3, 4)] == [bytes(30)] * 3
    assert made == [1, 2, 3, 4]
    assert len(cache.get(5, make(5, 500))) == len(cache.get(5, make(5, 500))) == 500
    assert (made[-2:], cache.held_bytes) == ([4, 5], 500)  # one that is too large alone is not made for every request
    cache.get(7, make(7, 10))
    assert cache.held_bytes == 10
    with pytest.raises(ZeroDivisionError):
        cache.get(6, lambda: bytes(1 // 0))
    assert cache.get(6, make(6, 1)) == bytes(1)


def test_a_value_that_many_ask_for_is_made_once() -> None:
    cache: BoundedCache[str, bytes] = BoundedCache(100, len)
    made, start = [], threading.Barrier(8)

    def make() -> bytes:
        made.append(1)
        time.sleep(0.05)
        return b"value"

    def ask(_: int) -> bytes:
        start.wait(10)
        return cache.get("key", make)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {b"value"}
    assert len(made) == 1


def test_pictures_of_real_slides_are_those_of_their_levels(shared_data: Path) -> None:
    for name in ("CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs", "generic-4-levels.tif"):
        with open_slide(shared_data / "slides" / name) as reader:
            pyramid = Pyramid((reader.info.width, reader.info.height))
            for level in range(pyramid.max_level - 2, pyramid.max_level + 1):
                window = pyramid.window(level, 1, 1)
                found = read_window(reader, window, NO_THUMBNAIL)
                factor = int(window.downsample)
                x, y = (int(at) for at in window.base_xy)
                size = window.size[0] * factor, window.size[1] * factor
                base = Image.fromarray(reader.read(0, (x, y), size)).reduce(factor)
                assert np.abs(found.astype(int) - np.asarray(base)).mean() < 6, (name, level)
