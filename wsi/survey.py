"""A slide looked at before it is tiled: its plan, its tissue, the tiles chosen, and how much room they take."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.disk_room import gigabytes
from simtriplet.wsi.errors import ResolutionError, SimTripletError, StoreError, TissueError
from simtriplet.wsi.geometry import TilePlan, TilingSpec, morton_order, plan_tiles
from simtriplet.wsi.native_grid import NativeTiles, native_spec, native_tiles
from simtriplet.wsi.overview import Overview, read_overview
from simtriplet.wsi.quality import find_fold_limit
from simtriplet.wsi.slide import SlideReader, open_slide, slide_mpp, warn_of_other_mpp
from simtriplet.wsi.tile_request import SlideJob, TileRequest
from simtriplet.wsi.tissue import TissueMap, overview_um_per_px
from simtriplet.wsi.tissue_source import find_tissue

__all__ = [
    "Cells",
    "Room",
    "Survey",
    "estimate_batch",
    "estimate_room",
    "gigabytes",
    "refuse_full_disk",
    "room_of_slide",
    "survey_slide",
]

_SHARE_OF_RAW = {"none": 1.0, "zstd": 0.95, "jpeg": 1 / 9}
"""Size of the encoded pixels against raw ones, measured on H&E (zstd 0.88 to 0.98, JPEG of quality 90 0.086 to 0.114)."""

_COARSE_UM_PER_PX, _MIN_COARSE_PX = 32.0, 256
"""To estimate the room, large slides are looked at from farther away: six times as fast, tile counts within 1 %."""

_OVERHEAD_BYTES = 2 << 20
"""Thumbnail, table and tissue of one store, generously."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Chosen lattice cells in storage order; all arrays (n,).

    Attributes:
        row: lattice row.
        col: lattice column.
        region: tissue region.
        fraction: share of the tile covered by tissue.
    """

    row: npt.NDArray[np.int64]
    col: npt.NDArray[np.int64]
    region: npt.NDArray[np.int32]
    fraction: npt.NDArray[np.float64]

    def at(self, places: npt.NDArray[Any]) -> "Cells":
        """Return some of the cells, by place or mask."""
        return Cells(self.row[places], self.col[places], self.region[places], self.fraction[places])


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of a slide before any tile is read.

    Attributes:
        mpp: micrometres per level-0 pixel.
        plan: the lattice.
        native: the slide's own tiles, when these are to be copied.
        overview: the slide at low resolution.
        tissue: its regions.
        cells: the tiles to read, in (region, Morton) order.
        bare: (m, 2) int64 lattice (row, col) of tiles with some tissue, but too little.
        beyond: (b, 2) int64 lattice (row, col) of tiles with enough tissue that reach over the slide's edge.
        fold_limit: for the quality scores.
        damaged: (d, 2) int64 lattice (row, col) of tiles that were found not to be readable.
    """

    mpp: float
    plan: TilePlan
    native: NativeTiles | None
    overview: Overview
    tissue: TissueMap
    cells: Cells
    bare: npt.NDArray[np.int64]
    beyond: npt.NDArray[np.int64]
    fold_limit: float
    damaged: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))

    def without(self, damaged: Sequence[int]) -> "Survey":
        """Return the survey without some of the tiles to read, by place, which are noted as damaged."""
        left = np.ones(len(self.cells.row), bool)
        left[list(damaged)] = False
        lost = self.cells.at(~left)
        noted = np.concatenate([self.damaged, np.column_stack([lost.row, lost.col]).astype(np.int64)])
        return replace(self, cells=self.cells.at(left), damaged=noted)


class Room(NamedTuple):
    """Bytes that a store will take.

    Attributes:
        chosen: with the codec asked for.
        jpeg: with codec jpeg.
    """

    chosen: int
    jpeg: int


def survey_slide(reader: SlideReader, job: SlideJob, request: TileRequest, *, um_per_px: float | None = None) -> Survey:
    """Look at a slide: resolution, lattice, tissue, tiles.

    Args:
        reader: the slide.
        job: what is known of it.
        request: what tiles to make.
        um_per_px: resolution at which tissue is looked for; picked by the sizes of slide and tiles when not given.

    Raises:
        ResolutionError: if the mpp is unknown or too coarse.
        SettingsError: if native tiles are asked for and cannot be copied.
        TissueError: if no tile holds enough tissue.
        SlideReadError: if the slide is damaged, unless the request skips that.
    """
    mpp = slide_mpp(reader, job.slide_mpp)
    warn_of_other_mpp(reader, mpp)
    spec, native = request.tiling, None
    if request.grid == "native":
        level = _native_level(reader, mpp, spec)
        native = native_tiles(reader, level)
        spec = native_spec(spec, level, native.size_px)
    plan = plan_tiles(reader.info, mpp, spec, slide_name=job.path.name)
    um_per_px = um_per_px or overview_um_per_px(max(reader.info.width, reader.info.height) * mpp, plan.base_size * mpp)
    overview = read_overview(reader, downsample=um_per_px / mpp, skip_damage=request.on_damage == "skip")
    tissue = find_tissue(overview, request.tissue, slide_mpp=mpp, slide_id=job.slide_id)
    cells, bare = _choose_cells(plan, tissue, spec.min_tissue, job)
    beyond = _beyond_edge(plan, plan_tiles(reader.info, mpp, replace(spec, edge="pad"), slide_name=""), tissue, spec)
    fold_limit = find_fold_limit(overview.pixels, tissue.regions > 0)
    return Survey(mpp, plan, native, overview, tissue, cells, bare, beyond, fold_limit)


