"""Averaging native tiles one by one gives the very pixels that averaging the whole window gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simtriplet.wsi.geometry import TilingSpec, plan_tiles
from simtriplet.wsi.resampling import read_tiles, resample
from simtriplet.wsi.slide import ReducesWindows, open_slide

Writer = Callable[..., Path]


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("native", [48, 96])
def test_reduced_windows_equal_averaged_ones(
    tmp_path: Path, picture: Any, write_slide: Writer, factor: int, native: int
) -> None:
    path = write_slide(tmp_path / "a.tif", picture(500, 410), tile=native)
    with open_slide(path, reader="tiff") as reader:
        assert isinstance(reader, ReducesWindows)
        size = 30
        xy = np.array([[0, 0], [12, 24], [60, 36], [7, 12], [-12, 0], [492, 12], [12, 408]], np.int64)
        out = np.zeros((len(xy), size, size, 3), np.uint8)
        read = reader.read_reduced(0, xy, size, factor, out=out)
        assert read.tolist() == [True, True, True, 7 % factor == 0, False, False, False]
        for place in np.flatnonzero(read).tolist():
            window = reader.read(0, tuple(xy[place].tolist()), (size * factor, size * factor))
            assert np.array_equal(out[place], resample(window, float(factor), size))
        assert not out[~read].any(), "what was not read is left alone"


def test_a_factor_that_native_tiles_are_no_multiple_of_is_left_to_the_caller(
    tmp_path: Path, picture: Any, write_slide: Writer
) -> None:
    path = write_slide(tmp_path / "a.tif", picture(300, 300), tile=64)
    with open_slide(path, reader="tiff") as reader:
        assert isinstance(reader, ReducesWindows)
        out = np.zeros((1, 30, 30, 3), np.uint8)
        assert not reader.read_reduced(0, np.array([[0, 0]], np.int64), 30, 3, out=out).any()


@pytest.mark.parametrize("edge", ["inside", "pad"])
def test_tiles_of_a_whole_factor_are_those_of_any_reader(
    tmp_path: Path, picture: Any, write_slide: Writer, edge: str
) -> None:
    path = write_slide(tmp_path / "a.tif", picture(410, 330), tile=64, mpp=0.25)
    spec = TilingSpec(mpp=0.5, size_px=48, stride_px=31, edge=edge)  # type: ignore[arg-type]
    read = []
    for name in ("tiff", "openslide"):
        with open_slide(path, reader=name) as reader:
            plan = plan_tiles(reader.info, 0.25, spec, slide_name="a")
            row, col = (axis.ravel() for axis in np.mgrid[0 : plan.n_rows, 0 : plan.n_cols])
            assert plan.scale == 2
            read.append(read_tiles(reader, plan, plan.level_xy(row, col)))
    assert np.array_equal(read[0], read[1])
