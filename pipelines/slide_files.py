"""Which files of a folder are slides."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from simtriplet.wsi.dicom_head import dicom_series
from simtriplet.wsi.errors import SlideOpenError

__all__ = ["SLIDE_SUFFIXES", "find_slides", "one_per_series"]

log = logging.getLogger(__name__)

SLIDE_SUFFIXES = frozenset(
    ".svs .tif .tiff .btf .ndpi .vms .vmu .scn .mrxs .svslide .bif .dcm .czi .qptiff".split()  # noqa: SIM905
)


def find_slides(folder: Path, *, recursive: bool) -> list[Path]:
    """Return the slides of a folder, sorted; links are followed, what begins with a dot is left out.

    Args:
        folder: where to look.
        recursive: look into its folders too.

    Raises:
        SlideOpenError: if there is none, or a folder cannot be read.
    """
    found = sorted(_files_of(folder, recursive=recursive))
    slides = [path for path in found if path.suffix.lower() in SLIDE_SUFFIXES]
    if not slides:
        deeper = not recursive and any(
            path.suffix.lower() in SLIDE_SUFFIXES for path in _files_of(folder, recursive=True)
        )
        hint = "its folders do, pass --recursive" if deeper else "check the path"
        raise SlideOpenError(f"folder '{folder}': holds no slides ({', '.join(sorted(SLIDE_SUFFIXES))}); {hint}")
    others = [path.name for path in found if path.suffix.lower() not in SLIDE_SUFFIXES]
    if others:
        log.info("folder '%s': %d files have no slide's suffix, %r for instance", folder, len(others), others[0])
    return slides


def _files_of(folder: Path, *, recursive: bool) -> Iterator[Path]:
    visited: set[tuple[int, int]] = set()
    for top, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        place = Path(top).stat()
        if (place.st_dev, place.st_ino) in visited:  # a link that leads back
            folders.clear()
            continue
        visited.add((place.st_dev, place.st_ino))
        if not os.access(top, os.X_OK):
            _refuse(PermissionError(0, "Permission denied", top))
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        yield from (Path(top, name) for name in names if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise SlideOpenError(f"folder '{error.filename}': cannot be read ({error.strerror}); check its rights") from error


def one_per_series(files: Sequence[Path]) -> list[Path]:
    """Keep the first of the DICOM files that make up one slide: OpenSlide finds the others, which hold its levels."""
    kept: dict[object, Path] = {}
    for path in files:
        first = kept.setdefault(_series(path) if path.suffix.lower() == ".dcm" else path, path)
        if first is not path:
            log.info("'%s' belongs to the series of '%s'", path.name, first.name)
    return list(kept.values())


def _series(path: Path) -> object:
    """Return what files of one slide share: their folder and their series, or the file itself where it tells none."""
    series = dicom_series(path)
    return path if series is None else (path.parent, series)  # the slide's own turn will tell what is wrong