def _beyond_edge(plan: TilePlan, padded: TilePlan, tissue: TissueMap, spec: TilingSpec) -> npt.NDArray[np.int64]:
    """Return (b, 2) lattice (row, col): the tiles that `edge="pad"` would keep and this plan does not have."""
    row, col = (axis.ravel() for axis in np.mgrid[0 : padded.n_rows, 0 : padded.n_cols])
    outside = (row >= plan.n_rows) | (col >= plan.n_cols)
    row, col = row[outside], col[outside]
    fraction = tissue.coverage(padded.base_xy(row, col), padded.base_size)
    kept = (fraction >= spec.min_tissue) & (fraction > 0)
    return np.column_stack([row[kept], col[kept]]).astype(np.int64)


def _native_level(reader: SlideReader, mpp: float, spec: TilingSpec) -> int:
    if spec.level is not None:
        return spec.level
    scales = [mpp * downsample for downsample in reader.info.level_downsamples]
    for level, scale in enumerate(scales):
        if abs(spec.mpp / scale - 1) <= spec.mpp_tolerance:
            return level
    known = ", ".join(f"{level}: {scale:.4g}" for level, scale in enumerate(scales))
    raise ResolutionError(
        f"slide '{reader.path}': no level has {spec.mpp:g} um per pixel, and native tiles are not resampled; "
        f"pass --level (level: um per pixel are {known}) or use --grid mpp"
    )


def _choose_cells(
    plan: TilePlan, tissue: TissueMap, min_tissue: float, job: SlideJob
) -> tuple[Cells, npt.NDArray[np.int64]]:
    """Take the lattice cells with enough tissue, in (region, Morton) order; and those with too little."""
    if tissue.n_regions == 0:
        raise TissueError(f"slide '{job.path}': no tissue was found; check the slide, or pass --tissue all")
    row, col = (axis.ravel() for axis in np.mgrid[0 : plan.n_rows, 0 : plan.n_cols])
    if not len(row):
        raise TissueError(
            f"slide '{job.path}': is smaller than one tile of {plan.size_px} px at {plan.mpp:g} um per pixel; "
            "lower --size, or pass --edge pad"
        )
    base_xy = plan.base_xy(row, col)
    fraction = tissue.coverage(base_xy, plan.base_size)
    touched = fraction > 0
    enough = np.flatnonzero((fraction >= min_tissue) & touched)
    if not len(enough):
        raise TissueError(
            f"slide '{job.path}': none of {len(row)} tile positions holds {min_tissue:.0%} tissue; lower --min-tissue or --size"
        )
    region = tissue.region_of(base_xy[enough], plan.base_size)
    few = np.flatnonzero((fraction < min_tissue) & touched)
    bare = np.column_stack([row[few], col[few]]).astype(np.int64)
    row, col = row[enough], col[enough]
    order = np.lexsort((morton_order(row, col), region))
    return Cells(row[order], col[order], region[order], fraction[enough][order]), bare


def estimate_room(survey: Survey, request: TileRequest) -> Room:
    """Estimate the bytes of a store, with the codec asked for and with jpeg."""
    arrays = 1 + len(request.tiling.context_mpp)
    raw = len(survey.cells.row) * survey.plan.size_px**2 * 3 * arrays
    share = _SHARE_OF_RAW["jpeg" if request.grid == "native" else request.codec]
    return Room(int(raw * share) + _OVERHEAD_BYTES, int(raw * _SHARE_OF_RAW["jpeg"]) + _OVERHEAD_BYTES)


def estimate_batch(
    jobs: Sequence[SlideJob],
    request: TileRequest,
    *,
    sample: int = 4,
    look: Callable[[Sequence[SlideJob]], Iterable[Room]] | None = None,
) -> Room:
    """Estimate the bytes of a batch from a few of its slides, evenly picked; slides that cannot be tiled count nothing.

    Args:
        jobs: the slides.
        request: what tiles to make.
        sample: how many are looked at.
        look: applies `room_of_slide` to the picked slides, for callers that do it in other processes.
    """
    picked = [jobs[place] for place in np.unique(np.linspace(0, len(jobs) - 1, min(sample, len(jobs))).astype(int))]
    rooms = list(look(picked)) if look is not None else [room_of_slide(job, request) for job in picked]
    factor = len(jobs) / len(picked)
    return Room(int(sum(room.chosen for room in rooms) * factor), int(sum(room.jpeg for room in rooms) * factor))


def room_of_slide(job: SlideJob, request: TileRequest) -> Room:
    """Estimate the bytes of one slide's store; none where it cannot be tiled."""
    try:
        with open_slide(job.path, reader=request.reader) as reader:
            um = max(reader.info.width, reader.info.height) * slide_mpp(reader, job.slide_mpp)
            um_per_px = _COARSE_UM_PER_PX if um >= _COARSE_UM_PER_PX * _MIN_COARSE_PX else None
            return estimate_room(survey_slide(reader, job, request, um_per_px=um_per_px), request)
    except SimTripletError:
        return Room(0, 0)  # the slide's own turn will tell why


def refuse_full_disk(out: Path, room: Room) -> None:
    """Refuse to begin where the disk has no room.

    Args:
        out: folder of the stores; it or a folder above it exists.
        room: what they will take.

    Raises:
        StoreError: with what is needed, what jpeg would take, and what is free.
    """
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if room.chosen > free:
        raise StoreError(
            f"output '{out}': needs about {gigabytes(room.chosen)}, {gigabytes(free)} are free; "
            f"--codec jpeg would take about {gigabytes(room.jpeg)}: free space, choose another --out or that codec"
        )
