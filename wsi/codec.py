"""How one tile's pixels become the bytes of one chunk: none (raw), zstd or jpeg."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.jpeg_decoding import decode_jpeg, imagecodecs_package
from simtriplet.wsi.packed_chunks import PackedChunks
from simtriplet.wsi.registry import Registry
from simtriplet.wsi.zstd_frame import zstd_size

__all__ = ["CODECS", "CodecName", "TileCodec", "codec_from_metadata", "make_codec"]

CodecName = Literal["none", "zstd", "jpeg"]
Pixels = npt.NDArray[np.uint8]
Encoded = bytes | memoryview

JPEG_ZARR_NAME = "simtriplet.jpeg"
ZSTD_LEVEL = 1
"""Higher levels gain under 1 % on H&E pixels and cost a multiple of the time."""


class TileCodec(Protocol):
    """Encode and decode one tile; both release the GIL where they do real work."""

    name: str

    def encode(self, tile: Pixels) -> Encoded:
        """Return the chunk bytes of a C-contiguous (s, s, 3) uint8 RGB tile."""

    def encode_stack(self, tiles: Pixels) -> Sequence[Encoded]:
        """Return the chunk bytes of each of (k, s, s, 3) tiles; they may share the tiles' memory."""

    def decode(self, data: bytes, out: Pixels) -> None:
        """Decode chunk bytes into `out`, (s, s, 3) uint8.

        Raises:
            ValueError: if the bytes are damaged or of another shape.
        """

    def zarr_codecs(self) -> list[dict[str, Any]]:
        """Return the inner codec chain as Zarr v3 metadata writes it."""


class NoneCodec:
    """Raw pixels: the fastest, and any Zarr v3 reader opens them."""

    name = "none"

    def encode(self, tile: Pixels) -> Encoded:
        """See TileCodec."""
        return np.ascontiguousarray(tile).data.cast("B")

    def encode_stack(self, tiles: Pixels) -> Sequence[Encoded]:
        """See TileCodec."""
        return PackedChunks.of_stack(np.ascontiguousarray(tiles))

    def decode(self, data: bytes, out: Pixels) -> None:
        """See TileCodec."""
        out[...] = np.frombuffer(data, np.uint8).reshape(out.shape)

    def zarr_codecs(self) -> list[dict[str, Any]]:
        """See TileCodec."""
        return [{"name": "bytes"}]


class ZstdCodec:
    """Lossless Zstandard: 2-12 % smaller on H&E, readable by any Zarr v3 reader."""

    name = "zstd"

    def encode(self, tile: Pixels) -> Encoded:
        """See TileCodec."""
        import numcodecs.zstd

        return cast(bytes, numcodecs.zstd.compress(np.ascontiguousarray(tile), ZSTD_LEVEL))

    def encode_stack(self, tiles: Pixels) -> Sequence[Encoded]:
        """See TileCodec."""
        return [self.encode(tile) for tile in tiles]

    def decode(self, data: bytes, out: Pixels) -> None:
        """See TileCodec."""
        import numcodecs.zstd

        if zstd_size(data) != out.nbytes:  # told before anything is made as long as a damaged frame says
            raise ValueError(f"the zstd frame does not hold {out.nbytes} bytes")
        try:
            raw = numcodecs.zstd.decompress(data)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        out[...] = np.frombuffer(raw, np.uint8).reshape(out.shape)

    def zarr_codecs(self) -> list[dict[str, Any]]:
        """See TileCodec."""
        return [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}]


class JpegCodec:
    """One baseline JPEG file a tile: about a seventh of the size.

    Args:
        quality: 1 to 100; None where the tiles are a slide's own, of a quality it does not tell.
    """

    name = "jpeg"

    def __init__(self, quality: int | None = 90) -> None:
        self.quality = quality

    def encode(self, tile: Pixels) -> Encoded:
        """See TileCodec."""
        return cast(bytes, imagecodecs_package().jpeg8_encode(np.ascontiguousarray(tile), level=self.quality or 90))

    def encode_stack(self, tiles: Pixels) -> Sequence[Encoded]:
        """See TileCodec."""
        return [self.encode(tile) for tile in tiles]

    def decode(self, data: bytes, out: Pixels) -> None:
        """See TileCodec."""
        decode_jpeg(data, out)

    def zarr_codecs(self) -> list[dict[str, Any]]:
        """See TileCodec."""
        return [{"name": JPEG_ZARR_NAME, "configuration": {} if self.quality is None else {"quality": self.quality}}]


CODECS: Registry[type[Any]] = Registry("tile codec")
for _codec in (NoneCodec, ZstdCodec, JpegCodec):
    CODECS.add(_codec.name, _codec)


def make_codec(name: str, *, jpeg_quality: int = 90) -> TileCodec:
    """Return the codec called `name`.

    Raises:
        UnknownNameError: if there is none of that name.
    """
    kind = CODECS.get(name)
    return cast(TileCodec, kind(jpeg_quality) if kind is JpegCodec else kind())


def codec_from_metadata(chain: list[dict[str, Any]], *, where: str) -> TileCodec:
    """Return the codec that wrote an inner codec chain.

    Raises:
        StoreError: if the chain is none that this version reads.
    """
    names = [str(codec.get("name")) for codec in chain]
    if names == ["bytes"]:
        return NoneCodec()
    if names == ["bytes", "zstd"]:
        return ZstdCodec()
    if names == [JPEG_ZARR_NAME]:
        quality = chain[0].get("configuration", {}).get("quality")
        return JpegCodec(None if quality is None else min(100, max(1, int(quality))))
    raise StoreError(f"store '{where}': tiles are encoded with {'+'.join(names)}; open it with a newer simtriplet")
