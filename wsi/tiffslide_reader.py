"""Slides through TiffSlide: TIFF flavours that OpenSlide does not know."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import tiffslide

from simtriplet.wsi.errors import SlideDamagedError, SlideOpenError, SlideReadError
from simtriplet.wsi.jpeg_streams import JpegStreams
from simtriplet.wsi.openslide_reader import positive
from simtriplet.wsi.slide import MAX_TILE_PX, Pixels, SlideInfo, level_downsamples
from simtriplet.wsi.tiff_directory import is_tiff, refuse_truncated
from simtriplet.wsi.window import WindowReader, on_white

__all__ = ["TiffSlideReader"]

_ALONE: dict[str, Any] = {"_multifile": False}
"""OME-TIFF may name other files to take pixels from, wherever they lie."""


class TiffSlideReader(WindowReader):
    """Read with TiffSlide.

    Args:
        path: the slide file.

    Raises:
        SlideOpenError: if TiffSlide cannot open it or it is no 8-bit RGB image.
    """

    name = "tiffslide"

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            refuse_truncated(path)
            _refuse_foreign_pixels(path)
            self._slide = tiffslide.TiffSlide(path, tifffile_options=_ALONE)
            try:
                self.info = _info(self._slide)
                self._downsamples = tuple(float(downsample) for downsample in self._slide.level_downsamples)
                self._empty = _empty_tiles(path, self.info.level_sizes)
                self._streams = JpegStreams(path, self.info.level_sizes)
            except BaseException:
                self._slide.close()
                raise
        except SlideOpenError:
            raise
        except Exception as error:  # tiffslide lets through whatever its libraries raise on a foreign file
            raise SlideOpenError(f"slide '{path}': TiffSlide cannot open it: {_first_line(error)}") from error

    @classmethod
    def suits(cls, path: Path) -> bool:
        """Tell whether the file is a TIFF."""
        return is_tiff(path)

    def read_inside(self, level: int, xy: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """See WindowReader."""
        downsample = self._downsamples[level]
        # TiffSlide floors back to the level, so the ceiling is what returns to the pixel asked for
        base_xy = (math.ceil(xy[0] * downsample), math.ceil(xy[1] * downsample))
        try:
            self._streams.refuse_cut(level, xy, size)
            read: Any = self._slide.read_region(base_xy, level, size, as_array=True)
        except Exception as error:  # the decoders raise many types
            raise SlideReadError(
                f"slide '{self.path}': the region at {xy} of level {level} cannot be read ({_first_line(error)}); "
                f"the file is damaged at {base_xy}, level-0 pixels"
            ) from error
        if read.ndim == 2 or read.shape[-1] == 1:
            read = np.repeat(read.reshape(*read.shape[:2], 1), 3, axis=2)
        pixels = on_white(read) if read.shape[-1] == 4 else np.array(read[..., :3], np.uint8)
        for left, top, right, bottom in self._empty[level].tolist():
            pixels[max(0, top - xy[1]) : max(0, bottom - xy[1]), max(0, left - xy[0]) : max(0, right - xy[0])] = 255
        return pixels

    def close(self) -> None:
        """See SlideReader."""
        self._slide.close()
        self._streams.close()


def _empty_tiles(path: Path, level_sizes: tuple[tuple[int, int], ...]) -> list[npt.NDArray[np.int64]]:
    """Return for every level the (k, 4) left, top, right, bottom of native tiles of no bytes, which TiffSlide gives as black."""
    boxes = [np.zeros((0, 4), np.int64) for _ in level_sizes]
    with tifffile.TiffFile(path, **_ALONE) as tiff:
        pages: list[Any] = [page for series in tiff.series for level in series.levels for page in level.pages[:1]]
        for page in pages:
            size = (int(page.imagewidth), int(page.imagelength))
            if not page.is_tiled or size not in level_sizes:
                continue
            numbers = np.flatnonzero(np.asarray(page.databytecounts) == 0)
            rows, cols = np.divmod(numbers, -(-size[0] // page.tilewidth))
            left, top = cols * page.tilewidth, rows * page.tilelength
            corners = [left, top, left + page.tilewidth, top + page.tilelength]
            boxes[level_sizes.index(size)] = np.column_stack(corners).astype(np.int64)
    return boxes


def _refuse_foreign_pixels(path: Path) -> None:
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages[0]
        if page.dtype != np.uint8 or page.samplesperpixel not in (1, 3, 4) or page.planarconfig != 1:
            kind = f"{page.samplesperpixel} x {page.dtype}"
            raise SlideOpenError(f"slide '{path}': pixels are {kind}, not 8-bit RGB; convert it to RGB")
        if page.is_tiled and page.tilewidth * page.tilelength > MAX_TILE_PX:
            raise SlideDamagedError(
                f"slide '{path}': native tiles of {page.tilewidth} x {page.tilelength} pixels are larger than any scanner's; "
                "the file is damaged, copy it again"
            )
        if not page.is_tiled:
            raise SlideOpenError(
                f"slide '{path}': is stored in strips, not in tiles; convert it to a tiled pyramid (vips tiffsave --tile --pyramid)"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _info(slide: tiffslide.TiffSlide) -> SlideInfo:
    properties = slide.properties
    sizes = tuple((int(width), int(height)) for width, height in slide.level_dimensions)
    return SlideInfo(
        level_sizes=sizes,
        level_downsamples=level_downsamples(sizes),
        mpp_x=positive(properties.get("tiffslide.mpp-x")),
        mpp_y=positive(properties.get("tiffslide.mpp-y")),
        objective_power=positive(properties.get("tiffslide.objective-power")),
        vendor=str(properties.get("tiffslide.vendor", "unknown")),
    )
