"""The fast path for tiled TIFF and Aperio SVS: each native tile is read and decoded once, without the GIL."""

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import openslide
import tifffile

from simtriplet.wsi.errors import SettingsError, SlideOpenError, SlideReadError
from simtriplet.wsi.jpeg_decoding import decode_jpeg
from simtriplet.wsi.native_grid import TiffNativeTiles
from simtriplet.wsi.openslide_reader import positive
from simtriplet.wsi.slide import Pixels, SlideInfo, level_downsamples
from simtriplet.wsi.window import WindowReader

__all__ = ["TiffReader"]

_VENDORS = ("aperio", "generic-tiff")
"""Formats whose native tiles make up the picture without overlaps or offsets; others go through OpenSlide."""

_COLOURS = {1: (1, 2), 5: (1, 2), 7: (1, 2, 6), 8: (1, 2), 32946: (1, 2), 33005: (2,)}
"""Which photometric interpretations (grey, RGB, YCbCr) decode to RGB, by compression: none, LZW, JPEG, deflate (two
numbers) and Aperio's JPEG 2000. Only the JPEG codec turns YCbCr into RGB itself; Aperio's JPEG 2000 in YCbCr (33003)
comes out unconverted, so it is left to OpenSlide."""

_RGB = 2
_CACHE_BYTES = 64 << 20
_UM_PER_UNIT = {2: 25_400.0, 3: 10_000.0}
"""Micrometres per TIFF resolution unit: inch, centimetre."""

Decoder = Callable[..., tuple[npt.NDArray[np.uint8] | None, tuple[int, ...], tuple[int, ...]]]


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
            with tifffile.TiffFile(path) as tiff:
                levels = _level_pages(tiff)
                if not levels:
                    raise SlideOpenError(f"slide '{path}': has no tiled 8-bit level of a known compression")
                self._levels = [_Level(page) for page in levels]
                self.info = _info(vendor, levels)
        except SlideOpenError:
            raise
        except Exception as error:  # tifffile lets through many types on a damaged file
            raise SlideOpenError(f"slide '{path}': is a damaged TIFF: {error}") from error
        self._file = os.open(path, os.O_RDONLY)
        self._cache = _TileCache(_CACHE_BYTES)
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
        source = self._levels[level]
        pixels = np.empty((len(xy), size[1], size[0], 3), np.uint8) if out is None else out
        whole = source.whole_tiles(xy, size, self.info.level_sizes[level])
        for place, ((x, y), number) in enumerate(zip(xy.tolist(), whole.tolist(), strict=True)):
            if number >= 0:
                self._decode(level, number, out=pixels[place])
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
            if source.jpeg_colours is not None and data:
                return source.decode_jpeg(data, out)
            # a tile of no bytes is how a sparse file says "nothing scanned here"
            decoded = source.decode(data, number, jpegtables=source.jpegtables)[0] if data else None
        except Exception as error:  # the codecs raise types of their own
            raise SlideReadError(
                f"slide '{self.path}': native tile {number} of level {level} cannot be decoded ({error}); the file is damaged"
            ) from error
        tile = _as_full_rgb(decoded, source.tile_height, source.tile_width)
        if out is None:
            return tile
        out[...] = tile
        return out

    def close(self) -> None:
        """See SlideReader."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class _Level:
    """One pyramid level: where its native tiles lie and how to decode them."""

    def __init__(self, page: Any) -> None:
        self.tile_width, self.tile_height = int(page.tilewidth), int(page.tilelength)
        self.n_cols = -(-int(page.imagewidth) // self.tile_width)
        n_tiles = self.n_cols * -(-int(page.imagelength) // self.tile_height)
        self.offsets = [int(offset) for offset in page.dataoffsets]
        self.sizes = [int(size) for size in page.databytecounts]
        if min(len(self.offsets), len(self.sizes)) < n_tiles:
            raise ValueError(f"{n_tiles} tiles announced, {len(self.offsets)} stored")
        self.jpegtables: bytes | None = page.jpegtables
        self.decode = cast(Decoder, page.decode)
        self.jpeg_colours = _jpeg_colours(page)

    def decode_jpeg(self, data: bytes, out: Pixels | None) -> Pixels:
        """Decode a baseline JPEG tile as tifffile does, without its detours.

        Raises:
            ValueError: if the stream is damaged or holds another size than the file announces.
        """
        assert self.jpeg_colours is not None
        colours, wanted = self.jpeg_colours
        pixels = np.empty((self.tile_height, self.tile_width, 3), np.uint8) if out is None else out
        decode_jpeg(data, pixels, tables=self.jpegtables, colorspace=colours, outcolorspace=wanted)
        return pixels

    def whole_tiles(
        self, xy: npt.NDArray[np.int64], size: tuple[int, int], level_size: tuple[int, int]
    ) -> npt.NDArray[np.int64]:
        """Return (k,) the number of the native tile that a window is, -1 where it is none (or hangs over the border)."""
        if size != (self.tile_width, self.tile_height):
            return np.full(len(xy), -1, np.int64)
        cells = xy // size
        fits = (xy % size == 0).all(axis=1) & (xy >= 0).all(axis=1) & (xy + size <= level_size).all(axis=1)
        return np.where(fits, cells[:, 1] * self.n_cols + cells[:, 0], -1)


def _jpeg_colours(page: Any) -> tuple[int | None, int | str | None] | None:
    """Return colour spaces for the JPEG decoder (of the stream, and wanted), or None where tiles are no RGB or YCbCr JPEG."""
    if int(page.compression) != 7 or page.samplesperpixel != 3 or page.bitspersample != 8:
        return None
    colours, wanted = tifffile.tifffile.jpeg_decode_colorspace(
        page.photometric, page.planarconfig, page.extrasamples, page.is_jfif
    )
    return colours, wanted


class _NativeTile(threading.local):
    """Memory of one decoded native tile a thread."""

    def __init__(self) -> None:
        self._pixels: Pixels = np.empty((0, 0, 3), np.uint8)

    def of(self, level: _Level) -> Pixels:
        shape = (level.tile_height, level.tile_width, 3)
        if self._pixels.shape != shape:
            self._pixels = np.empty(shape, np.uint8)
        return self._pixels


def _shrink(pixels: Pixels, out: Pixels) -> None:
    """Area-average an (h, w, 3) picture by a whole factor into `out`, which may be part of a larger one."""
    cv2.resize(pixels, (out.shape[1], out.shape[0]), dst=out, interpolation=cv2.INTER_AREA)


class _TileCache:
    """Decoded native tiles, the least recently used dropped first; shared by all threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tiles: OrderedDict[tuple[int, int, int], Pixels] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int, int]) -> Pixels | None:
        with self._lock:
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
            return tile

    def put(self, key: tuple[int, int, int], tile: Pixels) -> None:
        with self._lock:
            if key in self._tiles:
                return
            self._tiles[key] = tile
            self._bytes += tile.nbytes
            while self._bytes > self._max_bytes and len(self._tiles) > 1:
                self._bytes -= self._tiles.popitem(last=False)[1].nbytes


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


