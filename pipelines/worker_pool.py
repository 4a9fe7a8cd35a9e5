"""Several slide workers at a time: slides go to those that are free, and who hangs or dies is replaced."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, NamedTuple, Self, cast

from simtriplet.pipelines.slide_worker import SlideTask, SlideWorker
from simtriplet.wsi.tile_request import SlideJob

__all__ = ["Lost", "WorkerPool"]

_STOP_S = 4.0
"""For all workers together to end after an interruption."""


class Lost(NamedTuple):
    """In place of a result: the worker hung or died.

    Attributes:
        reason: in one line.
    """

    reason: str


class WorkerPool:
    """Workers that outlive one slide; use as a context manager.

    Args:
        start: starts one, SlideWorker.forked or SlideWorker.started.
        n_workers: at most so many for one run.
    """

    def __init__(self, start: Callable[[], SlideWorker], n_workers: int = 1) -> None:
        self._start, self._n_workers = start, n_workers
        self._idle: list[SlideWorker] = []  # pop and append are atomic: threads of one process share a pool

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _stop(self._idle)

    def run(
        self,
        task: SlideTask,
        jobs: Sequence[SlideJob],
        *,
        timeout_s: float | None,
        hear: Callable[[SlideJob, Any], None] | None = None,
    ) -> Iterator[tuple[SlideJob, Any]]:
        """Do one thing with each slide and yield (job, result) as they come; a result is `Lost` where there is none.

        Args:
            task: what to do.
            jobs: the slides.
            timeout_s: longest time for one slide; None waits for ever.
            hear: called with (job, news) that a task sends while it works.
        """
        waiting = deque(jobs)
        busy: dict[Connection, SlideWorker] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self._n_workers:
                    worker = self._begin(task, waiting.popleft(), timeout_s)
                    busy[worker.connection] = worker
                for worker in _ready(busy):
                    job = worker.job
                    assert job is not None
                    kind, value = _receive(worker)
                    if kind == "news":
                        if hear is not None:
                            hear(job, value)
                        continue
                    del busy[worker.connection]
                    if kind == "done":
                        self._idle.append(worker)
                    yield job, value
                for worker in [one for one in busy.values() if time.monotonic() >= one.deadline]:
                    del busy[worker.connection]
                    worker.kill()
                    assert worker.job is not None
                    yield worker.job, _too_slow(worker.job, timeout_s)
        finally:
            _stop(list(busy.values()))

    def _begin(self, task: SlideTask, job: SlideJob, timeout_s: float | None) -> SlideWorker:
        while self._idle:
            worker = self._idle.pop()
            try:
                worker.begin(task, job, timeout_s=timeout_s)
            except OSError:  # it was killed while it had nothing to do
                worker.kill()
                continue
            return worker
        worker = self._start()
        worker.begin(task, job, timeout_s=timeout_s)
        return worker


def _ready(busy: dict[Connection, SlideWorker]) -> list[SlideWorker]:
    """Wait for news, an end, or the first moment when time is up."""
    seconds = min(worker.deadline for worker in busy.values()) - time.monotonic()
    found = wait(list(busy), None if seconds == float("inf") else max(0.0, seconds))
    return [busy[cast(Connection, connection)] for connection in found]


def _receive(worker: SlideWorker) -> tuple[str, Any]:
    """Return ("news", value), ("done", result), or ("lost", Lost) where the pipe has ended."""
    try:
        kind, value = worker.connection.recv()
    except (EOFError, OSError):
        how = worker.how_it_died()
        worker.connection.close()
        assert worker.job is not None
        return "lost", Lost(f"slide '{worker.job.path.name}': {how}; try another --reader, or leave the slide out")
    return kind, value


def _too_slow(job: SlideJob, timeout_s: float | None) -> Lost:
    return Lost(
        f"slide '{job.path.name}': took longer than {timeout_s:g} s; check the file and its disk, or raise --slide-timeout"
    )


def _stop(workers: Sequence[SlideWorker]) -> None:
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.ask_to_end()
    deadline = time.monotonic() + _STOP_S
    for worker in workers:
        worker.await_end(deadline)
