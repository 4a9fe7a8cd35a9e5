"""Give files and store arrays their final name only when they are whole."""

import contextlib
import os
import shutil
from pathlib import Path

from simtriplet.wsi.errors import EvaluationError
from simtriplet.wsi.store import PARTIAL_SUFFIX

__all__ = ["replace_file", "replace_folder"]


def replace_file(path: Path, content: bytes | str) -> Path:
    """Write a file under a temporary name, then rename it; text is UTF-8.

    Returns:
        `path`.

    Raises:
        EvaluationError: if the folder cannot be made or the file not written.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise EvaluationError(
            f"output '{path}': cannot be written ({error.strerror or error}); choose another --out"
        ) from error
    return path


def replace_folder(new: Path, final: Path) -> None:
    """Rename the folder `new` to `final`; an older `final` is moved beside `new` first, then deleted.

    A rename onto a filled folder is refused by the system, so that for an instant neither is there; a reader then
    reports missing features, never half of them.
    """
    old = new.with_name(f"{new.name}.old")
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)
