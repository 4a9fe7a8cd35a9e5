"""A text file of patients, one a line."""

from pathlib import Path

from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.metadata import read_regular_file

__all__ = ["read_patients"]

_MOST_BYTES = 1 << 26


def read_patients(path: Path) -> tuple[str, ...]:
    """Return the patients that a file names; empty lines are left out.

    Raises:
        SettingsError: if the file cannot be read as UTF-8 text.
    """
    try:
        lines = read_regular_file(path, most_bytes=_MOST_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"patients file '{path}': cannot be read ({error}); pass a UTF-8 text file") from error
    return tuple(line.strip() for line in lines if line.strip())
