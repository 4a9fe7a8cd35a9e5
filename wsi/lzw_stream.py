"""TIFF's LZW, looked at before it is decoded: imagecodecs ends the process at some damaged streams (seen in 2025.11)."""

import numpy as np
import numpy.typing as npt

__all__ = ["refuse_broken_lzw"]

_CLEAR, _END, _FIRST = 256, 257, 258
_MOST_CODES = 4096 - _FIRST + 2
"""Between two clearings of the table, which then is full."""

_LARGEST: npt.NDArray[np.int64] = _FIRST + np.maximum(0, np.arange(_MOST_CODES) - 1)
"""The largest code that each code after a clearing may be: that of the entry which it makes."""
_LARGEST[0] = _END  # nothing stands before it
_WIDTHS = 9 + np.searchsorted([511, 1023, 2047], np.maximum(_LARGEST, _FIRST), side="right")
_STARTS = np.cumsum(_WIDTHS) - _WIDTHS


def refuse_broken_lzw(data: bytes) -> None:
    """Refuse a stream that names entries which its table does not have.

    Codes grow wider at fixed places, so that all of them up to the next clearing are found at once.

    Raises:
        ValueError: if it does.
    """
    n_bits = 8 * len(data)
    padded = np.frombuffer(data + bytes(4), np.uint8).astype(np.int64)
    place = 0
    while place < n_bits:
        starts = place + _STARTS
        whole = int(np.searchsorted(starts + _WIDTHS, n_bits, side="right"))
        starts, widths = starts[:whole], _WIDTHS[:whole]
        first = starts >> 3
        window = padded[first] << 24 | padded[first + 1] << 16 | padded[first + 2] << 8 | padded[first + 3]
        codes = window >> (32 - (starts & 7) - widths) & (1 << widths) - 1
        marks = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        end = int(marks[0]) if len(marks) else whole
        if (codes[:end] > _LARGEST[:end]).any() or (not len(marks) and whole == _MOST_CODES):
            raise ValueError("its LZW stream names an entry that its table does not have")
        if not len(marks) or codes[end] == _END:
            return
        place = int(starts[end] + widths[end])
