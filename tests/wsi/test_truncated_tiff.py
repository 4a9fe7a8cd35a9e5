"""A slide that was cut short is refused, wherever it was cut, and never read as a smaller one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tifffile

from simtriplet.wsi.errors import SimTripletError, SlideOpenError
from simtriplet.wsi.slide import open_slide
from simtriplet.wsi.tiff_directory import refuse_truncated

Writer = Callable[..., Path]


@pytest.mark.parametrize("big", [False, True])
def test_a_chain_that_leads_beyond_the_end(tmp_path: Path, picture: Any, big: bool) -> None:
    base = picture(256, 192)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=big) as tiff:
        for step in (1, 2, 4):
            tiff.write(base[::step, ::step].copy(), tile=(64, 64), photometric="rgb")
    refuse_truncated(path)
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        last = int(tiff.pages[-1].offset)
    for cut in (last, last + 1, last + 30, 17):
        path.write_bytes(data[:cut])
        with pytest.raises(SlideOpenError, match=r"is cut short: .*copy it again$"):
            refuse_truncated(path)


def test_a_cut_pyramid_is_not_read_as_one_level(tmp_path: Path, picture: Any, write_slide: Writer) -> None:
    base = picture(512, 384)
    path = write_slide(tmp_path / "a.tif", [base, base[::2, ::2].copy()], tile=64)
    data = path.read_bytes()
    with open_slide(path) as slide:
        assert len(slide.info.level_sizes) == 2
    for share in (0.3, 0.7, 0.95):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(SimTripletError, match=r"a\.tif"):
            _read_all(path)


def _read_all(path: Path) -> None:
    with open_slide(path) as slide:
        for level, size in enumerate(slide.info.level_sizes):
            slide.read(level, (0, 0), size)
