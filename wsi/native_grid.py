"""Tiles that are the slide's own JPEG tiles: their bytes are copied, never decoded, so nothing is lost and it is fast.

A tiled TIFF keeps each tile as an abbreviated JPEG stream without its tables, which lie once in the tag JPEGTables
(TIFF Technical Note 2). A chunk of the store is made self-contained by putting the tables and an Adobe marker, which
says whether the colours are RGB or YCbCr, behind the start-of-image marker.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.codestream import END_MARKER
from simtriplet.wsi.errors import SettingsError, SlideReadError
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.jpeg_comments import blank_comments
from simtriplet.wsi.packed_chunks import PackedChunks
from simtriplet.wsi.slide import SlideReader

__all__ = ["NativeTiles", "TiffNativeTiles", "jpeg_head", "native_spec", "native_tiles"]

_SOI = b"\xff\xd8"
_BEGINNING = b"\xff\xd8\xff"
"""The start of an image and that of its first marker."""

_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
_ADOBE_YCBCR = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"


class NativeTiles(Protocol):
    """The encoded tiles of one level of a slide.

    Attributes:
        size_px: side of a native tile; they are square.
        n_cols: native tiles a row.
    """

    size_px: int
    n_cols: int

    def read(
        self, rows: Sequence[int], cols: Sequence[int], memory: Callable[[int], npt.NDArray[np.uint8]]
    ) -> PackedChunks:
        """Return native tiles, each a self-contained JPEG file.

        Args:
            rows: (k,) native row of each.
            cols: (k,) native column of each.
            memory: gives (b,) uint8 memory for them.

        Raises:
            SlideReadError: if the bytes of one are missing or no JPEG.
            SettingsError: if one was never scanned.
        """


@runtime_checkable
class HasNativeTiles(Protocol):
    """A reader that can hand out the encoded tiles of a level."""

    def native_tiles(self, level: int) -> NativeTiles:
        """Return the level's tiles.

        Raises:
            SettingsError: if the level is not made of square baseline JPEG tiles.
        """


def native_tiles(reader: SlideReader, level: int) -> NativeTiles:
    """Return the native JPEG tiles of a level.

    Raises:
        SettingsError: if the file does not keep square JPEG tiles that can be copied.
    """
    if not isinstance(reader, HasNativeTiles):
        raise SettingsError(
            f"slide '{reader.path}': read with {reader.name}, which gives no native tiles; --grid native needs a tiled "
            "JPEG TIFF or SVS, use --grid mpp"
        )
    return reader.native_tiles(level)


def native_spec(spec: TilingSpec, level: int, size_px: int) -> TilingSpec:
    """Return the tiling whose tiles are the native ones of a level."""
    return replace(spec, level=level, size_px=size_px, stride_px=size_px, edge="inside")


def jpeg_head(tables: bytes | None, *, is_rgb: bool) -> bytes:
    """Return what stands before a self-contained JPEG file's frame: start of image, Adobe marker, tables.

    Args:
        tables: the content of JPEGTables (SOI, tables, EOI), or None where the stream holds its own.
        is_rgb: the components are R, G, B, not Y, Cb, Cr.
    """
    marker = _ADOBE_RGB if is_rgb else _ADOBE_YCBCR
    inner = bytearray(tables if tables and tables[:2] == _SOI and tables[-2:] == END_MARKER else b"")
    blank_comments(inner)
    return b"".join((_SOI, marker, inner[2:-2]))


class TiffNativeTiles:
    """Copy native tiles out of an open TIFF.

    Args:
        file: file descriptor, read with pread, so threads may share it.
        name: the slide, for error messages.
        offsets: bytes from the start of the file to each tile.
        sizes: bytes of each tile.
        tables: the level's JPEGTables.
        is_rgb: see jpeg_head.
        size_px: side of a tile.
        n_cols: tiles a row.
    """

    def __init__(
        self,
        file: int,
        *,
        name: str,
        offsets: list[int],
        sizes: list[int],
        tables: bytes | None,
        is_rgb: bool,
        size_px: int,
        n_cols: int,
    ) -> None:
        self._file, self._name = file, name
        self._offsets, self._sizes = offsets, sizes
        self._head = jpeg_head(tables, is_rgb=is_rgb)
        self.size_px, self.n_cols = size_px, n_cols

    def read(
        self, rows: Sequence[int], cols: Sequence[int], memory: Callable[[int], npt.NDArray[np.uint8]]
    ) -> PackedChunks:
        """See NativeTiles; each stream is read to where its chunk will lie, then the head is laid over its start."""
        head, more = self._head, len(self._head) - len(_SOI)
        numbers = [row * self.n_cols + col for row, col in zip(rows, cols, strict=True)]
        for number in numbers:
            if not self._sizes[number]:
                raise SettingsError(
                    f"slide '{self._name}': native tile {self._place(number)} was never scanned, so there is nothing to copy; "
                    "use --grid mpp, or a --tissue mask that leaves it out"
                )
        sizes = np.array([self._sizes[number] + more for number in numbers], np.int64)
        found = memory(int(sizes.sum()))
        view = found.data
        start = 0
        for number, size in zip(numbers, sizes.tolist(), strict=True):
            begin, end = start + more, start + size
            if os.preadv(self._file, [view[begin:end]], self._offsets[number]) != end - begin:
                raise self._damaged(number, "the file ends before the tile does")
            if end - begin < len(_BEGINNING) or view[begin : begin + len(_BEGINNING)] != _BEGINNING:
                raise self._damaged(number, "the tile is no JPEG stream")
            if view[end - 2 : end] != END_MARKER and END_MARKER not in bytes(view[begin:end]):
                raise self._damaged(number, "its end is missing")
            blank_comments(view[begin:end])
            view[start : start + len(head)] = head
            start = end
        return PackedChunks(found, sizes)

    def _damaged(self, number: int, what: str) -> SlideReadError:
        return SlideReadError(
            f"slide '{self._name}': native tile {self._place(number)} cannot be copied ({what}); the file is damaged"
        )

    def _place(self, number: int) -> tuple[int, int]:
        """Return (column, row)."""
        row, col = divmod(number, self.n_cols)
        return col, row