def _level_pages(tiff: tifffile.TiffFile) -> list[Any]:
    """Return the tiled pages that form the pyramid: level 0 first, then those of its shape, each smaller than the last."""
    pages: list[Any] = [page for page in tiff.pages if _readable(page)]
    if not pages or pages[0].index != 0:
        return []
    levels = [pages[0]]
    aspect = pages[0].imagewidth / pages[0].imagelength
    for page in pages[1:]:
        smaller = page.imagewidth < levels[-1].imagewidth and page.imagelength < levels[-1].imagelength
        # rounding to whole pixels moves the aspect of a small level
        slack = 1 / page.imagelength + 1 / page.imagewidth
        if smaller and abs(page.imagewidth / page.imagelength / aspect - 1) <= slack + 0.01:
            levels.append(page)
    return levels


def _readable(page: Any) -> bool:
    return bool(
        isinstance(page, tifffile.TiffPage)
        and page.is_tiled
        and page.dtype == np.uint8
        and page.samplesperpixel in (1, 3)
        and page.planarconfig == 1
        and int(page.photometric) in _COLOURS.get(int(page.compression), ())
        and page.imagedepth == 1
    )


def _info(vendor: str, levels: list[Any]) -> SlideInfo:
    sizes = tuple((int(page.imagewidth), int(page.imagelength)) for page in levels)
    mpp_x, mpp_y, power = _aperio_scale(levels[0]) if vendor == "aperio" else _tag_scale(levels[0])
    return SlideInfo(
        level_sizes=sizes,
        level_downsamples=level_downsamples(sizes),
        mpp_x=mpp_x,
        mpp_y=mpp_y,
        objective_power=power,
        vendor=vendor,
    )


def _aperio_scale(page: Any) -> tuple[float | None, float | None, float | None]:
    fields = dict(re.findall(r"\|\s*(\w+)\s*=\s*([^|]*)", page.description or ""))
    mpp = positive(fields.get("MPP"))
    return mpp, mpp, positive(fields.get("AppMag"))


def _tag_scale(page: Any) -> tuple[float | None, float | None, float | None]:
    """Micrometres per pixel from the resolution tags; none without a unit."""
    unit = page.tags.get("ResolutionUnit")
    um = _UM_PER_UNIT.get(int(unit.value)) if unit is not None else None
    scales = []
    for name in ("XResolution", "YResolution"):
        tag = page.tags.get(name)
        ratio = tag.value if tag is not None else (0, 1)
        per_unit = positive(ratio[0] / ratio[1]) if ratio[1] else None
        scales.append(um / per_unit if um and per_unit else None)
    return scales[0], scales[1], None
