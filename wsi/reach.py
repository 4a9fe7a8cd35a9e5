"""What a path leads to, where rights may be lacking and disks may fail.

`Path.exists` and its like let some of the system's errors through, others with another version of Python.
"""

import stat
from pathlib import Path

from simtriplet.wsi.errors import UnreachableError

__all__ = ["entries", "exists", "is_file", "is_folder", "leads_to_folder"]


def entries(folder: Path) -> list[Path]:
    """Return what lies right in a folder, sorted.

    Raises:
        UnreachableError: if it cannot be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise _unreachable(folder, error) from error


def exists(path: Path) -> bool:
    """Tell whether there is something at a path.

    Raises:
        UnreachableError: if that cannot be told.
    """
    return _kind(path) != 0


def is_file(path: Path) -> bool:
    """Tell whether a path leads to an ordinary file.

    Raises:
        UnreachableError: if that cannot be told.
    """
    return stat.S_ISREG(_kind(path))


def is_folder(path: Path) -> bool:
    """Tell whether a path leads to a folder.

    Raises:
        UnreachableError: if that cannot be told.
    """
    return stat.S_ISDIR(_kind(path))


def leads_to_folder(path: Path) -> bool:
    """Tell whether a path leads to a folder; one that is out of reach does not, and whoever reads it will be told why."""
    try:
        return is_folder(path)
    except UnreachableError:
        return False


def _kind(path: Path) -> int:
    """Return the mode of what a path leads to, 0 where there is nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a ValueError: a zero byte in the name
        return 0
    except OSError as error:
        raise _unreachable(path, error) from error


def _unreachable(path: Path, error: OSError) -> UnreachableError:
    return UnreachableError(
        f"path '{path}': is out of reach ({error.strerror}); check the path, its rights and its disk"
    )
