"""Tile a slide at the places that another program chose: its coordinates become a store like any other."""

import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.codec import CodecName, make_codec
from simtriplet.wsi.coordinate_lattice import FoundLattice, find_lattice
from simtriplet.wsi.errors import AnnotationError, SettingsError
from simtriplet.wsi.geometry import TilePlan, TilingSpec, morton_order, plan_tiles
from simtriplet.wsi.h5_coordinates import TileCoordinates
from simtriplet.wsi.overview import Overview, read_overview
from simtriplet.wsi.quality import QualitySpec, find_fold_limit
from simtriplet.wsi.slide import SlideInfo, SlideReader, open_slide, slide_mpp, warn_of_other_mpp
from simtriplet.wsi.slide_annotation import with_regions
from simtriplet.wsi.store import STORE_SUFFIX
from simtriplet.wsi.store_writer import StoreContents, StoreWriter
from simtriplet.wsi.survey import Cells, Survey, estimate_room, refuse_full_disk
from simtriplet.wsi.tile_feed import PixelTiles
from simtriplet.wsi.tile_request import Existing, LabelSpec, SlideJob, TileRequest
from simtriplet.wsi.tile_stream import Streamed, stream_tiles
from simtriplet.wsi.tiling import TilingSummary, kept_store, summarise, tile_labels, usable_cores
from simtriplet.wsi.tiling_record import file_state, fingerprint, lattice_record, refuse_changed, slide_record
from simtriplet.wsi.tissue import TissueMap, overview_um_per_px

__all__ = ["ImportRequest", "import_tiles"]

log = logging.getLogger(__name__)

_LEVEL_TOLERANCE = 0.005
"""A level this near to TRIDENT's resolution is taken as it is: scanners' downsamples are 4.0001 rather than 4."""

_REGION_UNKNOWN, _ALL_TISSUE = -1, 1.0


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """What shapes a store beside the coordinates.

    Attributes:
        codec: of the pixels.
        jpeg_quality: 1..100, for codec jpeg.
        reader: a name in READERS, or auto.
        labels: how annotations become tile labels.
    """

    codec: CodecName = "none"
    jpeg_quality: int = 90
    reader: str = "auto"
    labels: LabelSpec = field(default_factory=LabelSpec)

    def __post_init__(self) -> None:
        if not 1 <= self.jpeg_quality <= 100:
            raise SettingsError(f"jpeg_quality {self.jpeg_quality}: must lie in 1..100; correct it")


