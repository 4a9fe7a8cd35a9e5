"""What a store records of its slide and of how it was tiled, and by what a later run knows the same request again."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simtriplet.wsi.errors import SlideReadError
from simtriplet.wsi.geometry import TilePlan
from simtriplet.wsi.quality import QUALITY_REASONS
from simtriplet.wsi.slide import SlideReader
from simtriplet.wsi.survey import Survey
from simtriplet.wsi.tile_request import SlideJob, TileRequest
from simtriplet.wsi.tile_stream import Streamed
from simtriplet.wsi.tissue_source import mask_file

__all__ = [
    "FileState",
    "file_state",
    "fingerprint",
    "lattice_record",
    "refuse_changed",
    "request_digest",
    "slide_record",
    "tiling_record",
]

_FINGERPRINT_BYTES = 1 << 18


class FileState(NamedTuple):
    """A file at one moment.

    Attributes:
        device: of the file system.
        number: of the file there.
        n_bytes: its length.
        changed_ns: when it was last written to, nanoseconds.
    """

    device: int
    number: int
    n_bytes: int
    changed_ns: int


def fingerprint(path: Path) -> str:
    """Identify a file by its size and its first and last 256 KiB (SHA-256), so that a big slide costs no full read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(size.to_bytes(8, "little"))
        for offset in (0, max(0, size - _FINGERPRINT_BYTES)):
            file.seek(offset)
            digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()


def file_state(path: Path) -> FileState:
    """Return what is another when a file is replaced or written to.

    Raises:
        SlideReadError: if it is gone.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise SlideReadError(f"slide '{path}': is gone ({error.strerror}); bring it back and tile it again") from error
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def refuse_changed(path: Path, before: FileState) -> None:
    """Refuse a slide that was not the same file from the first pixel to the last.

    Raises:
        SlideReadError: if it is not what it was.
    """
    if file_state(path) != before:
        raise SlideReadError(f"slide '{path}': was changed while it was read; tile it again when it is whole")


def request_digest(request: TileRequest, job: SlideJob, slide: str) -> str:
    """Return what a store of the same tiles of the same slide has in common with it (SHA-256).

    Args:
        request: what tiles to make.
        job: the slide.
        slide: its fingerprint.
    """
    regions = [(region.name, region.area.wkt) for region in job.regions or ()]
    mask = mask_file(request.tissue, job.slide_id)
    described = dataclasses.asdict(request)
    del described["on_damage"]  # an undamaged slide gives the same store; of others the store itself tells
    parts = [
        {**described, "tissue": request.tissue.describe()},
        slide,
        job.slide_mpp,
        job.patient_id,
        job.label,
        regions,
        job.regions is None,
        None if mask is None else fingerprint(mask),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def slide_record(job: SlideJob, reader: SlideReader, survey: Survey) -> dict[str, Any]:
    """Return what a store's attributes say of its slide."""
    info = reader.info
    return {
        "id": job.slide_id,
        "patient_id": job.patient_id,
        "label": job.label,
        "mpp": survey.mpp,
        "mpp_source": "option" if job.slide_mpp is not None else "file",
        "width": info.width,
        "height": info.height,
        "level_downsamples": list(info.level_downsamples),
        "objective_power": info.objective_power,
        "vendor": info.vendor,
        "fingerprint": fingerprint(job.path),
    }


def lattice_record(plan: TilePlan) -> dict[str, Any]:
    """Return what a store says of where its tiles lie."""
    return {
        "mpp": plan.mpp,
        "size_px": plan.size_px,
        "stride_px": plan.stride_px,
        "level": plan.level,
        "scale": plan.scale,
        "n_rows": plan.n_rows,
        "n_cols": plan.n_cols,
    }


def tiling_record(
    request: TileRequest, reader: SlideReader, survey: Survey, streamed: Streamed, digest: str, *, labelled: bool
) -> dict[str, Any]:
    """Return what a store's attributes say of how its slide was tiled.

    Args:
        request: what tiles were to be made.
        reader: what read the slide.
        survey: where tiles could lie.
        streamed: which of them were kept.
        digest: of the request.
        labelled: whether annotations were given.
    """
    plan = survey.plan
    counts = np.bincount(streamed.reasons, minlength=len(QUALITY_REASONS)).tolist()
    by_quality = dict(zip(QUALITY_REASONS[1:], counts[1:], strict=True))
    return {
        **lattice_record(plan),
        "grid": request.grid,
        "context_mpp": list(request.tiling.context_mpp),
        "rejected": {
            "tissue": len(survey.bare),
            "edge": len(survey.beyond),
            "damaged": len(survey.damaged),
            **by_quality,
        },
        "damaged": {
            "tiles": plan.base_xy(*survey.damaged.T).tolist(),
            "overview": [list(box) for box in survey.overview.damaged],
        },
        "quality": dataclasses.asdict(request.quality),
        "labels": dataclasses.asdict(request.labels),
        "labelled": labelled,
        "reader": reader.name,
        "asked": dataclasses.asdict(request.tiling),
        "request": digest,
    }
