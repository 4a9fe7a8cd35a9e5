"""Tile many slides, each in a process that is watched; a slide that fails, hangs or kills its process does not stop the others."""

import logging
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from simtriplet.pipelines.slide_worker import SlideWorker, SlowTell, Tell
from simtriplet.pipelines.tile_summary import Outcome
from simtriplet.pipelines.worker_pool import Lost, WorkerPool
from simtriplet.wsi.errors import SettingsError, SimTripletError, StoreMismatchError
from simtriplet.wsi.folder_hold import remove_leftover
from simtriplet.wsi.store import PARTIAL_SUFFIX, STORE_SUFFIX
from simtriplet.wsi.survey import Room, estimate_batch, room_of_slide
from simtriplet.wsi.tiling import Existing, SlideJob, TileRequest, tile_slide, usable_cores

__all__ = ["SLIDE_TIMEOUT_S", "estimate_batch_room", "tile_batch"]

log = logging.getLogger(__name__)

SLIDE_TIMEOUT_S = 3600.0
"""Six thousand tiles take about three seconds on one core; a slide that takes an hour hangs, or its disk does."""

CONNECT_TIMEOUT_S = 10
_ESTIMATE_TIMEOUT_S = 60.0
_QUOTED_PATH = re.compile(r"(?<![^\s(])'[^']*/([^'/]+)/?'")
_DASK_LOST_S = 60
"""How long a cluster may be without any worker."""


@dataclass(frozen=True, slots=True)
class _Tile:
    """The task of tiling a slide; see `tile_batch`."""

    out: Path
    request: TileRequest
    existing: Existing
    threads: int | None
    tells_room: bool
    makes_new: bool = False
    """Whether a store that is there can only be of an earlier try of the same run."""

    def __call__(self, job: SlideJob, tell: Tell) -> Outcome:
        """Tile one slide; the only place where a failure becomes a line of the summary instead of an error."""
        try:
            summary = tile_slide(
                job,
                self.out,
                self.request,
                existing=self.existing,
                threads=self.threads,
                progress=SlowTell(tell),
                tell_room=tell if self.tells_room else None,
            )
            return Outcome(job.slide_id, replace(summary, status="ok") if self.makes_new else summary)
        except (SimTripletError, MemoryError) as error:
            reason = _without_folders(str(error), job) or type(error).__name__
            return Outcome(job.slide_id, None, reason, is_mismatch=isinstance(error, StoreMismatchError))
        except Exception as error:  # a bug, or a reader's: this slide's own failure too
            log.debug("slide %s", job.slide_id, exc_info=True)
            what = _without_folders(" ".join(f"{type(error).__name__}: {error}".split()), job)
            return Outcome(job.slide_id, None, f"slide '{job.path.name}': {what}; report this as a bug")


def _without_folders(reason: str, job: SlideJob) -> str:
    """Name files without their folders: the summary may be passed on, and names no place of this machine."""
    folder = re.compile(rf"(?<![\w./-]){re.escape(str(job.path.parent))}/")
    return _QUOTED_PATH.sub(r"'\1'", folder.sub("", reason))


@dataclass(frozen=True, slots=True)
class _Estimate:
    """The task of estimating how much room a slide's store will take."""

    request: TileRequest

    def __call__(self, job: SlideJob, tell: Tell) -> Room:
        """Look at a slide; one that cannot be tiled takes none."""
        return room_of_slide(job, self.request)


