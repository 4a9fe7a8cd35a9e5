"""The Zarr v3 codec `simtriplet.jpeg`, found through the `zarr.codecs` entry point: a plain zarr.open reads JPEG tiles."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration

from simtriplet.wsi.codec import JPEG_ZARR_NAME, JpegCodec

__all__ = ["JpegTileCodec"]


@dataclass(frozen=True)
class JpegTileCodec(ArrayBytesCodec):
    """Encode a (1, h, w, 3) uint8 chunk as one baseline JPEG file.

    Args:
        quality: 1 to 100.
    """

    quality: int = 90
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Make the codec from its entry in zarr.json."""
        _, configuration = parse_named_configuration(data, JPEG_ZARR_NAME, require_configuration=False)
        quality = (configuration or {}).get("quality", 90)
        if not isinstance(quality, int):
            raise TypeError(f"jpeg quality {quality!r}: must be an integer")
        return cls(quality=quality)

    def to_dict(self) -> dict[str, JSON]:
        """Return the codec's entry for zarr.json."""
        return {"name": JPEG_ZARR_NAME, "configuration": {"quality": self.quality}}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Check that the array holds RGB images of uint8.

        Raises:
            ValueError: if it does not.
        """
        if len(shape) != 4 or shape[-1] != 3 or dtype.to_native_dtype() != np.uint8:
            raise ValueError(f"codec {JPEG_ZARR_NAME}: encodes (n, h, w, 3) uint8 arrays, not {shape} {dtype}")

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        pixels = np.empty(chunk_spec.shape, np.uint8)
        await asyncio.to_thread(JpegCodec(self.quality).decode, chunk_data.to_bytes(), pixels[0])
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        tile = chunk_data.as_numpy_array()[0]
        encoded = await asyncio.to_thread(JpegCodec(self.quality).encode, np.asarray(tile, dtype=np.uint8))
        return chunk_spec.prototype.buffer.from_bytes(bytes(encoded))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Refuse: the size of a JPEG is known only once it is made."""
        raise ValueError("the encoded size of a JPEG is not known in advance")

    async def decode(self, chunks_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]) -> Iterable[NDBuffer | None]:
        """Decode a batch of chunks."""
        return await super().decode(chunks_and_specs)
