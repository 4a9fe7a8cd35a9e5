"""Measure programs: each in a fresh process on given cores, several rounds in turn, medians."""

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 1200


class RunError(Exception):
    """A measured program failed; the message is the last line it said."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of a table.

    Attributes:
        name: as shown.
        kind: "floor", "simtriplet" or "peer".
        command: the program, without the arguments of the job.
        tile_px: side of its tiles.
        skip: why it is not run; empty if it is.
    """

    name: str
    kind: str
    command: tuple[str, ...] = ()
    tile_px: int = 256
    skip: str = ""


@dataclass(slots=True)
class Result:
    """What rounds of one contender gave.

    Attributes:
        contender: what ran.
        tiles: tiles written.
        seconds: of each round.
        peak_mb: largest of the rounds, 10^6 bytes.
        note: what the program said of itself.
        failure: why there is no result; empty if there is.
    """

    contender: Contender
    tiles: int = 0
    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    note: str = ""
    failure: str = ""

    @property
    def median_s(self) -> float:
        """Median of the rounds, seconds."""
        return statistics.median(self.seconds)

    @property
    def tiles_per_s(self) -> float:
        """Tiles over the median time."""
        return self.tiles / self.median_s


def run_program(command: Sequence[str], *, cpus: Sequence[int], log: Path) -> dict[str, str | int | float]:
    """Run a program on the given processors and return the line of JSON that it printed last.

    Args:
        command: the program and its arguments.
        cpus: processors it may use.
        log: receives what it prints.

    Raises:
        RunError: if it fails, takes over twenty minutes or prints no such line.
    """
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w+", encoding="utf-8", errors="replace") as output, _pinned(cpus):
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        status = _wait(program)
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    result = _result_line(said)
    if status != 0 or result is None:
        reason = said[-1].strip() if said else "it said nothing"
        raise RunError(f"exit status {status}: {reason}"[:200])
    return result


def measure(
    results: Sequence[Result], arguments: Sequence[str], *, cpus: Sequence[int], repeat: int, work: Path
) -> Iterator[Result]:
    """Run each contender once a round, so that whatever else the machine does falls on all alike.

    Args:
        results: to fill; those with a failure are left alone.
        arguments: of the job, the same for all; `--out` and an empty folder are added.
        cpus: processors to use.
        repeat: rounds.
        work: folder for what they write, which is removed again, and for their logs.

    Yields:
        A result whenever it has grown by a round or a failure.
    """
    for _ in range(repeat):
        for place, result in enumerate(results):
            if not result.failure:
                _measure_once(result, arguments, cpus, work / f"out-{place}", work / f"{place:02d}.log")
                yield result


def _measure_once(result: Result, arguments: Sequence[str], cpus: Sequence[int], out: Path, log: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    try:
        said = run_program([*result.contender.command, *arguments, "--out", str(out)], cpus=cpus, log=log)
    except RunError as error:
        result.failure = str(error)
        return
    finally:
        shutil.rmtree(out, ignore_errors=True)
    result.tiles = int(said["tiles"])
    result.seconds.append(float(said["seconds"]))
    result.peak_mb = max(result.peak_mb, float(said["peak_mb"]))
    result.note = str(said["note"])


@contextlib.contextmanager
def _pinned(cpus: Sequence[int]) -> Iterator[None]:
    """Hold this process, and so those that it starts, to some processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _wait(program: subprocess.Popen[bytes]) -> int | str:
    """Wait for a program; take its processes along when it hangs or this one is interrupted."""
    try:
        return program.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"none after {TIMEOUT_S} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def _result_line(said: Sequence[str]) -> dict[str, str | int | float] | None:
    for line in reversed(said):
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(line)
            if isinstance(found, dict) and {"tiles", "seconds", "peak_mb", "note"} <= found.keys():
                return found
    return None