def tile_batch(
    jobs: Sequence[SlideJob],
    out: Path,
    request: TileRequest,
    *,
    existing: Existing,
    workers: int = 1,
    scheduler: str | None = None,
    slide_timeout_s: float | None = SLIDE_TIMEOUT_S,
    progress: Callable[[str, int, int], None] | None = None,
    tell_room: Callable[[Room], None] | None = None,
) -> Generator[Outcome, None, None]:
    """Tile slides and yield each outcome as it comes; close the iterator to stop the work.

    Args:
        jobs: the slides.
        out: folder of stores.
        request: what tiles to make.
        existing: what to do about finished stores.
        workers: processes on this machine; the cores are shared out among them as threads.
        scheduler: address of a running Dask scheduler, instead of workers here.
        slide_timeout_s: a slide that takes longer has failed; None waits for ever.
        progress: called with (slide id, tiles done, tiles in all); not with a scheduler.
        tell_room: called with the room that each store will take; not with a scheduler.
    """
    if scheduler is not None:
        yield from _tile_on_dask(
            jobs, _Tile(out, request, existing, None, tells_room=False), slide_timeout_s, scheduler
        )
        return

    def hear(job: SlideJob, news: Any) -> None:
        if isinstance(news, Room):
            if tell_room is not None:
                tell_room(news)
        elif progress is not None:
            progress(job.slide_id, *news)

    n_workers = max(1, min(workers, len(jobs)))
    threads = max(1, usable_cores() // n_workers) if n_workers > 1 else None
    task = _Tile(out, request, existing, threads, tells_room=tell_room is not None)
    with WorkerPool(SlideWorker.forked, n_workers) as pool:
        for job, result in pool.run(task, jobs, timeout_s=slide_timeout_s, hear=hear):
            yield _outcome(job, out, result)


def _outcome(job: SlideJob, out: Path, result: Any) -> Outcome:
    if isinstance(result, Lost):
        remove_leftover(out / f"{job.slide_id}{STORE_SUFFIX}{PARTIAL_SUFFIX}")
        return Outcome(job.slide_id, None, result.reason)
    assert isinstance(result, Outcome)
    return result


def estimate_batch_room(jobs: Sequence[SlideJob], request: TileRequest) -> Room:
    """Estimate the bytes of a batch from a few of its slides, each looked at in a process that may die or hang."""

    def look(picked: Sequence[SlideJob]) -> list[Room]:
        with WorkerPool(SlideWorker.forked) as pool:
            found = [room for _, room in pool.run(_Estimate(request), picked, timeout_s=_ESTIMATE_TIMEOUT_S)]
        return [room for room in found if isinstance(room, Room)]  # the slide's own turn will tell why there is none

    return estimate_batch(jobs, request, look=look)


def _tile_on_dask(
    jobs: Sequence[SlideJob], task: _Tile, slide_timeout_s: float | None, scheduler: str
) -> Iterator[Outcome]:
    import dask

    # read when distributed is imported, here and in its workers; a worker's failure is told by the outcome it leads to
    dask.config.set({"logging": {"distributed": "critical", "distributed.client": "critical", "bokeh": "critical"}})
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")  # a worker process reads this before anything else
    import distributed

    with _connect(scheduler) as client:
        suspects = []
        for job, future in _futures(client, task, jobs, slide_timeout_s):
            if isinstance(_error_of(future), distributed.scheduler.KilledWorker):
                suspects.append(job)
            else:
                yield _dask_outcome(job, future)
        # a worker that is killed takes the slides along that wait for it; alone each shows whether it was the cause
        for suspect in suspects:
            for job, future in _futures(client, task, [suspect], slide_timeout_s):
                yield _dask_outcome(job, future)


def _futures(
    client: Any, task: _Tile, jobs: Sequence[SlideJob], slide_timeout_s: float | None
) -> Iterator[tuple[SlideJob, Any]]:
    """Yield each slide with its future once that is done; None in its place where scheduler or workers are gone."""
    import distributed

    waiting = {
        client.submit(_tile_on_worker, _not_twice(task, job), job, slide_timeout_s, pure=False, retries=0): job
        for job in jobs
    }
    while waiting:
        try:
            with client.as_current():
                done = distributed.wait(list(waiting), timeout=_DASK_LOST_S, return_when="FIRST_COMPLETED").done
        except (distributed.CancelledError, distributed.client.FuturesCancelledError):  # the scheduler itself is gone
            yield from ((job, None) for job in waiting.values())
            return
        except (TimeoutError, distributed.TimeoutError):
            if not client.scheduler_info(n_workers=-1)["workers"]:
                yield from ((job, None) for job in waiting.values())
                return
            continue
        for future in done:
            yield waiting.pop(future), future


def _not_twice(task: _Tile, job: SlideJob) -> _Tile:
    """Return the task of a slide: one without a store may be given to a second worker, where the first dies when it is done."""
    if task.existing == "error" and not os.path.lexists(task.out / f"{job.slide_id}{STORE_SUFFIX}"):
        return replace(task, existing="skip", makes_new=True)
    return task


def _error_of(future: Any) -> BaseException | None:
    import distributed

    try:
        error: BaseException | None = None if future is None else future.exception()
    except (distributed.CancelledError, OSError) as lost:  # the scheduler, with the result of a slide that is done
        return lost
    return error


def _dask_outcome(job: SlideJob, future: Any) -> Outcome:
    error = _error_of(future)
    if future is None:
        what = "the scheduler is gone, or has no worker left; start it again, or some, and tile with --retry-failed"
    elif error is not None:  # the Dask worker itself died, as often as the scheduler allows
        what = " ".join(f"the worker failed ({type(error).__name__}: {error})".split())
    else:
        outcome = future.result()
        assert isinstance(outcome, Outcome)
        return outcome
    return Outcome(job.slide_id, None, f"slide '{job.path.name}': {what}")


def _tile_on_worker(task: _Tile, job: SlideJob, slide_timeout_s: float | None) -> Outcome:
    """Tile one slide on a Dask worker, in a process of its own: a worker that dies takes what other slides it holds along."""
    ((_, result),) = _spare_workers().run(task, [job], timeout_s=slide_timeout_s)
    return _outcome(job, task.out, result)


@cache
def _spare_workers() -> WorkerPool:
    """Return the pool of this Dask worker, whose processes go from slide to slide and end when it does."""
    return WorkerPool(SlideWorker.started)


def _connect(scheduler: str) -> Any:
    import distributed

    try:
        return distributed.Client(scheduler, set_as_default=False, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"scheduler '{scheduler}': cannot be reached ({error}); start one with dask scheduler, or leave --scheduler out"
        ) from error
