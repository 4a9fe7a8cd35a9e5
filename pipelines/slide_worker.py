"""A process that works on slides one after the other, so that one that hangs or dies takes nothing else with it.

Each is watched by the process that started it: its result, its death and its time come through one pipe.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from typing import Any, Protocol, Self

from simtriplet.pipelines.stop_signals import fall_silent
from simtriplet.wsi.tile_request import SlideJob

__all__ = ["SlideTask", "SlideWorker", "SlowTell", "Tell", "serve"]

Tell = Callable[[Any], None]
"""Sends news, such as progress, to the process that watches."""

_GRACE_S = 5.0
"""For a process that was asked to end, to remove what it has half written."""

_NEWS_INTERVAL_S = 0.1

_PR_SET_PDEATHSIG = 1
_STOPS = (signal.SIGINT, signal.SIGTERM)


class SlowTell:
    """Pass progress on ten times a second at most.

    Args:
        tell: takes (done, total).
    """

    def __init__(self, tell: Tell) -> None:
        self._tell, self._next = tell, 0.0

    def __call__(self, done: int, total: int) -> None:
        """Tell it, unless something was told just now; the end is told always."""
        now = time.monotonic()
        if now >= self._next or done == total:
            self._next = now + _NEWS_INTERVAL_S
            self._tell((done, total))


class SlideTask(Protocol):
    """What to do with each slide; picklable, and so is what it returns."""

    def __call__(self, job: SlideJob, tell: Tell) -> Any:
        """Do it; a failure is a result, not an exception."""


class _Process(Protocol):
    """What a forked and a started process have in common."""

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class SlideWorker:
    """One such process, seen from outside.

    Args:
        process: that serves the other end of the pipe.
        connection: this end.
        wait: waits for its end, at most so many seconds; returns its exit status (a signal's number negative), None while
            it lives.
    """

    def __init__(self, process: _Process, connection: Connection, wait: Callable[[float], int | None]) -> None:
        self.connection = connection
        self.job: SlideJob | None = None
        self.deadline = float("inf")
        self._process, self._wait = process, wait

    @classmethod
    def forked(cls) -> Self:
        """Start one from this process in milliseconds, with all that is imported or registered here."""
        here, there = Pipe()
        process = get_context("fork").Process(target=_serve_forked, args=(here, there, os.getpid()), daemon=True)
        with _holding_stops_back():
            process.start()
        there.close()

        def wait(seconds: float) -> int | None:
            process.join(seconds)
            return process.exitcode

        return cls(process, here, wait)

    @classmethod
    def started(cls) -> Self:
        """Start one afresh, in about a second: for processes with threads, as Dask's workers are, forking is not safe."""
        here, there = Pipe()
        number = there.fileno()
        command = [sys.executable, "-m", "simtriplet.pipelines.slide_worker", str(number), str(os.getpid())]
        process = subprocess.Popen(command, pass_fds=[number], stdin=subprocess.DEVNULL)
        there.close()

        def wait(seconds: float) -> int | None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            return process.returncode

        return cls(process, here, wait)

    def begin(self, task: SlideTask, job: SlideJob, *, timeout_s: float | None) -> None:
        """Give it a slide.

        Raises:
            OSError: if it has died since its last slide.
        """
        self.connection.send((task, job))
        self.job = job
        self.deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s

    def how_it_died(self) -> str:
        """Say it in words, once the pipe has ended."""
        status = self._wait(_GRACE_S)
        if status is None:
            self.kill()
            return "the process that read it closed its pipe"
        if status >= 0:
            return f"the process that read it died (exit status {status})"
        name = signal.Signals(-status).name if -status in set(signal.Signals) else "unknown"
        hint = ", perhaps for lack of memory" if -status == signal.SIGKILL else ""
        return f"the process that read it died (signal {-status}, {name}{hint})"

    def kill(self) -> None:
        """End it at once; one that hangs in the kernel, on a lost network disk, is left behind."""
        self._process.kill()
        self._wait(_GRACE_S)
        self.connection.close()

    def ask_to_end(self) -> None:
        """Let it remove what it has half written, and end."""
        self._process.terminate()

    def await_end(self, deadline: float) -> None:
        """Wait for the end, until a moment of time.monotonic(); then kill it."""
        if self._wait(max(0.0, deadline - time.monotonic())) is None:
            self._process.kill()
            self._wait(_GRACE_S)
        self.connection.close()


@contextlib.contextmanager
def _holding_stops_back() -> Iterator[None]:
    """Let a stop signal count after a fork: Python throws away what its handler raises in the functions that run around one.

    The mask holds it back from this thread, and in the child until that heeds it; the handlers note it where the system gave it
    to one of the threads of a library. While they are put up and taken down they pass it on, so that what it raises there
    leaves nothing behind that would keep the next one back.
    """
    noted: list[int] = []
    holds = False

    def hear(number: int, _: object) -> None:
        if holds:
            noted.append(number)
        else:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    before = _heeded_stops()
    for number in before:
        signal.signal(number, hear)
    holds = True
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        holds = False
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])


def _heeded_stops() -> dict[int, Any]:
    """Return the handlers of the stop signals that are not ignored; none in a thread that may not change them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for number in _STOPS}
    return {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}


def serve(connection: Connection, parent: int) -> None:
    """Work on slides until the pipe ends.

    Args:
        connection: gives (task, job), takes ("news", value) and ("done", result).
        parent: process id of who watches; when it dies, however, this process does.
    """
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; who watches asks this one to end
    signal.signal(signal.SIGTERM, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)  # which who forked it held back
    while True:
        try:
            task, job = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("done", task(job, lambda value: connection.send(("news", value)))))
        except BrokenPipeError:  # who watched was interrupted
            return


def _serve_forked(theirs: Connection, connection: Connection, parent: int) -> None:
    theirs.close()
    serve(connection, parent)


def _end(*_: object) -> None:
    fall_silent()
    raise SystemExit(128 + signal.SIGTERM)


def _die_with(parent: int) -> None:
    """Ask Linux to kill this process with its parent, which may be killed without a chance to say so."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
