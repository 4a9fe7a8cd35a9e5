"""Hold a folder for one process: the system lets go of it when the process ends, however it ends."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["FolderHold", "claim_scratch", "remove_leftover", "scratch_folder"]


class FolderHold:
    """The right to write in a folder, which only one process has at a time.

    It is of the folder itself and not of its name: renamed, it stays held. A file system without locks holds nothing.

    Args:
        folder: exists.
        wait: until another process lets go of it, instead of failing.

    Raises:
        BlockingIOError: if another process, or another hold of this one, has it.
        OSError: if it cannot be opened.
    """

    def __init__(self, folder: Path, *, wait: bool = False) -> None:
        self._file: int | None = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            self.release()
            raise
        except OSError:  # some network file systems have no locks on folders
            pass
        except BaseException:  # Ctrl-C while it waits
            self.release()
            raise

    def is_of(self, folder: Path) -> bool:
        """Tell whether the folder held is the one that has this name now."""
        if self._file is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._file), folder.lstat())  # a link to it is not it
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go; a second time does nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def claim_scratch(folder: Path) -> FolderHold:
    """Make an empty folder and hold it; what a killed process left there is removed.

    Of several processes that ask for one folder at the same instant, one gets it.

    Raises:
        BlockingIOError: if another process holds it.
        OSError: if it cannot be made or emptied.
    """
    while True:
        _remove_link(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            hold = FolderHold(folder)
        except FileNotFoundError:  # its holder has just removed or renamed it
            continue
        if hold.is_of(folder):
            break
        hold.release()
    try:
        for left in folder.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()
    except BaseException:
        hold.release()
        raise
    return hold


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write in, and remove it with what is left in it.

    Raises:
        BlockingIOError: if another process holds it.
        OSError: if it cannot be made or emptied.
    """
    with claim_scratch(folder) as hold:
        try:
            yield folder
        finally:
            if hold.is_of(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _remove_link(folder: Path) -> None:
    """Scratch is never a link: what one leads to belongs to somebody else, and must not be emptied."""
    if folder.is_symlink():
        folder.unlink(missing_ok=True)


def remove_leftover(folder: Path) -> None:
    """Remove what a killed process left, unless another process is writing there; best effort."""
    with contextlib.suppress(OSError):
        _remove_link(folder)
    with contextlib.suppress(OSError), FolderHold(folder) as hold:
        if hold.is_of(folder):
            shutil.rmtree(folder, ignore_errors=True)
