"""The pyramid of a tiled TIFF: which pages are its levels, where their native tiles lie and how these are decoded."""

import re
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import tifffile

from simtriplet.wsi.codestream import END_MARKER, codestream_size
from simtriplet.wsi.jpeg_decoding import decode_jpeg
from simtriplet.wsi.lzw_stream import refuse_broken_lzw
from simtriplet.wsi.openslide_reader import positive
from simtriplet.wsi.slide import MAX_TILE_PX, Pixels, SlideInfo, level_downsamples

__all__ = ["TiffLevel", "level_pages", "pyramid_info", "refuse_lacking_tiles"]

_COLOURS = {1: (1, 2), 5: (1, 2), 7: (1, 2, 6), 8: (1, 2), 32946: (1, 2), 33005: (2,)}
"""Which photometric interpretations (grey, RGB, YCbCr) decode to RGB, by compression: none, LZW, JPEG, deflate (two
numbers) and Aperio's JPEG 2000. Only the JPEG codec turns YCbCr into RGB itself; Aperio's JPEG 2000 in YCbCr (33003)
comes out unconverted, so it is left to OpenSlide."""

_LZW = 5
_CODESTREAMS = (7, 33005)
"""Compressions whose tiles end with a marker: JPEG and Aperio's JPEG 2000."""

_UM_PER_UNIT = {2: 25_400.0, 3: 10_000.0}
"""Micrometres per TIFF resolution unit: inch, centimetre."""

Decoder = Callable[..., tuple[npt.NDArray[np.uint8] | None, tuple[int, ...], tuple[int, ...]]]


class TiffLevel:
    """One pyramid level: where its native tiles lie and how to decode them.

    Args:
        page: of tifffile.

    Raises:
        ValueError: if fewer tiles are stored than announced, or they are larger than a decoder may be asked for.
    """

    def __init__(self, page: Any) -> None:
        self.tile_width, self.tile_height = int(page.tilewidth), int(page.tilelength)
        if self.tile_width * self.tile_height > MAX_TILE_PX:
            raise ValueError(
                f"native tiles of {self.tile_width} x {self.tile_height} pixels are larger than any scanner's"
            )
        refuse_lacking_tiles(page)
        self.n_cols = -(-int(page.imagewidth) // self.tile_width)
        self.offsets = [int(offset) for offset in page.dataoffsets]
        self.sizes = [int(size) for size in page.databytecounts]
        self.jpegtables: bytes | None = page.jpegtables
        self.decode = cast(Decoder, page.decode)
        self.jpeg_colours = _jpeg_colours(page)
        self.is_lzw = int(page.compression) == _LZW
        self.end_marker = END_MARKER if int(page.compression) in _CODESTREAMS else b""

    def decode_other(self, data: bytes, number: int) -> npt.NDArray[np.uint8] | None:
        """Decode a tile that is no RGB or YCbCr JPEG.

        Raises:
            ValueError: if the stream announces more pixels than a tile, which could fill the memory, or is LZW that would end
                the process.
        """
        if self.end_marker:
            # less is legal at the slide's right and lower border
            size = codestream_size(data)
            if size is None:
                raise ValueError("its stream has no head of a picture of up to four components")
            width, height = size
            if not (0 < width <= self.tile_width and 0 < height <= self.tile_height):
                raise ValueError(f"its stream announces {width} x {height} pixels")
        if self.is_lzw:
            refuse_broken_lzw(data)
        return self.decode(data, number, jpegtables=self.jpegtables)[0]

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


def refuse_lacking_tiles(page: Any) -> None:
    """Compare the tiles that a tiled page announces with those that it stores.

    Raises:
        ValueError: if fewer are stored; OpenSlide takes the others for white.
    """
    n_tiles = -(-int(page.imagewidth) // int(page.tilewidth)) * -(-int(page.imagelength) // int(page.tilelength))
    n_stored = min(len(page.dataoffsets), len(page.databytecounts))
    if n_stored < n_tiles:
        raise ValueError(f"{n_tiles} tiles announced, {n_stored} stored")


def _jpeg_colours(page: Any) -> tuple[int | None, int | str | None] | None:
    """Return colour spaces for the JPEG decoder (of the stream, and wanted), or None where tiles are no RGB or YCbCr JPEG."""
    if int(page.compression) != 7 or page.samplesperpixel != 3 or page.bitspersample != 8:
        return None
    colours, wanted = tifffile.tifffile.jpeg_decode_colorspace(
        page.photometric, page.planarconfig, page.extrasamples, page.is_jfif
    )
    return colours, wanted


def level_pages(tiff: tifffile.TiffFile) -> list[Any]:
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


def pyramid_info(vendor: str, levels: list[Any]) -> SlideInfo:
    """Return what a TIFF says of itself.

    Args:
        vendor: as OpenSlide names it.
        levels: of `level_pages`.
    """
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
