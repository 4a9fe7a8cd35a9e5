"""Tile one slide: find tissue, choose the tiles, read them once, and leave a finished store."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import shapely

from simtriplet.wsi.annotation import label_tiles
from simtriplet.wsi.codec import JpegCodec, make_codec
from simtriplet.wsi.errors import SlideReadError, StoreExistsError, StoreMismatchError, TissueError
from simtriplet.wsi.geometry import centred_level_xy, plan_context
from simtriplet.wsi.images import context_name
from simtriplet.wsi.reach import exists
from simtriplet.wsi.slide import SlideInfo, SlideReader, open_slide
from simtriplet.wsi.slide_annotation import with_regions
from simtriplet.wsi.store import STORE_SUFFIX, TileStore
from simtriplet.wsi.store_writer import StoreContents, StoreWriter, remove_leftovers
from simtriplet.wsi.survey import Room, Survey, estimate_room, refuse_full_disk, survey_slide
from simtriplet.wsi.table import Categorical
from simtriplet.wsi.tile_feed import CopiedTiles, PixelTiles, TileFeed
from simtriplet.wsi.tile_request import Existing, LabelSpec, SlideJob, TileRequest, slide_id_of
from simtriplet.wsi.tile_stream import Streamed, stream_tiles
from simtriplet.wsi.tiling_picture import tiling_picture, write_picture
from simtriplet.wsi.tiling_record import (
    FileState,
    file_state,
    fingerprint,
    refuse_changed,
    request_digest,
    slide_record,
    tiling_record,
)

__all__ = ["Existing", "LabelSpec", "SlideJob", "TileRequest", "TilingSummary", "slide_id_of", "tile_slide"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TilingSummary:
    """What became of one slide.

    Attributes:
        slide_id: the slide.
        status: "ok" or "skipped" (a finished store of the same request was there).
        n_tiles: tiles stored.
        n_lattice: lattice positions looked at.
        n_labelled: tiles with a label.
        mpp: micrometres per tile pixel.
        reader: what read the slide.
        seconds: wall-clock time.
        n_bytes: size of the pixels as stored.
    """

    slide_id: str
    status: Literal["ok", "skipped"]
    n_tiles: int
    n_lattice: int
    n_labelled: int
    mpp: float
    reader: str
    seconds: float
    n_bytes: int


def tile_slide(
    job: SlideJob,
    out: str | Path,
    request: TileRequest | None = None,
    *,
    existing: Existing = "error",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    tell_room: Callable[[Room], None] | None = None,
) -> TilingSummary:
    """Tile one slide into `out/<slide_id>.tiles.zarr`.

    Args:
        job: the slide.
        out: folder of stores; made when missing.
        request: what tiles to make.
        existing: what to do about a finished store of that name.
        threads: threads that read, decode and write; all cores when not given.
        progress: called with (tiles done, tiles in all).
        tell_room: called with the room that the store will take, before the first tile is read.

    Returns:
        What became of it.

    Raises:
        AnnotationError: if the job's annotation file cannot be read or is malformed.
        SlideOpenError: if the file is no slide.
        SlideReadError: if its pixels are damaged (all of them, where the request skips damage), or the file changes
            meanwhile; nothing is left under the final name.
        ResolutionError: if the mpp is unknown or too coarse.
        TissueError: if no tile holds enough tissue.
        StoreExistsError: if a store is there and may not be touched.
        StoreError: if the output cannot be written.
    """
    out = Path(out)
    start = time.perf_counter()
    request = request or TileRequest()
    job = with_regions(job)
    final = out / f"{job.slide_id}{STORE_SUFFIX}"
    with open_slide(job.path, reader=request.reader) as reader:
        state = file_state(job.path)
        digest = request_digest(request, job, fingerprint(job.path))
        kept = kept_store(final, existing, digest)
        if kept is not None:
            _refuse_lacking(kept, request)
            remove_leftovers(final)
            return summarise(kept, "skipped", reader.name, start, 0)
        survey = survey_slide(reader, job, request)
        room = estimate_room(survey, request)
        if tell_room is not None:
            tell_room(room)
        refuse_full_disk(out, room)
        while True:
            try:
                store, n_bytes = _make_store(
                    final,
                    job,
                    request,
                    reader,
                    survey,
                    state,
                    existing=existing,
                    digest=digest,
                    threads=threads or usable_cores(),
                    progress=progress,
                )
            except _TilesDamagedError as found:  # a store has no gaps, so that it is made anew without them
                survey = survey.without(found.places)
                if not len(survey.cells.row):
                    raise SlideReadError(
                        f"slide '{job.path}': none of its {len(survey.damaged)} tissue tiles can be read; copy the file again"
                    ) from found
                continue
            return summarise(store, "ok" if n_bytes else "skipped", reader.name, start, n_bytes)


class _TilesDamagedError(SlideReadError):
    """Some tiles cannot be read.

    Args:
        places: of the tiles, in storage order.
    """

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__(f"{len(places)} tiles cannot be read")
        self.places = places


def _make_store(
    final: Path,
    job: SlideJob,
    request: TileRequest,
    reader: SlideReader,
    survey: Survey,
    state: FileState,
    *,
    existing: Existing,
    digest: str,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[TileStore, int]:
    """Write the store; return it and the bytes written, 0 where another run has finished it since.

    Raises:
        _TilesDamagedError: if the request skips damage and there is some.
    """
    codec = JpegCodec(None) if survey.native else make_codec(request.codec, jpeg_quality=request.jpeg_quality)
    size_px, context_mpp = survey.plan.size_px, request.tiling.context_mpp
    room = estimate_room(survey, request).chosen
    with StoreWriter(final, size_px=size_px, codec=codec, context_mpp=context_mpp, room=room) as writer:
        kept = kept_store(final, existing, digest)
        if kept is not None:
            return kept, 0
        feed = _make_feed(reader, survey, request, writer, job.path.name)
        regions = survey.tissue.polygons()
        with ThreadPoolExecutor(1, thread_name_prefix="overview") as aside:
            overview = aside.submit(_write_overview, writer, survey, regions)
            streamed = stream_tiles(
                feed,
                len(survey.cells.row),
                writer,
                quality=request.quality,
                threads=threads,
                skip_damage=request.on_damage == "skip",
                progress=progress,
            )
            overview.result()
        refuse_changed(job.path, state)
        if streamed.damaged:
            raise _TilesDamagedError(streamed.damaged)
        if not (streamed.reasons == 0).any():
            raise TissueError(
                f"slide '{job.path}': all {len(streamed.reasons)} tissue tiles miss the quality limits; loosen them"
            )
        with ThreadPoolExecutor(1, thread_name_prefix="picture") as aside:
            picture = aside.submit(tiling_picture, survey, regions, streamed)
            store = writer.finish(
                _contents(job, request, reader, survey, regions, streamed, digest),
                before_rename=lambda: write_picture(final, picture.result()),
            )
    return store, writer.bytes_written


def usable_cores() -> int:
    """Return how many processors this process may use, which on a shared machine are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kept_store(final: Path, existing: Existing, digest: str) -> TileStore | None:
    """Return the finished store of the same request, None where tiles are to be made.

    Raises:
        StoreExistsError: if a store is there and may not be touched.
        StoreMismatchError: if it is of another request.
        UnreachableError: if what is there is out of reach.
    """
    if not exists(final) or existing == "replace":
        return None
    if existing == "error":
        raise StoreExistsError(f"store '{final}': exists already; pass --existing skip or --existing replace")
    store = TileStore(final)
    if store.attributes["tiling"].get("request") != digest:
        raise StoreMismatchError(
            f"store '{final}': was made from another slide or with other settings; pass --existing replace"
        )
    return store


