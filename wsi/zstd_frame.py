"""What a zstd frame says of itself before it is decompressed."""

__all__ = ["zstd_size"]

_MAGIC = b"\x28\xb5\x2f\xfd"


def zstd_size(data: bytes) -> int | None:
    """Return how many bytes a zstd frame says that it holds (RFC 8878, 3.1.1), None where it does not say."""
    if len(data) < 5 or data[:4] != _MAGIC:
        return None
    kind, is_single = data[4] >> 6, data[4] >> 5 & 1
    start = 5 + (0 if is_single else 1) + (0, 1, 2, 4)[data[4] & 3]
    length = (is_single, 2, 4, 8)[kind]
    value = int.from_bytes(data[start : start + length], "little")
    return None if not length else value + (256 if length == 2 else 0)
