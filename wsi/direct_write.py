"""Write large files past the page cache: copying there costs 40 to 500 us a raw 256 px tile, going round it 10 us."""

import contextlib
import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["aligned_empty", "join_buffers", "write_direct"]

ALIGNMENT = 4096
"""What memory, place and length must be multiples of; 512 would do for most disks, this does for all."""

_LEAST_BYTES = 4 << 20
"""Below this the wait for the disk costs more than the copy."""


def aligned_empty(shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return uint8 memory of a shape that `write_direct` can write from."""
    return np.frombuffer(mmap.mmap(-1, max(1, int(np.prod(shape)))), np.uint8)[: int(np.prod(shape))].reshape(shape)


def join_buffers(buffers: Sequence[bytes | bytearray | memoryview]) -> memoryview | None:
    """Return buffers as one where they lie back to back in memory from an aligned address on, else None.

    The result is valid as long as the buffers are.
    """
    views = [np.frombuffer(buffer, np.uint8) for buffer in buffers]
    starts = [view.ctypes.data for view in views]
    ends = [start + view.nbytes for start, view in zip(starts, views, strict=True)]
    if not starts or starts[0] % ALIGNMENT or starts[1:] != ends[:-1]:
        return None
    return memoryview((ctypes.c_ubyte * (ends[-1] - starts[0])).from_address(starts[0])).cast("B")


def write_direct(path: Path, buffer: memoryview) -> int:
    """Write the aligned part of a buffer to the start of a file that exists, past the page cache.

    Args:
        path: the file.
        buffer: of aligned memory.

    Returns:
        The bytes written: 0 where the buffer is small or where system, file system or disk refuse; the rest is to be
        written the usual way.
    """
    length = buffer.nbytes // ALIGNMENT * ALIGNMENT
    flag = getattr(os, "O_DIRECT", None)
    if flag is None or length < _LEAST_BYTES:
        return 0
    done = 0
    with contextlib.suppress(OSError):  # a full disk is then met, and told, by the usual way
        file = os.open(path, os.O_WRONLY | flag)
        try:
            while done < length and done % ALIGNMENT == 0:
                done += os.pwrite(file, buffer[done:length], done)
        finally:
            os.close(file)
    return done
