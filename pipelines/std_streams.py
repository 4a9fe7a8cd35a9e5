"""Standard streams that are closed, full or broken: what nobody hears keeps nothing from being done."""

import contextlib
import io
import os
import sys
from typing import Any

__all__ = ["mend_streams"]


class _Unheard(io.RawIOBase):
    """A stream of bytes whose reader may be gone, or its disk full: what cannot be written is dropped."""

    def __init__(self, number: int) -> None:
        self._number = number

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        n_bytes = len(left)
        with contextlib.suppress(OSError):
            while left:
                left = left[os.write(self._number, left) :]
        return n_bytes


def mend_streams() -> None:
    """Open streams that are closed, and let messages and progress on stderr fail in silence; results on stdout do not.

    A file opened later would get the number of a closed stream, and what is said would go into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (to the program's end)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        coding = "utf-8" if sys.stderr is None else sys.stderr.encoding
        sys.stderr = io.TextIOWrapper(_Unheard(2), encoding=coding, errors="backslashreplace", write_through=True)
