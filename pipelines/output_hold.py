"""An output folder belongs to one command at a time."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from simtriplet.pipelines.slide_steps import make_folder
from simtriplet.wsi.errors import StoreError
from simtriplet.wsi.folder_hold import FolderHold

__all__ = ["holding"]


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
