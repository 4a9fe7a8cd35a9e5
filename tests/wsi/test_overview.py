"""The overview: an exact area average of the whole slide, in bands, of bounded size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simtriplet.wsi.overview as overview_module
from simtriplet.wsi.overview import read_overview
from simtriplet.wsi.slide import open_slide

Writer = Callable[..., Path]


def average(pixels: Any, factor: int) -> Any:
    """Return float64 block means, what lies beyond the border being white."""
    height, width = (-(-side // factor) * factor for side in pixels.shape[:2])
    sheet = np.full((height, width, 3), 255.0)
    sheet[: pixels.shape[0], : pixels.shape[1]] = pixels
    return sheet.reshape(height // factor, factor, width // factor, factor, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("wanted", [1.0, 4.0, 8.0, 13.0])
def test_it_is_the_area_average_of_level_0(tmp_path: Path, picture: Any, write_slide: Writer, wanted: float) -> None:
    base = picture(701, 503)
    with open_slide(write_slide(tmp_path / "a.tif", base)) as slide:
        overview = read_overview(slide, downsample=wanted)
    assert overview.downsample == wanted
    assert overview.pixels.shape == (-(-503 // int(wanted)), -(-701 // int(wanted)), 3)
    assert np.abs(overview.pixels - average(base, int(wanted))).max() <= 1


def test_it_starts_from_the_best_level(tmp_path: Path, picture: Any, write_slide: Writer) -> None:
    base = picture(1024, 512)
    quarter = np.full((128, 256, 3), 77, np.uint8)  # told from level 0 by its colour
    with open_slide(write_slide(tmp_path / "a.tif", [base, quarter])) as slide:
        overview = read_overview(slide, downsample=8.0)
    assert (overview.pixels == 77).all()
    assert overview.pixels.shape == (64, 128, 3)
    assert overview.downsample == 8.0


def test_bands_do_not_show(tmp_path: Path, picture: Any, write_slide: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(write_slide(tmp_path / "a.tif", picture(701, 503))) as slide:
        whole = read_overview(slide, downsample=4.0)
        monkeypatch.setattr(overview_module, "_BAND_BYTES", 3 * 701 * 4 * 7)
        assert np.array_equal(read_overview(slide, downsample=4.0).pixels, whole.pixels)


@pytest.mark.parametrize("max_px", [100, 287, 288, 350, 701])
def test_the_longer_side_keeps_its_limit(flat_slide: Path, max_px: int) -> None:
    with open_slide(flat_slide) as slide:
        overview = read_overview(slide, downsample=1.0, max_px=max_px)
    assert max(overview.pixels.shape) <= max_px
    assert max(overview.pixels.shape) > max_px / 2
    assert overview.pixels.shape[1] > overview.pixels.shape[0]


def test_a_slide_coarser_than_asked_stays_as_it_is(tmp_path: Path, picture: Any, write_slide: Writer) -> None:
    base = picture(90, 60)
    with open_slide(write_slide(tmp_path / "a.tif", base, tile=32)) as slide:
        overview = read_overview(slide, downsample=0.01)
    assert np.array_equal(overview.pixels, base)
    assert overview.downsample == 1.0
