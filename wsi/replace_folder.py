"""Give a finished folder its final name, so that at no moment the name has nothing, or half of something, behind it."""

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

__all__ = ["replace_folder", "restore_folder"]

_SWAP = 2
"""RENAME_EXCHANGE of Linux's renameat2, and RENAME_SWAP of macOS's renamex_np."""

_AT_FDCWD = -100
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def replace_folder(new: Path, final: Path) -> None:
    """Rename the folder `new` to `final`; an older `final` is then called `new`, for the caller to remove.

    The two change places in one step where system and file system can do that (Linux: ext4, xfs, btrfs, tmpfs). Elsewhere
    there is an instant without a `final`; `restore_folder` mends what a kill in that instant leaves.

    Raises:
        OSError: if they cannot be renamed.
    """
    if not final.exists():
        os.rename(new, final)
        return
    if _exchange(new, final):
        return
    aside = _aside(new, final)
    os.rename(final, aside)
    os.rename(new, final)
    os.rename(aside, new)


def restore_folder(new: Path, final: Path) -> bool:
    """Undo what a kill in the middle of `replace_folder(new, final)` left, where the system cannot exchange names.

    Returns:
        Whether there was something to undo: the older folder has its final name again.

    Raises:
        OSError: if it cannot be renamed.
    """
    aside = _aside(new, final)
    if not aside.exists() or final.exists():
        return False
    os.rename(aside, final)
    return True


def _aside(new: Path, final: Path) -> Path:
    return new.with_name(f"{final.name}.old.partial")


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places; False where system or file system cannot."""
    rename = _system_call()
    if rename is None:
        return False
    if rename(os.fsencode(one), os.fsencode(other)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


@cache
def _system_call() -> Callable[[bytes, bytes], int] | None:
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        function = getattr(library, "renamex_np", None)
        return None if function is None else lambda one, other: int(function(one, other, _SWAP))
    function = getattr(library, "renameat2", None)  # glibc has it since 2.28
    if function is None:
        return None
    return lambda one, other: int(function(_AT_FDCWD, one, _AT_FDCWD, other, _SWAP))
