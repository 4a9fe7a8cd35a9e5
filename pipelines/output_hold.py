"""An output folder can be written, and belongs to one command at a time."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from simtriplet.pipelines.slide_steps import make_folder
from simtriplet.wsi.errors import EvaluationError, StoreError
from simtriplet.wsi.folder_hold import FolderHold

__all__ = ["check_folder", "holding"]


def check_folder(out: Path, *, option: str = "--out") -> None:
    """Fail before hours of work, rather than after them, where a folder cannot be made or written; make nothing.

    Raises:
        EvaluationError: if it cannot.
    """
    try:
        place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        reason = "is a file" if not place.is_dir() else "may not be written"
        usable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    except OSError as error:
        usable, place, reason = False, out, error.strerror or "is out of reach"
    if not usable:
        raise EvaluationError(f"output '{out}': cannot be written ('{place}' {reason}); choose another {option}")


@contextlib.contextmanager
def holding(out: Path) -> Iterator[None]:
    """Make an output folder and let no other command write there meanwhile; one that stays empty is not left behind.

    Raises:
        StoreError: if another command does, or it cannot be made or written.
    """
    is_new = not os.path.exists(out)  # which, unlike Path.exists, says no where it cannot look
    make_folder(out)
    try:
        hold = FolderHold(out)
    except BlockingIOError as error:
        raise StoreError(
            f"output '{out}': another run is working there; wait for it to end, or choose another out"
        ) from error
    with hold:
        try:
            yield
        finally:
            if is_new:
                with contextlib.suppress(OSError):  # there is something in it, as there should be
                    out.rmdir()