def import_tiles(
    job: SlideJob,
    coordinates: TileCoordinates,
    out: str | Path,
    request: ImportRequest | None = None,
    *,
    existing: Existing = "error",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TilingSummary:
    """Read exactly the tiles that a file of CLAM or TRIDENT names into `out/<slide_id>.tiles.zarr`.

    `x` and `y` are the file's own. Rows and columns are those of the lattices the places lie on (see `find_lattice`), and the
    tiles are stored lattice by lattice in Morton order. No tissue is looked for: the store has no regions, `tissue_id` is -1
    and `tissue_fraction` 1, for the other program took these tiles to be tissue.

    Args:
        job: the slide.
        coordinates: of its tiles.
        out: folder of stores; made when missing.
        request: what else shapes the store.
        existing: what to do about a finished store of that name.
        threads: threads that read, decode and write; all cores when not given.
        progress: called with (tiles done, tiles in all).

    Raises:
        AnnotationError: if the coordinates are of another slide, or the job's annotation file is malformed.
        SlideOpenError: if the file is no slide.
        SlideReadError: if its pixels are damaged; nothing is left under the final name.
        ResolutionError: if the mpp is unknown.
        StoreExistsError: if a store is there and may not be touched.
        StoreError: if the output cannot be written.
    """
    out = Path(out)
    start = time.perf_counter()
    request = request or ImportRequest()
    job = with_regions(job)
    final = out / f"{job.slide_id}{STORE_SUFFIX}"
    with open_slide(job.path, reader=request.reader) as reader:
        state = file_state(job.path)
        digest = _digest(job, coordinates, request)
        kept = kept_store(final, existing, digest)
        if kept is not None:
            return summarise(kept, "skipped", reader.name, start, 0)
        survey, base_xy = _survey(reader, job, coordinates)
        room = estimate_room(survey, TileRequest(codec=request.codec))
        refuse_full_disk(out, room)
        plan, codec = survey.plan, make_codec(request.codec, jpeg_quality=request.jpeg_quality)
        with StoreWriter(final, size_px=plan.size_px, codec=codec, room=room.chosen) as writer:
            level_xy: npt.NDArray[np.float64] = np.rint(base_xy / plan.level_downsample)
            feed = PixelTiles(reader, plan, level_xy.astype(np.int64), writer, survey.fold_limit, {})
            streamed = stream_tiles(
                feed,
                len(base_xy),
                writer,
                quality=QualitySpec(),
                threads=threads or usable_cores(),
                progress=progress,
            )
            refuse_changed(job.path, state)
            store = writer.finish(_contents(job, coordinates, request, reader, survey, base_xy, streamed, digest))
        return summarise(store, "ok", reader.name, start, writer.bytes_written)


def _digest(job: SlideJob, coordinates: TileCoordinates, request: ImportRequest) -> str:
    given = dataclasses.replace(coordinates, path=Path())
    described = {
        name: getattr(given, name) for name in TileCoordinates.__dataclass_fields__ if name not in ("path", "base_xy")
    }
    parts = [
        dataclasses.asdict(request),
        described,
        hashlib.sha256(np.ascontiguousarray(coordinates.base_xy, "<i8").data).hexdigest(),
        fingerprint(job.path),
        job.slide_mpp,
        job.patient_id,
        job.label,
        [(region.name, region.area.wkt) for region in job.regions or ()],
        job.regions is None,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _survey(reader: SlideReader, job: SlideJob, coordinates: TileCoordinates) -> tuple[Survey, npt.NDArray[np.int64]]:
    """Return all that is known before the tiles are read, and their (n, 2) places in storage order."""
    mpp = slide_mpp(reader, job.slide_mpp)
    warn_of_other_mpp(reader, mpp)
    _refuse_other_slide(reader.info, job, coordinates)
    plan = _plan(reader.info, mpp, job, coordinates)
    lattice = find_lattice(coordinates.base_xy, plan.base_size, base_overlap=coordinates.base_overlap)
    if lattice.n_parts > len(coordinates.base_xy) // 2:
        log.warning(
            "coordinates '%s': lie on no lattice, so that no tiles are adjacent; index the store with --rule radius or knn",
            coordinates.path.name,
        )
    order = np.lexsort((morton_order(lattice.row, lattice.col), lattice.part))
    base_xy = coordinates.base_xy[order]
    plan = dataclasses.replace(
        plan,
        stride_px=max(1, round(lattice.pitch / plan.base_size * plan.size_px)),
        n_rows=int(lattice.row.max()) + 1,
        n_cols=int(lattice.col.max()) + 1,
    )
    um_per_px = overview_um_per_px(max(reader.info.width, reader.info.height) * mpp, plan.base_size * mpp)
    overview = read_overview(reader, downsample=um_per_px / mpp)
    fold_limit = find_fold_limit(overview.pixels, _covered(overview, base_xy, plan.base_size))
    return _make_survey(mpp, plan, overview, lattice, order, fold_limit), base_xy


def _make_survey(
    mpp: float,
    plan: TilePlan,
    overview: Overview,
    lattice: FoundLattice,
    order: npt.NDArray[np.intp],
    fold_limit: float,
) -> Survey:
    n_tiles, nothing = len(order), np.zeros((0, 2), np.int64)
    cells = Cells(
        lattice.row[order],
        lattice.col[order],
        np.full(n_tiles, _REGION_UNKNOWN, np.int32),
        np.full(n_tiles, _ALL_TISSUE),
    )
    no_tissue = TissueMap(np.zeros(overview.pixels.shape[:2], np.uint16), overview.downsample)
    return Survey(mpp, plan, None, overview, no_tissue, cells, nothing, nothing, fold_limit)


def _refuse_other_slide(info: SlideInfo, job: SlideJob, coordinates: TileCoordinates) -> None:
    size = coordinates.slide_size
    if size is not None and size != (info.width, info.height):
        raise AnnotationError(
            f"coordinates '{coordinates.path}': are of a slide of {size[0]} x {size[1]} px, '{job.path.name}' has "
            f"{info.width} x {info.height}; pass the slide they were made of"
        )
    outside = ((coordinates.base_xy < 0) | (coordinates.base_xy >= (info.width, info.height))).any(axis=1)
    if outside.any():
        x, y = coordinates.base_xy[np.flatnonzero(outside)[0]].tolist()
        raise AnnotationError(
            f"coordinates '{coordinates.path}': a tile begins at x {x}, y {y}, outside the {info.width} x {info.height} px "
            f"of '{job.path.name}'; pass the slide they were made of"
        )


def _plan(info: SlideInfo, mpp: float, job: SlideJob, coordinates: TileCoordinates) -> TilePlan:
    size_px = coordinates.size_px
    if coordinates.level is None:
        spec = TilingSpec(
            mpp=mpp * coordinates.base_size / size_px,
            size_px=size_px,
            edge="pad",
            mpp_tolerance=_LEVEL_TOLERANCE,
            upsample=True,
        )
        return plan_tiles(info, mpp, spec, slide_name=job.path.name)
    level = _level(info, job, coordinates)
    downsample, scale = info.level_downsamples[level], coordinates.scale
    return TilePlan(
        level=level,
        level_downsample=downsample,
        scale=scale,
        mpp=mpp * downsample * scale,
        size_px=size_px,
        stride_px=size_px,
        read_px=math.ceil(round(size_px * scale, 6)),
        n_rows=0,
        n_cols=0,
    )


def _level(info: SlideInfo, job: SlideJob, coordinates: TileCoordinates) -> int:
    """Return the level the file means: by its size where the file says that, for readers may number levels differently."""
    assert coordinates.level is not None
    if coordinates.level_size is None:
        if coordinates.level < len(info.level_sizes):
            return coordinates.level
    elif coordinates.level_size in info.level_sizes:
        return info.level_sizes.index(coordinates.level_size)
    size = "" if coordinates.level_size is None else " of {} x {} px".format(*coordinates.level_size)
    known = ", ".join(f"{width} x {height}" for width, height in info.level_sizes)
    raise AnnotationError(
        f"coordinates '{coordinates.path}': are of level {coordinates.level}{size}, '{job.path.name}' has levels of {known}; "
        "pass the slide they were made of"
    )


def _covered(overview: Overview, base_xy: npt.NDArray[np.int64], base_size: float) -> npt.NDArray[np.bool_]:
    """Return (h, w) which pixels of the overview lie in a tile."""
    covered = np.zeros(overview.pixels.shape[:2], np.bool_)
    low = (base_xy / overview.downsample).astype(np.int64).tolist()
    side = math.ceil(base_size / overview.downsample)
    for x, y in low:
        covered[y : y + side, x : x + side] = True
    return covered


def _contents(
    job: SlideJob,
    coordinates: TileCoordinates,
    request: ImportRequest,
    reader: SlideReader,
    survey: Survey,
    base_xy: npt.NDArray[np.int64],
    streamed: Streamed,
    digest: str,
) -> StoreContents:
    plan, cells = survey.plan, survey.cells
    return StoreContents(
        slide=slide_record(job, reader, survey),
        tiling=_tiling_record(coordinates, request, reader, plan, digest, labelled=job.regions is not None),
        tissue={"detector": f"coordinates:{coordinates.writer}"},
        base_xy=base_xy,
        row=cells.row,
        col=cells.col,
        tissue_id=cells.region,
        tissue_fraction=cells.fraction,
        columns=streamed.scores,
        thumbnail=survey.overview.pixels,
        thumbnail_downsample=survey.overview.downsample,
        tissue_mask=survey.tissue.regions,
        label=tile_labels(job, request.labels, base_xy, plan.base_size, reader.info),
    )


def _tiling_record(
    coordinates: TileCoordinates,
    request: ImportRequest,
    reader: SlideReader,
    plan: TilePlan,
    digest: str,
    *,
    labelled: bool,
) -> dict[str, Any]:
    return {
        **lattice_record(plan),
        "grid": "given",
        "context_mpp": [],
        "coordinates": {"writer": coordinates.writer, "file": coordinates.path.name},
        "labelled": labelled,
        "reader": reader.name,
        "asked": dataclasses.asdict(request),
        "request": digest,
    }
