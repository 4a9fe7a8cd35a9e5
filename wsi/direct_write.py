"""Write large files past the page cache: copying there costs 40 to 500 us a raw 256 px tile, going round it 10 us."""

import contextlib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["aligned_empty", "write_direct"]

ALIGNMENT = 4096
"""What memory, place and length must be multiples of; 512 would do for most disks, this does for all."""

_LEAST_BYTES = 4 << 20
"""Below this the wait for the disk costs more than the copy."""


def aligned_empty(shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return uint8 memory of a shape that `write_direct` can write from."""
    return np.frombuffer(mmap.mmap(-1, max(1, int(np.prod(shape)))), np.uint8)[: int(np.prod(shape))].reshape(shape)


def write_direct(path: Path, memory: npt.NDArray[np.uint8]) -> int:
    """Write the aligned part of memory to the start of a file that exists, past the page cache.

    Args:
        path: the file.
        memory: (b,) uint8, contiguous.

    Returns:
        The bytes written: 0 where the memory is small or not aligned, or where system, file system or disk refuse; the
        rest is to be written the usual way.
    """
    length = memory.nbytes // ALIGNMENT * ALIGNMENT
    flag = getattr(os, "O_DIRECT", None)
    if flag is None or length < _LEAST_BYTES or memory.ctypes.data % ALIGNMENT:
        return 0
    done, buffer = 0, memory.data
    with contextlib.suppress(OSError):  # a full disk is then met, and told, by the usual way
        file = os.open(path, os.O_WRONLY | flag)
        try:
            while done < length and done % ALIGNMENT == 0:
                written = os.pwrite(file, buffer[done:length], done)
                if not written:
                    break
                done += written
        finally:
            os.close(file)
    return done
