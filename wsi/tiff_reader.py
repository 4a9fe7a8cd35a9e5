"""The fast path for tiled TIFF and Aperio SVS: each native tile is read and decoded once, without the GIL."""

import os
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import openslide
import tifffile

from simtriplet.wsi.errors import SettingsError, SlideDamagedError, SlideOpenError, SlideReadError
from simtriplet.wsi.jpeg_damage import looks_damaged, zeros_are_damage
from simtriplet.wsi.native_grid import TiffNativeTiles
from simtriplet.wsi.native_tile_cache import NativeTileCache
from simtriplet.wsi.openslide_reader import OpenSlideReader
from simtriplet.wsi.slide import Pixels
from simtriplet.wsi.tiff_directory import refuse_truncated
from simtriplet.wsi.tiff_level import TiffLevel, level_pages, pyramid_info, refuse_lacking_tiles
from simtriplet.wsi.window import WindowReader

__all__ = ["TiffReader"]

_VENDORS = ("aperio", "generic-tiff")
"""Formats whose native tiles make up the picture without overlaps or offsets; others go through OpenSlide."""

_CACHE_BYTES = 128 << 20
_RGB = 2


class TiffReader(WindowReader):
    """Read native tiles with pread and decode them with imagecodecs; decoded tiles are kept in a small shared cache.

    Args:
        path: the slide file.

    Raises:
        SlideOpenError: if the file is not a tiled 8-bit TIFF of a layout this reader knows.
    """

    name = "tiff"

    def __init__(self, path: Path) -> None:
        self.path = path
        vendor = openslide.OpenSlide.detect_format(str(path))
        if vendor not in _VENDORS:
            raise SlideOpenError(f"slide '{path}': is {vendor or 'of an unknown format'}, not a plain tiled TIFF")
        try:
            refuse_truncated(path)
            with tifffile.TiffFile(path) as tiff:
                levels = level_pages(tiff)
                if not levels:
                    _refuse_lacking(path, tiff)  # another reader would not notice
                    raise SlideOpenError(f"slide '{path}': has no tiled 8-bit level of a known compression")
                self._levels = _tiff_levels(path, levels)
                self.info = pyramid_info(vendor, levels)
        except SlideOpenError:
            raise
        except Exception as error:  # tifffile lets through many types on a damaged file
            raise SlideOpenError(f"slide '{path}': is a damaged TIFF: {error}") from error
        self._file = os.open(path, os.O_RDONLY)
        self._cache = NativeTileCache(_CACHE_BYTES)
        self._whole = _NativeTile()

    @classmethod
    def suits(cls, path: Path) -> bool:
        """Tell whether OpenSlide calls the file Aperio or a generic tiled TIFF."""
        try:
            return openslide.OpenSlide.detect_format(str(path)) in _VENDORS
        except openslide.OpenSlideError:
            return False

    def read_inside(self, level: int, xy: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """See WindowReader."""
        pixels = np.empty((size[1], size[0], 3), np.uint8)
        self._paste(level, xy, pixels, 1)
        return pixels

    def _paste(self, level: int, xy: tuple[int, int], pixels: Pixels, factor: int) -> None:
        """Fill a window that begins at `xy` of the level reduced by `factor`, of which native tiles are a multiple."""
        (x, y), (height, width) = xy, pixels.shape[:2]
        source = self._levels[level]
        tile_width, tile_height = source.tile_width // factor, source.tile_height // factor
        for row in range(y // tile_height, (y + height - 1) // tile_height + 1):
            for col in range(x // tile_width, (x + width - 1) // tile_width + 1):
                left, top = col * tile_width, row * tile_height
                x0, x1 = max(x, left), min(x + width, left + tile_width)
                y0, y1 = max(y, top), min(y + height, top + tile_height)
                part, number = pixels[y0 - y : y1 - y, x0 - x : x1 - x], row * source.n_cols + col
                if factor > 1 and part.shape[:2] == (tile_height, tile_width):
                    # no other window of a lattice without overlap needs it, so it is not kept
                    _shrink(self._decode(level, number, out=self._whole.of(source)), part)
                else:
                    part[...] = self._native_tile(level, number, factor)[y0 - top : y1 - top, x0 - left : x1 - left]

    def read_windows(
        self, level: int, xy: npt.NDArray[np.int64], size: tuple[int, int], *, out: Pixels | None = None
    ) -> Pixels:
        """See SlideReader; windows that are native tiles are decoded straight into the result."""
        source, level_size = self._levels[level], self.info.level_sizes[level]
        pixels = np.empty((len(xy), size[1], size[0], 3), np.uint8) if out is None else out
        whole = source.whole_tiles(xy, size, level_size)
        inside = np.asarray((xy >= 0).all(axis=1) & (xy + size <= level_size).all(axis=1))
        places = zip(xy.tolist(), whole.tolist(), inside.tolist(), strict=True)
        for place, ((x, y), number, lies_inside) in enumerate(places):
            if number >= 0:
                self._decode(level, number, out=pixels[place])
            elif lies_inside:
                self._paste(level, (x, y), pixels[place], 1)
            else:
                pixels[place] = self.read(level, (x, y), size)
        return pixels

    def read_reduced(
        self, level: int, xy: npt.NDArray[np.int64], size_px: int, factor: int, *, out: Pixels
    ) -> npt.NDArray[np.bool_]:
        """See ReducesWindows: every native tile is averaged as soon as it is decoded, so no large window is ever put together."""
        source = self._levels[level]
        span = size_px * factor
        fits: npt.NDArray[np.bool_] = (xy % factor == 0).all(axis=1) & (xy >= 0).all(axis=1)
        fits &= (xy + span <= self.info.level_sizes[level]).all(axis=1)
        if source.tile_width % factor or source.tile_height % factor:
            fits[:] = False
        for place in np.flatnonzero(fits).tolist():
            x, y = xy[place].tolist()
            self._paste(level, (x // factor, y // factor), out[place], factor)
        return fits

    def native_tiles(self, level: int) -> TiffNativeTiles:
        """See HasNativeTiles."""
        source = self._levels[level]
        if source.jpeg_colours is None or source.tile_width != source.tile_height:
            kind = "are not baseline JPEG" if source.jpeg_colours is None else "are not square"
            raise SettingsError(
                f"slide '{self.path}': the native tiles of level {level} {kind}, so they cannot be copied; use --grid mpp"
            )
        return TiffNativeTiles(
            self._file,
            name=str(self.path),
            offsets=source.offsets,
            sizes=source.sizes,
            tables=source.jpegtables,
            is_rgb=source.jpeg_colours[0] == _RGB,
            size_px=source.tile_width,
            n_cols=source.n_cols,
        )

    def _native_tile(self, level: int, number: int, factor: int) -> Pixels:
        """Return a decoded native tile, area-averaged by a whole factor."""
        cached = self._cache.get((level, number, factor))
        if cached is None:
            cached = self._decode(level, number)
            if factor > 1:
                whole, (height, width) = cached, cached.shape[:2]
                cached = np.empty((height // factor, width // factor, 3), np.uint8)
                _shrink(whole, cached)
            self._cache.put((level, number, factor), cached)
        return cached

    def _decode(self, level: int, number: int, out: Pixels | None = None) -> Pixels:
        """Decode one native tile, into `out` where given; (tile height, tile width, 3) uint8."""
        source = self._levels[level]
        try:
            data = os.pread(self._file, source.sizes[number], source.offsets[number])
            if len(data) != source.sizes[number]:
                raise ValueError("the file ends before the tile does")
            if data and data.rfind(source.end_marker) < 0:
                raise ValueError("its end is missing")
            if source.jpeg_colours is not None and data:
                if looks_damaged(data):
                    self._look_closer(level, number, data)
                return source.decode_jpeg(data, out)
            # a tile of no bytes is how a sparse file says "nothing scanned here"
            decoded = source.decode_other(data, number) if data else None
        except Exception as error:  # the codecs raise types of their own
            raise SlideReadError(
                f"slide '{self.path}': native tile {number} of level {level} cannot be decoded ({error}); the file is damaged "
                f"at {self._base_xy(level, number)}, level-0 pixels"
            ) from error
        tile = _as_full_rgb(decoded, source.tile_height, source.tile_width)
        if out is None:
            return tile
        out[...] = tile
        return out

    def _base_xy(self, level: int, number: int) -> tuple[int, int]:
        """Return the top-left corner of a native tile, level-0 pixels."""
        source, downsample = self._levels[level], self.info.level_downsamples[level]
        row, col = divmod(number, source.n_cols)
        return round(col * source.tile_width * downsample), round(row * source.tile_height * downsample)

    def _look_closer(self, level: int, number: int, data: bytes) -> None:
        """Decode a suspicious JPEG tile with OpenSlide, for which libjpeg's warnings are errors.

        Raises:
            ValueError: if it is damaged.
            SlideReadError: likewise.
        """
        source = self._levels[level]
        if zeros_are_damage(data, source.jpegtables):
            raise ValueError("a part of it is zero")
        row, col = divmod(number, source.n_cols)
        width, height = self.info.level_sizes[level]
        left, top = col * source.tile_width, row * source.tile_height
        # any pixel of a native tile decodes the whole of it; one in its middle no other one
        middle = (left + min(source.tile_width, width - left) // 2, top + min(source.tile_height, height - top) // 2)
        with OpenSlideReader(self.path) as strict:
            strict.read(strict.info.level_sizes.index((width, height)), middle, (1, 1))

    def close(self) -> None:
        """See SlideReader."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _tiff_levels(path: Path, pages: list[Any]) -> list[TiffLevel]:
    try:
        return [TiffLevel(page) for page in pages]
    except ValueError as error:  # which OpenSlide would fill with white, or give up its process for
        raise _damaged(path, error) from error


def _refuse_lacking(path: Path, tiff: tifffile.TiffFile) -> None:
    """Refuse a file whose pages, of whatever layout, lack tiles."""
    try:
        for page in tiff.pages:
            if isinstance(page, tifffile.TiffPage) and page.is_tiled:
                refuse_lacking_tiles(page)
    except ValueError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: ValueError) -> SlideDamagedError:
    return SlideDamagedError(f"slide '{path}': {error}; the file is damaged, copy it again")


class _NativeTile(threading.local):
    """Memory of one decoded native tile a thread."""

    def __init__(self) -> None:
        self._pixels: Pixels = np.empty((0, 0, 3), np.uint8)

    def of(self, level: TiffLevel) -> Pixels:
        shape = (level.tile_height, level.tile_width, 3)
        if self._pixels.shape != shape:
            self._pixels = np.empty(shape, np.uint8)
        return self._pixels


def _shrink(pixels: Pixels, out: Pixels) -> None:
    """Area-average an (h, w, 3) picture by a whole factor into `out`, which may be part of a larger one."""
    cv2.resize(pixels, (out.shape[1], out.shape[0]), dst=out, interpolation=cv2.INTER_AREA)


def _as_full_rgb(decoded: npt.NDArray[np.uint8] | None, height: int, width: int) -> Pixels:
    """Make (tile height, tile width, 3) of whatever the codec returned: edge tiles may be cropped, grey ones lack colour."""
    if decoded is None:
        return np.full((height, width, 3), 255, np.uint8)
    tile = decoded[0] if decoded.ndim == 4 else decoded
    if tile.shape == (height, width, 3):
        return tile
    full = np.full((height, width, 3), 255, np.uint8)
    full[: tile.shape[0], : tile.shape[1]] = tile[..., :3] if tile.shape[2] >= 3 else tile[..., :1]
    return full
