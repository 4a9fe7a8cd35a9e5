"""Which slides a batch holds: files, folders and manifest CSVs become slide jobs, with annotations where there are any."""

import csv
import difflib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from simtriplet.wsi.annotation_file import find_annotation, read_annotations
from simtriplet.wsi.errors import SettingsError, SlideOpenError
from simtriplet.wsi.registry import nearest_name
from simtriplet.wsi.tiling import SlideJob, slide_id_of

__all__ = ["SLIDE_SUFFIXES", "collect_jobs", "read_manifest"]

log = logging.getLogger(__name__)

SLIDE_SUFFIXES = frozenset(
    ".svs .tif .tiff .btf .ndpi .vms .vmu .scn .mrxs .svslide .bif .dcm .czi .qptiff".split()  # noqa: SIM905
)
COLUMNS = ("path", "slide_id", "patient_id", "label", "slide_mpp")


def collect_jobs(
    inputs: Iterable[Path],
    *,
    annotations: Path | None = None,
    slide_mpp: float | None = None,
    recursive: bool = False,
) -> list[SlideJob]:
    """Turn what the user named into slide jobs.

    Args:
        inputs: slide files, folders (all slides right inside them) and manifest CSVs.
        annotations: folder with `<slide_id>.geojson`, .xml or .csv, or one such file when there is one slide.
        slide_mpp: micrometres per level-0 pixel for all slides whose manifest row gives none.
        recursive: take the slides in folders of folders too.

    Raises:
        SlideOpenError: if a path does not exist or a folder holds no slides.
        SettingsError: if two slides have one id or a manifest is malformed.
        AnnotationError: if an annotation file is malformed.
    """
    jobs: list[SlideJob] = []
    for given in inputs:
        if given.suffix.lower() == ".csv":
            jobs.extend(read_manifest(given))
        elif given.is_dir() and given.suffix.lower() not in SLIDE_SUFFIXES:
            jobs.extend(_folder_jobs(given, recursive=recursive))
        elif given.exists():
            jobs.append(SlideJob(given, slide_id_of(given)))
        else:
            raise SlideOpenError(f"slide '{given}': does not exist; check the path")
    _refuse_duplicates(jobs)
    complete = [_complete(job, annotations, slide_mpp, single=len(jobs) == 1) for job in jobs]
    _tell_missing_annotations(complete, annotations)
    return complete


def _tell_missing_annotations(jobs: Sequence[SlideJob], annotations: Path | None) -> None:
    missing = [job.slide_id for job in jobs if job.regions is None] if annotations is not None else []
    if missing and len(missing) == len(jobs):
        raise SettingsError(
            f"annotations '{annotations}': hold no file for any of {len(jobs)} slides; name them <slide_id>.geojson, "
            f"for instance {missing[0]}.geojson"
        )
    if missing:
        log.warning("%d of %d slides have no annotations, %r for instance", len(missing), len(jobs), missing[0])


def _folder_jobs(folder: Path, *, recursive: bool) -> list[SlideJob]:
    found = sorted(path for path in (folder.rglob("*") if recursive else folder.iterdir()) if path.is_file())
    files = _one_per_series([path for path in found if path.suffix.lower() in SLIDE_SUFFIXES])
    if not files:
        deeper = not recursive and any(path.suffix.lower() in SLIDE_SUFFIXES for path in folder.glob("*/*"))
        hint = "its folders do, pass --recursive" if deeper else "check the path"
        raise SlideOpenError(f"folder '{folder}': holds no slides ({', '.join(sorted(SLIDE_SUFFIXES))}); {hint}")
    others = [path.name for path in found if path.suffix.lower() not in SLIDE_SUFFIXES]
    if others:
        log.info("folder '%s': %d files have no slide's suffix, %r for instance", folder, len(others), others[0])
    return [SlideJob(path, slide_id_of(path)) for path in files]


def _one_per_series(files: Sequence[Path]) -> list[Path]:
    """Keep the first of the DICOM files that make up one slide: OpenSlide finds the others, which hold its levels."""
    kept: dict[object, Path] = {}
    for path in files:
        kept.setdefault(_series(path) if path.suffix.lower() == ".dcm" else path, path)
    return list(kept.values())


def _series(path: Path) -> object:
    from simtriplet.wsi.openslide_reader import dicom_series  # imports OpenSlide, which only tiling needs

    return path.parent, dicom_series(path) or path


def read_manifest(path: Path) -> list[SlideJob]:
    """Read a manifest CSV with the columns path, and optionally slide_id, patient_id, label and slide_mpp.

    Paths are relative to the manifest.

    Raises:
        SettingsError: if it cannot be read, lacks the column `path`, or a row is malformed.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
            columns = list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(f"manifest '{path}': cannot be read ({error}); save it as CSV in UTF-8") from error
    if "path" not in columns:
        hint = nearest_name("path", columns) or f"; it has {', '.join(columns) or 'no columns'}"
        raise SettingsError(f"manifest '{path}': has no column 'path'{hint}")
    for column in columns:
        close = difflib.get_close_matches(column, COLUMNS, n=1, cutoff=0.8)
        if close and column not in COLUMNS:  # other columns are the user's own
            raise SettingsError(f"manifest '{path}': column {column!r} is not known; did you mean {close[0]!r}?")
    if not rows:
        raise SettingsError(f"manifest '{path}': has no rows; add one a slide")
    return [_manifest_job(path, number, row) for number, row in enumerate(rows, start=2)]


def _manifest_job(manifest: Path, line: int, row: dict[str, str | None]) -> SlideJob:
    file, slide_id, patient_id, label, mpp = ((row.get(column) or "").strip() for column in COLUMNS)
    if not file:
        raise SettingsError(f"manifest '{manifest}' line {line}: has no path; fill it in")
    slide = manifest.parent / file
    try:
        return SlideJob(
            path=slide,
            slide_id=slide_id or slide_id_of(slide),
            patient_id=patient_id or None,
            label=label or None,
            slide_mpp=float(mpp) if mpp else None,
        )
    except SettingsError as error:
        raise SettingsError(f"manifest '{manifest}' line {line}: {error}") from error
    except ValueError as error:
        raise SettingsError(f"manifest '{manifest}' line {line}: slide_mpp {mpp!r} is no number; correct it") from error


def _refuse_duplicates(jobs: Sequence[SlideJob]) -> None:
    seen: dict[str, SlideJob] = {}
    for job in jobs:
        first = seen.setdefault(job.slide_id, job)
        if first is not job:
            raise SettingsError(
                f"slide id {job.slide_id!r}: is that of both '{first.path}' and '{job.path}'; give them ids in a manifest"
            )


def _complete(job: SlideJob, annotations: Path | None, slide_mpp: float | None, *, single: bool) -> SlideJob:
    file = _annotation_file(job, annotations, single=single)
    return SlideJob(
        path=job.path,
        slide_id=job.slide_id,
        patient_id=job.patient_id,
        label=job.label,
        slide_mpp=job.slide_mpp if job.slide_mpp is not None else slide_mpp,
        regions=tuple(read_annotations(file)) if file is not None else None,
    )


def _annotation_file(job: SlideJob, annotations: Path | None, *, single: bool) -> Path | None:
    if annotations is None:
        return None
    if annotations.is_dir():
        return find_annotation(annotations, job.slide_id)
    if not annotations.exists():
        raise SettingsError(f"annotations '{annotations}': do not exist; pass a folder of <slide_id>.geojson")
    if not single:
        raise SettingsError(f"annotations '{annotations}': is one file for several slides; pass a folder")
    return annotations
