"""The JPEG and JPEG 2000 tiles of a TIFF as they lie in the file: whether each has its end, and is no larger than a tile."""

import os
from pathlib import Path
from typing import Any

import tifffile

from simtriplet.wsi.codestream import END_MARKER, START_OF_JPEG_2000, codestream_size

__all__ = ["JpegStreams"]

_JPEG, _JPEG_2000 = (7,), (33003, 33004, 33005, 34712)
"""Compressions of a TIFF."""


class JpegStreams:
    """Looks at the tiles of JPEG levels before a library decodes them that fills with grey what is missing.

    Args:
        path: of the TIFF.
        level_sizes: (width, height) of the levels, pixels.
    """

    def __init__(self, path: Path, level_sizes: tuple[tuple[int, int], ...]) -> None:
        self._pages: dict[int, tuple[Any, Any, tuple[int, int], int]] = {}
        self._of_jpeg_2000: set[int] = set()
        self._whole: set[tuple[int, int]] = set()
        with tifffile.TiffFile(path, _multifile=False) as tiff:  # of an OME-TIFF of several files, this one alone
            pages: list[Any] = [page for series in tiff.series for level in series.levels for page in level.pages[:1]]
            for page in pages:
                size = (int(page.imagewidth), int(page.imagelength))
                if page.is_tiled and int(page.compression) in _JPEG + _JPEG_2000 and size in level_sizes:
                    level = level_sizes.index(size)
                    self._of_jpeg_2000 |= {level} if int(page.compression) in _JPEG_2000 else set()
                    tile = int(page.tilewidth), int(page.tilelength)
                    n_cols = -(-size[0] // tile[0])
                    self._pages[level] = (page.dataoffsets, page.databytecounts, tile, n_cols)
        self._file = os.open(path, os.O_RDONLY)

    def refuse_cut(self, level: int, xy: tuple[int, int], size: tuple[int, int]) -> None:
        """Read the streams of a window that were not looked at before.

        Args:
            level: pyramid level.
            xy: top-left corner, pixels of that level; the window lies on it.
            size: (width, height).

        Raises:
            ValueError: if one ends before its end marker, or is a JPEG 2000 of more pixels than a tile.
        """
        if level not in self._pages:
            return
        offsets, sizes, (tile_width, tile_height), n_cols = self._pages[level]
        for row in range(xy[1] // tile_height, (xy[1] + size[1] - 1) // tile_height + 1):
            for col in range(xy[0] // tile_width, (xy[0] + size[0] - 1) // tile_width + 1):
                number = row * n_cols + col
                if (level, number) in self._whole or not sizes[number]:
                    continue
                data = os.pread(self._file, sizes[number], offsets[number])
                if END_MARKER not in data:
                    raise ValueError(f"the end of native tile {number} of level {level} is missing")
                if level in self._of_jpeg_2000:
                    width, height = codestream_size(data[max(0, data.find(START_OF_JPEG_2000)) :]) or (1 << 32, 1 << 32)
                    if width > tile_width or height > tile_height:
                        raise ValueError(f"native tile {number} of level {level} announces more than a tile's pixels")
                self._whole.add((level, number))

    def close(self) -> None:
        """Release the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
