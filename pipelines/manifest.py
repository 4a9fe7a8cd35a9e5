"""Which slides a batch holds: files, folders and manifest CSVs become slide jobs, with annotations where there are any."""

import csv
import difflib
import io
import logging
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from simtriplet.pipelines.slide_files import SLIDE_SUFFIXES, find_slides, one_per_series
from simtriplet.wsi.annotation_file import find_annotation
from simtriplet.wsi.errors import AnnotationError, SettingsError, UnreachableError
from simtriplet.wsi.metadata import read_regular_file
from simtriplet.wsi.missing_values import MISSING, PERHAPS_MISSING
from simtriplet.wsi.reach import exists, is_folder, leads_to_folder
from simtriplet.wsi.registry import nearest_name
from simtriplet.wsi.slide import refuse_no_file
from simtriplet.wsi.slide_annotation import with_regions
from simtriplet.wsi.tiling import SlideJob, slide_id_of

__all__ = ["collect_jobs", "read_manifest"]

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 28
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
        inputs: slide files, folders (of the slides right inside them, see `recursive`) and manifest CSVs. The files of one
            DICOM series count as one slide.
        annotations: folder with `<slide_id>.geojson`, .xml or .csv, or one such file when there is one slide.
        slide_mpp: micrometres per level-0 pixel for all slides whose manifest row gives none.
        recursive: take the slides in folders of folders too.

    Raises:
        SlideOpenError: if a folder holds no slides, or none of the files is there; where another is, one that is missing or out
            of reach is a job too, whose own turn tells why.
        SettingsError: if two slides have one id or a manifest is malformed.
        AnnotationError: if the annotation file of the only slide is malformed; of several it is read when the slide is tiled.
    """
    files: list[Path] = []
    listed: list[SlideJob] = []
    for given in inputs:
        if given.suffix.lower() == ".csv":
            listed.extend(read_manifest(given))
        elif given.suffix.lower() not in SLIDE_SUFFIXES and leads_to_folder(given):
            files.extend(find_slides(given, recursive=recursive))
        else:
            files.append(given)
    if files and not listed and not any(map(os.path.exists, files)):
        refuse_no_file(files[0])
    jobs = [*listed, *(SlideJob(path, slide_id_of(path)) for path in one_per_series(files))]
    _refuse_duplicates(jobs)
    if listed:  # found files are one a series already, and reading thousands of headers again takes its time
        _refuse_split_series(jobs)
    complete = [_complete(job, annotations, slide_mpp, single=len(jobs) == 1) for job in jobs]
    _tell_missing_annotations(complete, annotations)
    return complete


def _tell_missing_annotations(jobs: Sequence[SlideJob], annotations: Path | None) -> None:
    if annotations is None:
        return
    missing = [job.slide_id for job in jobs if job.annotation is None and job.regions is None]
    if missing and len(missing) == len(jobs):
        raise SettingsError(
            f"annotations '{annotations}': hold no file for any of {len(jobs)} slides; name them <slide_id>.geojson, "
            f"for instance {missing[0]}.geojson"
        )
    if missing:
        log.warning("%d of %d slides have no annotations, %r for instance", len(missing), len(jobs), missing[0])


def read_manifest(path: Path) -> list[SlideJob]:
    """Read a manifest CSV with the columns path, and optionally slide_id, patient_id, label and slide_mpp.

    Paths are relative to the manifest.

    Raises:
        SettingsError: if it cannot be read, lacks the column `path`, or a row is malformed.
    """
    try:
        text = read_regular_file(path, most_bytes=_MOST_BYTES).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
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
    if len(set(columns)) < len(columns):
        raise SettingsError(f"manifest '{path}': two columns have the same name; rename one")
    if not rows:
        raise SettingsError(f"manifest '{path}': has no rows; add one a slide")
    for number, row in enumerate(rows, start=2):
        if len(row) > len(columns):
            raise SettingsError(
                f"manifest '{path}' line {number}: has more cells than the heading; put names with a comma into quotes"
            )
    return [_manifest_job(path, number, row) for number, row in enumerate(rows, start=2)]


def _manifest_job(manifest: Path, line: int, row: dict[str, str | None]) -> SlideJob:
    file, slide_id, patient_id, label, mpp = ((row.get(column) or "").strip() for column in COLUMNS)
    if not file or "\0" in file:
        raise SettingsError(f"manifest '{manifest}' line {line}: has no path; fill it in")
    for what, value, names in (("patient", patient_id, MISSING | PERHAPS_MISSING), ("label", label, MISSING)):
        if value.lower() in names:
            raise SettingsError(
                f"manifest '{manifest}' line {line}: {value!r} is what some programs write for no {what}; leave the cell empty"
            )
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
        first = seen.setdefault(unicodedata.normalize("NFC", job.slide_id).casefold(), job)
        if first is job:
            continue
        if first.slide_id == job.slide_id:
            raise SettingsError(
                f"slide id {job.slide_id!r}: is that of both '{first.path}' and '{job.path}'; give them ids in a manifest"
            )
        raise SettingsError(
            f"slide ids {first.slide_id!r} and {job.slide_id!r}: name one file on systems that do not tell upper from lower case; "
            "give them other ids in a manifest"
        )


def _refuse_split_series(jobs: Sequence[SlideJob]) -> None:
    kept = set(one_per_series([job.path for job in jobs]))
    for job in jobs:
        if job.path not in kept:
            raise SettingsError(
                f"slide {job.slide_id!r}: its file '{job.path}' belongs to the DICOM series of another one; list one file a series"
            )


def _complete(job: SlideJob, annotations: Path | None, slide_mpp: float | None, *, single: bool) -> SlideJob:
    complete = replace(
        job,
        slide_mpp=job.slide_mpp if job.slide_mpp is not None else slide_mpp,
        annotation=_annotation_of(job, annotations, single=single),
    )
    return with_regions(complete) if single else complete  # one of several tells in its own turn that its file is bad


def _annotation_of(job: SlideJob, annotations: Path | None, *, single: bool) -> Path | None:
    if annotations is None:
        return None
    if is_folder(annotations):
        try:
            return find_annotation(annotations, job.slide_id)
        except (AnnotationError, UnreachableError):
            return annotations  # looked into again in the slide's own turn, which tells what is wrong
    if not exists(annotations):
        raise SettingsError(f"annotations '{annotations}': do not exist; pass a folder of <slide_id>.geojson")
    if not single:
        raise SettingsError(f"annotations '{annotations}': is one file for several slides; pass a folder")
    return annotations
