"""A text file of patients, one a line."""

from pathlib import Path

from simtriplet.wsi.errors import SettingsError

__all__ = ["read_patients"]


def read_patients(path: Path) -> tuple[str, ...]:
    """Return the patients that a file names; empty lines are left out.

    Raises:
        SettingsError: if the file cannot be read as UTF-8 text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"patients file '{path}': cannot be read ({error}); pass a UTF-8 text file") from error
    return tuple(line.strip() for line in lines if line.strip())