def _refuse_lacking(store: TileStore, request: TileRequest) -> None:
    """Refuse a store that lacks damaged tiles where these are to be an error."""
    n_damaged = len(store.attributes["tiling"].get("damaged", {}).get("tiles", ()))
    if n_damaged and request.on_damage == "error":
        raise StoreExistsError(
            f"store '{store.path}': lacks {n_damaged} tiles that could not be read; pass --on-damage skip to keep it, or "
            "--existing replace"
        )


def _make_feed(
    reader: SlideReader, survey: Survey, request: TileRequest, writer: StoreWriter, slide_name: str
) -> TileFeed:
    plan, cells = survey.plan, survey.cells
    if survey.native is not None:
        scored = request.quality.filters
        return CopiedTiles(survey.native, cells.row, cells.col, writer, scored, survey.fold_limit)
    centres: npt.NDArray[np.float64] = plan.base_xy(cells.row, cells.col).astype(np.float64) + plan.base_size / 2
    context = {}
    for mpp in request.tiling.context_mpp:
        other = plan_context(reader.info, survey.mpp, request.tiling, mpp, slide_name=slide_name)
        context[context_name(mpp)] = (other, centred_level_xy(other, centres))
    return PixelTiles(reader, plan, plan.level_xy(cells.row, cells.col), writer, survey.fold_limit, context)


