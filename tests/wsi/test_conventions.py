"""(x, y) and (width, height) for slides, (height, width, channel) for arrays: pinned from end to end."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely

from simtriplet.wsi.annotation import NamedRegion
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.overview import read_overview
from simtriplet.wsi.slide import open_slide
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.tiling import SlideJob, TileRequest, tile_slide
from simtriplet.wsi.tissue import TissueSpec

WIDTH, HEIGHT = 900, 400


def coordinates(width: int, height: int) -> npt.NDArray[np.uint8]:
    """Return an image in which every pixel says where it is: x mod 256, y mod 256, and how often either wrapped."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x % 256, y % 256, 16 * (x // 256) + y // 256], axis=-1).astype(np.uint8)


def positions(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return (..., 2) the (x, y) that the pixels tell."""
    low, high = pixels[..., :2].astype(np.int64), pixels[..., 2].astype(np.int64)
    return low + 256 * np.stack([high // 16, high % 16], axis=-1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, write_slide: Any) -> TileStore:
    folder = tmp_path_factory.mktemp("conventions")
    path = write_slide(folder / "a.tif", coordinates(WIDTH, HEIGHT))
    region = NamedRegion("right", shapely.box(600, 0, WIDTH, HEIGHT))
    request = TileRequest(TilingSpec(mpp=0.5, size_px=100), TissueSpec(detector="all"))
    tile_slide(SlideJob(path, "a", regions=(region,)), folder, request)
    store = TileStore(folder / "a.tiles.zarr")
    index_store(store)
    return TileStore(store.path)


def test_a_window_is_xy_and_width_height_and_comes_as_height_width(tmp_path: Path, write_slide: Any) -> None:
    path = write_slide(tmp_path / "a.tif", coordinates(WIDTH, HEIGHT))
    for name in ("tiff", "openslide", "tiffslide"):
        with open_slide(path, reader=name) as slide:
            assert slide.info.level_sizes == ((WIDTH, HEIGHT),)
            assert (slide.info.width, slide.info.height) == (WIDTH, HEIGHT)
            window = slide.read(0, (700, 50), (30, 20))
            assert window.shape == (20, 30, 3)
            assert positions(window)[0, 0].tolist() == [700, 50]
            assert positions(window)[-1, 0].tolist() == [700, 69]
            assert positions(window)[0, -1].tolist() == [729, 50]
            many = slide.read_windows(0, np.array([[700, 50], [10, 300]]), (30, 20))
            assert positions(many)[:, 0, 0].tolist() == [[700, 50], [10, 300]]
            assert read_overview(slide, downsample=4).pixels.shape == (HEIGHT // 4, WIDTH // 4, 3)


def test_each_tile_shows_the_place_its_table_says(store: TileStore) -> None:
    assert len(store) == 9 * 4
    told = positions(store.images.read(np.arange(len(store))))
    for tile, (x, y) in zip(told, store.base_xy().tolist(), strict=True):
        expected = np.stack(np.meshgrid(np.arange(x, x + 100), np.arange(y, y + 100)), axis=-1)
        assert np.array_equal(tile, expected)
    assert np.array_equal(store.base_xy(), np.column_stack([store.numbers("col"), store.numbers("row")]) * 100)
    assert np.array_equal(store.centres(), store.base_xy() + 50)


def test_slide_thumbnail_and_tissue_have_the_same_orientation(store: TileStore) -> None:
    slide = store.attributes["slide"]
    assert (slide["width"], slide["height"]) == (WIDTH, HEIGHT)
    height, width, _ = store.thumbnail().shape
    assert (width, height) == (-(-WIDTH // 16), HEIGHT // 16)
    xy = np.concatenate([ring for region in store.tissue_rings() for polygon in region for ring in polygon])
    assert xy[:, 0].max() > 800
    assert xy[:, 1].max() < HEIGHT


def test_labels_follow_x(store: TileStore) -> None:
    labels = store.labels()
    assert labels is not None
    right = store.base_xy()[:, 0] >= 600
    assert labels.names().tolist() == ["right" if inside else None for inside in right]


def test_neighbours_are_those_on_the_slide(store: TileStore) -> None:
    graph = store.neighbours()
    anchors = np.repeat(np.arange(len(store)), graph.degrees)
    gap = np.abs(store.base_xy()[anchors] - store.base_xy()[graph.indices])
    assert gap.max() == 100
    assert (gap.sum(axis=1) > 0).all()
    assert np.allclose(graph.distances_um, np.hypot(*gap.T) * 0.5)
