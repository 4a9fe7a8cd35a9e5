"""Run attempts in forked children with a limit on memory and time, so that a crash or a hang names the attempt that did it.

A module of scripts: the tests run it in processes of their own, which import everything once and fork for every batch.
"""

import logging
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from simtriplet.wsi.errors import SimTripletError

BATCH = 250
SECONDS = 10.0
"""Of a processor; on a machine that is busy with other things an attempt may take twelve times as long."""

MEMORY_BYTES = 3 << 29
"""1.5 GiB more than the process maps before it begins."""


@dataclass
class Report:
    """What came of all attempts.

    Attributes:
        counts: how many ended how.
        failures: what no attempt may do, one line each.
        max_seconds: of a processor, of the slowest.
        peak_bytes: resident memory of the largest child.
    """

    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    max_seconds: float = 0.0
    peak_bytes: int = 0

    def count(self, outcome: str, n: int = 1) -> None:
        self.counts[outcome] = self.counts.get(outcome, 0) + n


def run_contained(
    attempt: Callable[[int], str],
    numbers: Iterable[int],
    *,
    memory_bytes: int = MEMORY_BYTES,
    seconds: float = SECONDS,
    batch: int = BATCH,
) -> Report:
    """Run `attempt(number)` for every number.

    Args:
        attempt: returns its outcome, a word or several to be counted, or "!" and what is wrong; a SimTripletError counts as
            "refused", any other exception, a warning or a word on stderr as a failure.
        numbers: of the attempts.
        memory_bytes: that a child may map beyond what this process maps.
        seconds: of a processor that one attempt may take.
        batch: attempts a child.
    """
    report = Report()
    waiting = iter(numbers)
    again: list[int] = []
    while part := again or list(islice(waiting, batch)):
        done = _fork_batch(attempt, part, report, memory_bytes, seconds)
        again = part[done:]
    return report


def _fork_batch(
    attempt: Callable[[int], str], batch: list[int], report: Report, memory_bytes: int, seconds: float
) -> int:
    """Run a batch in a child until it ends or dies; return how many attempts are settled."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _work(attempt, batch, write_end, memory_bytes, seconds)
    os.close(write_end)
    settled = 0
    with os.fdopen(read_end, encoding="utf-8") as lines:
        for line in lines:
            took, _, outcome = line.rstrip("\n").partition(" ")
            report.max_seconds = max(report.max_seconds, float(took))
            if outcome.startswith("!"):
                report.count("failed")
                report.failures.append(f"{batch[settled]}: {outcome[1:]}")
            else:
                for word in outcome.split():
                    report.count(word)
            settled += 1
    _, status, usage = os.wait4(child, 0)
    report.peak_bytes = max(report.peak_bytes, usage.ru_maxrss * 1024)
    if settled < len(batch):
        report.count("failed")
        how = os.waitstatus_to_exitcode(status)
        name = f"took over {seconds} s" if how in (-signal.SIGALRM, -signal.SIGPROF) else f"died with status {how}"
        report.failures.append(f"{batch[settled]}: {name}")
        settled += 1
    return settled


def _work(attempt: Callable[[int], str], batch: list[int], pipe: int, memory_bytes: int, seconds: float) -> None:
    """Be the child: never return."""
    said = os.memfd_create("stderr")
    os.dup2(said, sys.stderr.fileno())
    os.dup2(said, sys.stdout.fileno())
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_bytes, mapped + memory_bytes))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in batch:
            signal.setitimer(signal.ITIMER_REAL, 12 * seconds)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            start = time.process_time()
            outcome = _outcome(attempt, number)
            took = time.process_time() - start
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.stderr.flush()
            if caught:
                outcome = f"!a warning: {caught.pop().message}"
                caught.clear()
            elif text := _without_openslides_warnings(os.pread(said, 500, 0)):
                outcome = f"!was printed: {text!r}"
            os.ftruncate(said, 0)
            os.lseek(said, 0, os.SEEK_SET)
            os.write(pipe, f"{took:.4f} {' '.join(outcome.split())}\n".encode(errors="replace"))
    os._exit(0)


def _without_openslides_warnings(said: bytes) -> bytes:
    """Leave out what the C library prints of a slide whose levels are in a strange order: nobody can ask it not to."""
    lines = said.splitlines()
    return b"\n".join(line for line in lines if line and b"): OpenSlide-WARNING **: " not in line)


def _outcome(attempt: Callable[[int], str], number: int) -> str:
    try:
        return attempt(number)
    except SimTripletError as error:
        return f"!several lines: {error!r}" if "\n" in str(error) else "refused"
    except BaseException as error:  # whatever it is, it is what the fuzzing looks for
        where: Any = traceback.extract_tb(error.__traceback__)[-3:]
        places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(where))
        return f"!{type(error).__name__}: {str(error)[:300]} ({places})"


def as_the_program_logs() -> None:
    """Silence the libraries that the command line silences, and what this program warns of, such as an mpp far from the file's."""
    logging.getLogger("simtriplet").setLevel(logging.ERROR)
    for name in ("tifffile", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
