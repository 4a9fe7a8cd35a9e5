"""Say why a file could not be written: a full disk is told with what was needed and what is free."""

import errno
import os
import shutil
from pathlib import Path

__all__ = ["gigabytes", "is_disk_full", "why_not_written"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_disk_full(error: OSError) -> bool:
    """Tell a full disk, a spent quota and a limit on the size of files from other failures."""
    return error.errno in _FULL


def why_not_written(error: Exception, folder: Path, *, needed: int) -> str:
    """Return the reason in a few words: `No space left on device; needs up to about 24.3 MB, 1.0 MB are free`.

    Args:
        error: what the system said; of libraries that hide that (torch: RuntimeError), the first line. The words that
            libraries put around a full disk (Arrow's, HDF5's) are left out.
        folder: where it was to be written; it or a folder above it exists.
        needed: bytes in all.
    """
    known = isinstance(error, OSError) and error.strerror
    reason = str(known or str(error).partition("\n")[0])
    if isinstance(error, OSError) and not is_disk_full(error):
        return reason
    if isinstance(error, OSError) and error.errno is not None:
        reason = os.strerror(error.errno)
    if isinstance(error, OSError) and error.errno == errno.EFBIG:  # a limit on files; the disk may have room
        return f"{reason}; needs up to about {gigabytes(needed)}"
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if not known and free > needed:
        return reason
    reason = reason if known else "No space left on device"
    return f"{reason}; needs up to about {gigabytes(needed)}, {gigabytes(free)} are free"


def gigabytes(n_bytes: int) -> str:
    """Return a size as a person reads it."""
    if n_bytes < 1e5:
        return f"{n_bytes / 1e3:.1f} kB"
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
