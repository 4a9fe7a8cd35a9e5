"""Tile one slide: find tissue, choose the tiles, read them once, and leave a finished store."""

import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from simtriplet.wsi.annotation import NamedRegion, label_tiles
from simtriplet.wsi.codec import CodecName, make_codec
from simtriplet.wsi.errors import SettingsError, StoreExistsError, TissueError
from simtriplet.wsi.geometry import TilePlan, TilingSpec, morton_order, plan_tiles
from simtriplet.wsi.images import TILES_PER_SHARD
from simtriplet.wsi.overview import Overview, read_overview
from simtriplet.wsi.slide import Pixels, SlideReader, open_slide, slide_mpp
from simtriplet.wsi.store import STORE_SUFFIX, TileStore
from simtriplet.wsi.store_writer import StoreContents, StoreWriter
from simtriplet.wsi.table import Categorical
from simtriplet.wsi.tissue import OVERVIEW_UM_PER_PX, TissueMap, TissueSpec, map_tissue

__all__ = ["Existing", "LabelSpec", "SlideJob", "TileRequest", "TilingSummary", "slide_id_of", "tile_slide"]

Existing = Literal["skip", "replace", "error"]
_SAFE_ID = re.compile(r"[\w][\w .()+-]*")
_FINGERPRINT_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class LabelSpec:
    """How annotations become tile labels.

    Attributes:
        min_cover: least share of a tile that its class must cover.
        background: class of annotated slides' tiles outside all regions; None leaves them unlabelled.
    """

    min_cover: float = 0.5
    background: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.min_cover <= 1:
            raise SettingsError(f"min_cover {self.min_cover}: must lie above 0 and up to 1; pass --min-label-cover 0.5")


@dataclass(frozen=True, slots=True)
class TileRequest:
    """Everything that shapes a store, the same for all slides of a batch."""

    tiling: TilingSpec = field(default_factory=TilingSpec)
    tissue: TissueSpec = field(default_factory=TissueSpec)
    labels: LabelSpec = field(default_factory=LabelSpec)
    codec: CodecName = "none"
    jpeg_quality: int = 90
    reader: str = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.jpeg_quality <= 100:
            raise SettingsError(f"jpeg_quality {self.jpeg_quality}: must lie in 1..100; correct it")


@dataclass(frozen=True, slots=True)
class SlideJob:
    """One slide of a batch.

    Attributes:
        path: the slide file.
        slide_id: unique name; the store is called after it.
        patient_id: None where it is not known.
        slide_mpp: micrometres per level-0 pixel, where the file is wrong or silent.
        regions: annotations, None where there are none.
    """

    path: Path
    slide_id: str
    patient_id: str | None = None
    slide_mpp: float | None = None
    regions: tuple[NamedRegion, ...] | None = None

    def __post_init__(self) -> None:
        if not _SAFE_ID.fullmatch(self.slide_id) or len(self.slide_id.encode()) > 200:
            raise SettingsError(
                f"slide id {self.slide_id!r}: must be letters, digits, blanks and ._()+- and start with a letter or digit; "
                "give it another id in a manifest"
            )


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


def slide_id_of(path: Path) -> str:
    """Return the slide's id when no manifest gives one: the file name without its last suffix."""
    return path.stem


