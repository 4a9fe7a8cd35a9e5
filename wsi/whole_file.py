"""Give a file its final name only when it is whole, whichever of several processes writes it."""

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["rewrite_whole", "write_whole"]


def write_whole(path: Path, data: bytes) -> None:
    """Write `<name>.partial`, then rename it; of two processes that write one file, the second waits for the first.

    Args:
        path: its folder exists.
        data: all of the file.

    Raises:
        OSError: if the disk is full or fails; a file of that name stays as it was.
    """
    rewrite_whole(path, lambda: data)


def rewrite_whole(path: Path, make: Callable[[], bytes]) -> None:
    """Write a file as `write_whole` does; what `make` reads of the old one, no other process changes before it is replaced.

    Args:
        path: its folder exists.
        make: returns all of the file.

    Raises:
        OSError: if the disk is full or fails; a file of that name stays as it was.
    """
    partial = path.with_name(path.name + ".partial")
    file = _open_alone(partial)
    try:
        os.ftruncate(file, 0)  # what a killed process left
        with open(file, "wb", closefd=False) as stream:
            stream.write(make())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()  # the room it takes is wanted
        raise
    finally:
        os.close(file)


def _open_alone(path: Path) -> int:
    """Open a file that no other process has open here; the system ends the turn of one that dies."""
    while True:
        if path.is_symlink():  # what it leads to is somebody else's
            path.unlink(missing_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file), path.lstat()):
                return file
        except FileNotFoundError:  # renamed by whom we waited for
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)
