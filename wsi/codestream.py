"""What a compressed picture says of itself before it is decoded: its size, which may be a lie, and whether it is whole."""

import struct

__all__ = ["END_MARKER", "START_OF_JPEG_2000", "codestream_size"]

END_MARKER = b"\xff\xd9"
"""The last two bytes of a JPEG and of a JPEG 2000 codestream; decoders do without, and give grey where the rest is missing."""

START_OF_JPEG_2000 = b"\xff\x4f\xff\x51"
_JPEG = b"\xff\xd8"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MAX_SEGMENTS = 1000
_MAX_COMPONENTS = 4
"""JPEG 2000 takes 16,384 of them, each as large in memory as the whole picture should be."""


def codestream_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) that the head of a JPEG or JPEG 2000 codestream announces.

    None where it has no such head, or one of more than four components (red, green, blue, clear).
    """
    try:
        if data[:4] == START_OF_JPEG_2000:
            right, bottom, left, top = struct.unpack_from(">4I", data, 8)
            (n_components,) = struct.unpack_from(">H", data, 40)
            return (right - left, bottom - top) if n_components <= _MAX_COMPONENTS else None
        return _jpeg_size(data) if data[:2] == _JPEG else None
    except (struct.error, IndexError):
        return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    place = 2
    for _ in range(_MAX_SEGMENTS):
        if data[place] != 0xFF:
            return None
        if data[place + 1] == 0xFF:  # filling
            place += 1
        elif data[place + 1] in _FRAMES:
            height, width, n_components = struct.unpack_from(">HHB", data, place + 5)
            return (width, height) if n_components <= _MAX_COMPONENTS else None
        else:
            place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    return None