def tile_slide(
    job: SlideJob,
    out: Path,
    request: TileRequest | None = None,
    *,
    existing: Existing = "error",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TilingSummary:
    """Tile one slide into `out/<slide_id>.tiles.zarr`.

    Args:
        job: the slide.
        out: folder of stores; made when missing.
        request: what tiles to make.
        existing: what to do about a finished store of that name.
        threads: threads that read, decode and write; all cores when not given.
        progress: called with (tiles done, tiles in all).

    Returns:
        What became of it.

    Raises:
        SlideOpenError: if the file is no slide.
        SlideReadError: if its pixels are damaged; nothing is left under the final name.
        ResolutionError: if the mpp is unknown or too coarse.
        TissueError: if no tile holds enough tissue.
        StoreExistsError: if a store is there and may not be touched.
        StoreError: if the output cannot be written.
    """
    start = time.perf_counter()
    request = request or TileRequest()
    final = out / f"{job.slide_id}{STORE_SUFFIX}"
    with open_slide(job.path, reader=request.reader) as reader:
        digest = _request_digest(request, job, fingerprint(job.path))
        kept = _kept_store(final, existing, digest)
        if kept is not None:
            return _summary(kept, "skipped", reader.name, start, 0)
        mpp = slide_mpp(reader, job.slide_mpp)
        plan = plan_tiles(reader.info, mpp, request.tiling, slide_name=job.path.name)
        overview = read_overview(reader, downsample=OVERVIEW_UM_PER_PX / mpp)
        tissue = map_tissue(overview, request.tissue, slide_mpp=mpp)
        cells = _choose_cells(plan, tissue, request.tiling.min_tissue, job)
        with StoreWriter(
            final, size_px=plan.size_px, codec=make_codec(request.codec, jpeg_quality=request.jpeg_quality)
        ) as writer:
            _write_pixels(reader, plan, cells, writer, threads or os.cpu_count() or 1, progress)
            contents = _contents(job, request, reader, plan, overview, tissue, cells, mpp, digest)
            store = writer.finish(contents)
            return _summary(store, "ok", reader.name, start, writer.bytes_written)


@dataclass(frozen=True, slots=True)
class _Cells:
    """The chosen tiles in storage order; all arrays (n,)."""

    row: npt.NDArray[np.int64]
    col: npt.NDArray[np.int64]
    region: npt.NDArray[np.int32]
    fraction: npt.NDArray[np.float64]


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


def _request_digest(request: TileRequest, job: SlideJob, slide: str) -> str:
    regions = [(region.name, region.area.wkt) for region in job.regions or ()]
    parts = [dataclasses.asdict(request), slide, job.slide_mpp, job.patient_id, regions, job.regions is None]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _kept_store(final: Path, existing: Existing, digest: str) -> TileStore | None:
    if not final.exists() or existing == "replace":
        return None
    if existing == "error":
        raise StoreExistsError(f"store '{final}': exists already; pass --existing skip or --existing replace")
    store = TileStore(final)
    if store.attributes["tiling"].get("request") != digest:
        raise StoreExistsError(
            f"store '{final}': was made from another slide or with other settings; pass --existing replace"
        )
    return store


def _choose_cells(plan: TilePlan, tissue: TissueMap, min_tissue: float, job: SlideJob) -> _Cells:
    """Take the lattice cells with enough tissue, in (region, Morton) order."""
    if tissue.n_regions == 0:
        raise TissueError(f"slide '{job.path}': no tissue was found; check the slide, or pass --tissue all")
    row, col = (axis.ravel() for axis in np.mgrid[0 : plan.n_rows, 0 : plan.n_cols])
    base_xy = plan.base_xy(row, col)
    fraction = tissue.coverage(base_xy, plan.base_size)
    enough = np.flatnonzero((fraction >= min_tissue) & (fraction > 0))
    if not len(enough):
        raise TissueError(
            f"slide '{job.path}': none of {len(row)} tile positions holds {min_tissue:.0%} tissue; lower --min-tissue or --size"
        )
    region = tissue.region_of(base_xy[enough], plan.base_size)
    row, col = row[enough], col[enough]
    order = np.lexsort((morton_order(row, col), region))
    return _Cells(row[order], col[order], region[order], fraction[enough][order])


def _write_pixels(
    reader: SlideReader,
    plan: TilePlan,
    cells: _Cells,
    writer: StoreWriter,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    level_xy = plan.level_xy(cells.row, cells.col)
    n_tiles = len(level_xy)

    def write(shard: int) -> int:
        part = level_xy[shard * TILES_PER_SHARD : (shard + 1) * TILES_PER_SHARD]
        windows = reader.read_windows(plan.level, part, (plan.read_px, plan.read_px))
        writer.write_shard(shard, resample(windows, plan))
        return len(part)

    done = 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="tile")
    try:
        for count in pool.map(write, range(-(-n_tiles // TILES_PER_SHARD))):
            done += count
            if progress is not None:
                progress(done, n_tiles)
    finally:
        # on an error or Ctrl-C the shards not yet begun are dropped
        pool.shutdown(wait=True, cancel_futures=True)


def resample(windows: Pixels, plan: TilePlan) -> Sequence[Pixels]:
    """Bring (k, r, r, 3) windows of the level to (s, s, 3) tiles: exact area average, or cubic where finer than the level."""
    if plan.scale == 1:
        return list(windows)
    # OpenCV takes the factor itself (not the ratio of sizes) when no target size is given: output pixel i then
    # averages exactly the interval [i, i + 1) x scale of the window
    factor = 1 / plan.scale
    kind = cv2.INTER_AREA if plan.scale > 1 else cv2.INTER_CUBIC
    tiles = []
    for window in windows:
        tile = cv2.resize(window, None, fx=factor, fy=factor, interpolation=kind)
        tiles.append(np.ascontiguousarray(_cut(tile, plan.size_px)))
    return tiles


def _cut(tile: Pixels, size_px: int) -> Pixels:
    if min(tile.shape[:2]) < size_px:
        missing = ((0, size_px - tile.shape[0]), (0, size_px - tile.shape[1]), (0, 0))
        return np.pad(tile, missing, mode="edge")
    return tile[:size_px, :size_px]


def _contents(
    job: SlideJob,
    request: TileRequest,
    reader: SlideReader,
    plan: TilePlan,
    overview: Overview,
    tissue: TissueMap,
    cells: _Cells,
    mpp: float,
    digest: str,
) -> StoreContents:
    info = reader.info
    base_xy = plan.base_xy(cells.row, cells.col)
    return StoreContents(
        slide={
            "id": job.slide_id,
            "patient_id": job.patient_id,
            "mpp": mpp,
            "mpp_source": "option" if job.slide_mpp is not None else "file",
            "width": info.width,
            "height": info.height,
            "level_downsamples": list(info.level_downsamples),
            "objective_power": info.objective_power,
            "vendor": info.vendor,
            "fingerprint": fingerprint(job.path),
        },
        tiling={
            "mpp": plan.mpp,
            "size_px": plan.size_px,
            "stride_px": plan.stride_px,
            "level": plan.level,
            "scale": plan.scale,
            "n_rows": plan.n_rows,
            "n_cols": plan.n_cols,
            "reader": reader.name,
            "asked": dataclasses.asdict(request.tiling),
            "request": digest,
        },
        tissue=dataclasses.asdict(request.tissue),
        base_xy=base_xy,
        row=cells.row,
        col=cells.col,
        tissue_id=cells.region,
        tissue_fraction=cells.fraction,
        thumbnail=overview.pixels,
        thumbnail_downsample=overview.downsample,
        tissue_mask=tissue.regions,
        regions=tissue.polygons(),
        label=_labels(job, request.labels, base_xy, plan.base_size),
    )


def _labels(job: SlideJob, spec: LabelSpec, base_xy: npt.NDArray[np.int64], base_size: float) -> Categorical | None:
    if job.regions is None:
        return None
    return label_tiles(job.regions, base_xy, base_size, min_cover=spec.min_cover, background=spec.background)


def _summary(
    store: TileStore, status: Literal["ok", "skipped"], reader: str, start: float, n_bytes: int
) -> TilingSummary:
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
