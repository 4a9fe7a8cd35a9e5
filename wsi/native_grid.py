"""Tiles that are the slide's own JPEG tiles: their bytes are copied, never decoded, so nothing is lost and it is fast.

A tiled TIFF keeps each tile as an abbreviated JPEG stream without its tables, which lie once in the tag JPEGTables
(TIFF Technical Note 2). A chunk of the store is made self-contained by putting the tables and an Adobe marker, which
says whether the colours are RGB or YCbCr, behind the start-of-image marker.
"""

import os
from dataclasses import replace
from typing import Protocol, runtime_checkable

from simtriplet.wsi.errors import SettingsError, SlideReadError
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.slide import SlideReader

__all__ = ["NativeTiles", "native_spec", "native_tiles", "standalone_jpeg"]

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
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

    def read(self, row: int, col: int) -> bytes:
        """Return one native tile as a self-contained JPEG file.

        Raises:
            SlideReadError: if its bytes are missing or no JPEG.
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


def standalone_jpeg(data: bytes, tables: bytes | None, *, is_rgb: bool) -> bytes:
    """Make a whole JPEG file of an abbreviated stream.

    Args:
        data: the tile's stream, from SOI to EOI.
        tables: the content of JPEGTables (SOI, tables, EOI), or None where the stream holds its own.
        is_rgb: the components are R, G, B, not Y, Cb, Cr.

    Raises:
        ValueError: if the stream is no JPEG.
    """
    if data[:2] != _SOI:
        raise ValueError("the tile is no JPEG stream")
    marker = _ADOBE_RGB if is_rgb else _ADOBE_YCBCR
    inner = tables[2:-2] if tables and tables[:2] == _SOI and tables[-2:] == _EOI else b""
    return b"".join((_SOI, marker, inner, data[2:]))


class TiffNativeTiles:
    """Copy native tiles out of an open TIFF.

    Args:
        file: file descriptor, read with pread, so threads may share it.
        name: the slide, for error messages.
        offsets: bytes from the start of the file to each tile.
        sizes: bytes of each tile.
        tables: the level's JPEGTables.
        is_rgb: see standalone_jpeg.
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
        self._tables, self._is_rgb = tables, is_rgb
        self.size_px, self.n_cols = size_px, n_cols

    def read(self, row: int, col: int) -> bytes:
        """See NativeTiles."""
        number = row * self.n_cols + col
        data = os.pread(self._file, self._sizes[number], self._offsets[number])
        try:
            if len(data) != self._sizes[number]:
                raise ValueError("the file ends before the tile does")
            return standalone_jpeg(data, self._tables, is_rgb=self._is_rgb)
        except ValueError as error:
            raise SlideReadError(
                f"slide '{self._name}': native tile ({col}, {row}) cannot be copied ({error}); the file is damaged"
            ) from error
