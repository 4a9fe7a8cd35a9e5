"""Tile many slides: one task a slide, in this process or on Dask workers; a slide that fails does not stop the others."""

import csv
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simtriplet.wsi.errors import SettingsError, SimTripletError
from simtriplet.wsi.survey import Room
from simtriplet.wsi.tiling import Existing, SlideJob, TileRequest, TilingSummary, tile_slide, usable_cores

__all__ = ["Outcome", "tile_batch", "write_summary"]

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10
SUMMARY_COLUMNS = ("slide_id", "status", "tiles", "labelled", "mpp", "reader", "seconds", "megabytes", "reason")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one slide: a summary, or the reason of its failure."""

    slide_id: str
    summary: TilingSummary | None
    reason: str = ""

    @property
    def status(self) -> str:
        """One of ok, skipped and failed."""
        return self.summary.status if self.summary is not None else "failed"


def tile_batch(
    jobs: Sequence[SlideJob],
    out: Path,
    request: TileRequest,
    *,
    existing: Existing,
    workers: int = 1,
    scheduler: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    tell_room: Callable[[Room], None] | None = None,
) -> Iterator[Outcome]:
    """Tile slides and yield each outcome as it comes.

    Args:
        jobs: the slides.
        out: folder of stores.
        request: what tiles to make.
        existing: what to do about finished stores.
        workers: processes on this machine; the cores are shared out among them as threads.
        scheduler: address of a running Dask scheduler, instead of workers here.
        progress: called with (slide id, tiles done, tiles in all); only when one process works.
        tell_room: called with the room that each store will take; only when one process works.
    """
    if scheduler is None and (workers <= 1 or len(jobs) <= 1):
        for job in jobs:
            yield _tile_one(job, out, request, existing, None, progress, tell_room)
        return
    yield from _tile_on_dask(jobs, out, request, existing, workers, scheduler)


def _tile_on_dask(
    jobs: Sequence[SlideJob], out: Path, request: TileRequest, existing: Existing, workers: int, scheduler: str | None
) -> Iterator[Outcome]:
    import dask

    # read when distributed is imported, here and in its workers; a worker's failure is told by the outcome it leads to
    dask.config.set({"logging": {"distributed": "critical", "distributed.client": "critical", "bokeh": "critical"}})
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")  # a worker process reads this before anything else
    import distributed

    threads = max(1, usable_cores() // max(1, workers)) if scheduler is None else None
    cluster: Any = scheduler
    if scheduler is None:
        cluster = distributed.LocalCluster(
            n_workers=min(workers, len(jobs)), threads_per_worker=1, dashboard_address=None, memory_limit=0
        )
    try:
        with _connect(cluster) as client:
            futures = {
                client.submit(_tile_one, job, out, request, existing, threads, None, None, pure=False, retries=0): job
                for job in jobs
            }
            for future in distributed.as_completed(futures, loop=client.loop):
                job = futures[future]
                try:
                    yield future.result()
                except Exception as error:  # a worker that died: recorded, so that the others go on
                    log.debug("slide %s", job.slide_id, exc_info=True)
                    yield Outcome(job.slide_id, None, f"the worker failed: {type(error).__name__}: {error}")
    finally:
        if scheduler is None:
            cluster.close()


def _connect(cluster: Any) -> Any:
    import distributed

    try:
        return distributed.Client(cluster, set_as_default=False, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"scheduler '{cluster}': cannot be reached ({error}); start one with dask scheduler, or leave --scheduler out"
        ) from error


def _tile_one(
    job: SlideJob,
    out: Path,
    request: TileRequest,
    existing: Existing,
    threads: int | None,
    progress: Callable[[str, int, int], None] | None,
    tell_room: Callable[[Room], None] | None,
) -> Outcome:
    """Tile one slide; the only place where a failure becomes a line of the summary instead of an error."""

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(job.slide_id, done, total)

    try:
        summary = tile_slide(
            job, out, request, existing=existing, threads=threads, progress=report, tell_room=tell_room
        )
        return Outcome(job.slide_id, summary)
    except (SimTripletError, MemoryError) as error:
        # the summary may be passed on: it names the slide, not the folders of this machine
        return Outcome(job.slide_id, None, str(error).replace(f"{job.path.parent}/", "") or type(error).__name__)


def write_summary(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write the run summary as CSV, one row a slide."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(SUMMARY_COLUMNS)
        writer.writerows(_row(outcome) for outcome in sorted(outcomes, key=lambda outcome: outcome.slide_id))
    partial.replace(path)


def _row(outcome: Outcome) -> list[str]:
    summary = outcome.summary
    if summary is None:
        return [outcome.slide_id, "failed", "", "", "", "", "", "", outcome.reason]
    return [
        summary.slide_id,
        summary.status,
        str(summary.n_tiles),
        str(summary.n_labelled),
        f"{summary.mpp:.6g}",
        summary.reader,
        f"{summary.seconds:.2f}",
        f"{summary.n_bytes / 1e6:.1f}",
        "",
    ]
