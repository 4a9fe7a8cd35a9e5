"""Where an export goes: under a temporary name until it is whole, then under its own."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from simtriplet.wsi.disk_room import is_disk_full, why_not_written
from simtriplet.wsi.errors import SimTripletError, StoreError, StoreExistsError
from simtriplet.wsi.folder_hold import scratch_folder
from simtriplet.wsi.replace_folder import replace_folder
from simtriplet.wsi.store import PARTIAL_SUFFIX
from simtriplet.wsi.tile_request import Existing

__all__ = ["EXPORT_RECORD", "is_wanted", "whole_file", "whole_folder"]

EXPORT_RECORD = "export.json"
"""The file by which a folder is known as an export, so that `replace` deletes nothing else."""


def is_wanted(final: Path, existing: Existing, *, is_own: Callable[[Path], bool]) -> bool:
    """Tell whether an output is to be written; an empty folder counts as none.

    Args:
        final: its file or folder.
        existing: what to do where it is there.
        is_own: tells of what is there whether it is such an export.

    Raises:
        StoreExistsError: if it is there and may not be touched.
        StoreError: if what is there is something else than such an export, which is never replaced.
    """
    if not os.path.lexists(final) or (final.is_dir() and not any(final.iterdir())):
        return True
    if existing == "error":
        raise StoreExistsError(f"output '{final}': exists already; pass --existing skip or --existing replace")
    if not is_own(final):
        raise StoreError(f"output '{final}': is there and no export of this kind; choose another --out")
    return existing == "replace"


@contextlib.contextmanager
def whole_file(final: Path, room: Callable[[], int]) -> Iterator[Path]:
    """Give a path to write to, which becomes `final` when the block ends well and vanishes when it does not.

    Args:
        final: the file.
        room: returns about how many bytes it takes; asked where the disk is full.

    Raises:
        StoreError: if it cannot be written, or another process is writing it.
    """
    with _scratch(final, room) as partial:
        yield partial
        os.replace(partial, final)


@contextlib.contextmanager
def whole_folder(final: Path, room: Callable[[], int]) -> Iterator[Path]:
    """Give the path of a folder to make and fill, which becomes `final` when the block ends well and vanishes when not.

    A `final` that is there is replaced in one step, see `is_wanted`.

    Args:
        final: the folder.
        room: returns about how many bytes it takes; asked where the disk is full.

    Raises:
        StoreError: if it cannot be written, or another process is writing it.
    """
    final = final.resolve()  # a link to a folder stays one
    with _scratch(final, room) as partial:
        yield partial
        replace_folder(partial, final)


@contextlib.contextmanager
def _scratch(final: Path, room: Callable[[], int]) -> Iterator[Path]:
    """Give a place in a folder of this process alone, beside `final`; what a killed run left there is removed."""
    folder = final.with_name(final.name + PARTIAL_SUFFIX)
    try:
        with scratch_folder(folder):
            yield folder / final.name
    except SimTripletError:
        raise
    except BlockingIOError as error:
        raise StoreError(f"output '{final}': another run is writing it; wait for that run to end") from error
    except OSError as error:
        why = why_not_written(error, final.parent, needed=room() if is_disk_full(error) else 0)
        raise StoreError(f"output '{final}': cannot be written ({why}); free space or choose another --out") from error
