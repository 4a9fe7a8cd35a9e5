"""The pixels of tiles against an independent reader and an independent average."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openslide
import pytest

from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.tiling import SlideJob, TileRequest, tile_slide
from simtriplet.wsi.tissue import TissueSpec

Writer = Callable[..., Path]
Weights = npt.NDArray[np.float64]
EVERYWHERE = TissueSpec(detector="all")


def request_for(*, codec: Any = "none", **tiling: Any) -> TileRequest:
    return TileRequest(tiling=TilingSpec(**tiling), tissue=EVERYWHERE, codec=codec)


def tile(path: Path, out: Path, request: TileRequest, **job: Any) -> TileStore:
    summary = tile_slide(SlideJob(path, "s", **job), out, request, threads=2)
    store = TileStore(out / "s.tiles.zarr")
    assert summary.n_tiles == len(store)
    return store


def area_weights(size: int, scale: float, length: int) -> Weights:
    """Row i averages the interval [i, i + 1) x scale."""
    low = np.arange(size)[:, None] * scale
    pixels = np.arange(length)[None]
    overlap = np.minimum(low + scale, pixels + 1) - np.maximum(low, pixels)
    return np.clip(overlap, 0, None) / scale


def cubic_weights(size: int, scale: float, length: int) -> Weights:
    """Keys' cubic convolution with a = -0.75, pixel centres aligned, borders repeated."""
    weights = np.zeros((size, length))
    for i in range(size):
        centre = (i + 0.5) * scale - 0.5
        first = int(np.floor(centre)) - 1
        for j in range(first, first + 4):
            t = abs(centre - j)
            near, far = 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * t**3 + 3.75 * t**2 - 6 * t + 3
            weights[i, min(max(j, 0), length - 1)] += near if t <= 1 else far
    return weights


def read_independently(path: Path, store: TileStore) -> Weights:
    """Read every tile again at its own (x, y) with OpenSlide and resample it in float64."""
    tiling = store.attributes["tiling"]
    scale, size = tiling["scale"], store.size_px
    length = int(np.ceil(size * scale - 1e-9))
    weights = (area_weights if scale >= 1 else cubic_weights)(size, scale, length)
    tiles = []
    with openslide.OpenSlide(path) as slide:
        for x, y in store.base_xy().tolist():
            region = np.asarray(slide.read_region((x, y), tiling["level"], (length, length)), dtype=np.float64)
            rows = np.tensordot(weights, region[..., :3], axes=(1, 0))
            tiles.append(np.tensordot(rows, weights, axes=(1, 1)).transpose(0, 2, 1))
    return np.clip(np.array(tiles), 0, 255)


@pytest.mark.parametrize(
    ("mpp", "n_levels", "level", "scale"),
    [
        (0.5, 1, 0, 1.0),
        (1.0, 1, 0, 2.0),
        (1.5, 1, 0, 3.0),
        (0.685, 1, 0, 1.37),
        (1.85, 1, 0, 3.7),
        (0.4, 1, 0, 0.8),
        (1.0, 2, 1, 1.0),
        (1.37, 2, 1, 1.37),
        (4.0, 3, 2, 2.0),
    ],
)
def test_pixels_equal_an_independent_read_and_average(
    tmp_path: Path, picture: Any, write_slide: Writer, mpp: float, n_levels: int, level: int, scale: float
) -> None:
    path = write_slide(tmp_path / "a.tif", picture(1000, 704), n_levels=n_levels)
    store = tile(path, tmp_path / "out", request_for(mpp=mpp, size_px=56, mpp_tolerance=0.001, upsample=True))
    assert store.attributes["tiling"]["level"] == level
    assert store.attributes["tiling"]["scale"] == pytest.approx(scale, rel=1e-6)
    assert store.mpp == pytest.approx(mpp, rel=1e-6)
    pitch = 56 * mpp / 0.5
    assert len(store) == len(np.arange(0, 1000 - pitch + 0.5, pitch)) * len(np.arange(0, 704 - pitch + 0.5, pitch)) > 1
    assert np.abs(store.base_xy() - np.column_stack([store.numbers("col"), store.numbers("row")]) * pitch).max() <= 1
    error = np.abs(store.images.read(np.arange(len(store))) - read_independently(path, store))
    assert error.max() <= (1e-9 if scale == 1 else 1.0)


def test_overlapping_tiles_and_jpeg_slides(tmp_path: Path, picture: Any, write_slide: Writer) -> None:
    path = write_slide(tmp_path / "a.tif", picture(700, 500), compression="jpeg", tile=240)
    store = tile(path, tmp_path / "out", request_for(mpp=0.65, size_px=64, stride_px=24))
    assert np.abs(store.images.read(np.arange(len(store))) - read_independently(path, store)).max() <= 1
    assert store.stride_px == 24


def test_padded_tiles_are_white_beyond_the_border(tmp_path: Path, picture: Any, write_slide: Writer) -> None:
    base = picture(130, 70)
    path = write_slide(tmp_path / "a.tif", base, tile=32)
    # tissue is not found outside the slide, so a tile that hangs over holds less of it
    store = tile(path, tmp_path / "out", request_for(mpp=0.5, size_px=50, edge="pad", min_tissue=0.0))
    sheet = np.full((200, 200, 3), 255, np.uint8)
    sheet[:70, :130] = base
    assert len(store) == 3 * 2
    for (x, y), pixels in zip(store.base_xy().tolist(), store.images.read(np.arange(6)), strict=True):
        assert np.array_equal(pixels, sheet[y : y + 50, x : x + 50])


@pytest.mark.parametrize("codec", ["zstd", "jpeg"])
def test_codecs_hold_the_same_pixels(tmp_path: Path, flat_slide: Path, codec: str) -> None:
    plain = tile(flat_slide, tmp_path / "plain", request_for(size_px=64))
    coded = tile(flat_slide, tmp_path / codec, request_for(size_px=64, codec=codec))
    a, b = (store.images.read(np.arange(len(store))).astype(int) for store in (plain, coded))
    assert np.abs(a - b).mean() < (0.001 if codec == "zstd" else 3)
    assert coded.attributes["tiling"]["codec"] == codec


@pytest.mark.parametrize("reader", ["openslide", "tiffslide"])
def test_readers_make_the_same_store(tmp_path: Path, flat_slide: Path, reader: str) -> None:
    request = request_for(size_px=64, mpp=0.7)
    fast = tile(flat_slide, tmp_path / "fast", request)
    other = tile(flat_slide, tmp_path / reader, dataclasses.replace(request, reader=reader))
    assert (fast.attributes["tiling"]["reader"], other.attributes["tiling"]["reader"]) == ("tiff", reader)
    assert np.array_equal(fast.images.read(np.arange(len(fast))), other.images.read(np.arange(len(other))))


def test_one_thread_and_many_make_the_same_store(tmp_path: Path, flat_slide: Path) -> None:
    for threads in (1, 5):
        tile_slide(SlideJob(flat_slide, f"t{threads}"), tmp_path, request_for(size_px=32), threads=threads)
    one, many = (TileStore(tmp_path / f"t{threads}.tiles.zarr") for threads in (1, 5))
    assert np.array_equal(one.images.read(np.arange(len(one))), many.images.read(np.arange(len(many))))
    assert np.array_equal(one.numbers("crc32c"), many.numbers("crc32c"))