def _contents(
    job: SlideJob,
    request: TileRequest,
    reader: SlideReader,
    survey: Survey,
    regions: Sequence[shapely.MultiPolygon],
    streamed: Streamed,
    digest: str,
) -> StoreContents:
    plan = survey.plan
    kept = streamed.reasons == 0
    cells = survey.cells.at(kept)
    base_xy = plan.base_xy(cells.row, cells.col)
    return StoreContents(
        slide=slide_record(job, reader, survey),
        tiling=tiling_record(request, reader, survey, streamed, digest, labelled=job.regions is not None),
        tissue=request.tissue.describe(),
        base_xy=base_xy,
        row=cells.row,
        col=cells.col,
        tissue_id=cells.region,
        tissue_fraction=cells.fraction,
        columns={name: values[kept] for name, values in streamed.scores.items()},
        thumbnail=survey.overview.pixels,
        thumbnail_downsample=survey.overview.downsample,
        tissue_mask=survey.tissue.regions,
        regions=regions,
        label=tile_labels(job, request.labels, base_xy, plan.base_size, reader.info),
    )


def _write_overview(writer: StoreWriter, survey: Survey, regions: Sequence[shapely.MultiPolygon]) -> None:
    overview = survey.overview
    um_per_px = survey.mpp * overview.downsample
    writer.write_overview(overview.pixels, survey.tissue.regions, regions, um_per_px=um_per_px)


def tile_labels(
    job: SlideJob, spec: LabelSpec, base_xy: npt.NDArray[np.int64], base_size: float, info: SlideInfo
) -> Categorical | None:
    """Return the classes that the slide's annotations give its tiles; None where it has none."""
    if job.regions is None:
        return None
    if info.scanned_xy != (0, 0):
        log.warning(
            "slide '%s': what was scanned begins at x %d, y %d; outlines drawn in QuPath lie that far off, unless the slide was "
            "added to its project with --no-crop",
            job.path.name,
            *info.scanned_xy,
        )
    return label_tiles(job.regions, base_xy, base_size, min_cover=spec.min_cover, background=spec.background)


def summarise(
    store: TileStore, status: Literal["ok", "skipped"], reader: str, start: float, n_bytes: int
) -> TilingSummary:
    """Return what became of a slide whose tiling began at `start`, by the performance counter."""
    labels = store.labels()
    tiling: dict[str, Any] = store.attributes["tiling"]
    return TilingSummary(
        slide_id=store.slide_id,
        status=status,
        n_tiles=len(store),
        n_lattice=int(tiling["n_rows"]) * int(tiling["n_cols"]),
        n_labelled=0 if labels is None else int((np.asarray(labels.codes) >= 0).sum()),
        mpp=store.mpp,
        reader=reader,
        seconds=time.perf_counter() - start,
        n_bytes=n_bytes,
    )
