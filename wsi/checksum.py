"""CRC-32C (Castagnoli), the checksum of Zarr's own crc32c codec, of any buffer without a copy."""

import google_crc32c
import numpy as np

__all__ = ["crc32c"]


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C of a buffer's bytes."""
    # the C function refuses a memoryview of memory that may change, but takes an array
    return int(google_crc32c.value(data if isinstance(data, bytes) else np.asarray(data)))
