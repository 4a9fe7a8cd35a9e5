"""Tiling on a cluster that exists: a real scheduler and workers in processes of their own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from simtriplet.wsi.store import TileStore, open_stores

Run = Callable[..., "CompletedProcess[str]"]
Failure = Callable[["CompletedProcess[str]"], str]


GONE = "the scheduler is gone, or has no worker left; start it again, or some, and tile with --retry-failed"


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`dask scheduler` and two `dask worker`s on the loopback address; gives the scheduler's address."""
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    local = ["--host", "127.0.0.1"]
    commands = [
        [*dask, "scheduler", *local, "--port", "0", "--no-dashboard", "--scheduler-file", str(file)],
        *[[*dask, "worker", *local, "--nthreads", "1", "--no-dashboard", "--scheduler-file", str(file)]] * 2,
    ]
    processes = [subprocess.Popen(command, **quiet) for command in commands]  # type: ignore[call-overload]
    try:
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        yield json.loads(file.read_text())["address"]
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(timeout=30)


def test_a_running_scheduler_gives_the_same_stores(program: Run, cohort: Path, scheduler: str, tmp_path: Path) -> None:
    tiling = ("--mpp", 1.0, "--size", 64)
    program("tile", cohort, "--out", tmp_path / "here", *tiling)
    ended = program("tile", cohort, "--out", tmp_path / "there", *tiling, "--scheduler", scheduler)
    assert ended.stdout.count("\tok\t") == 4
    for store in open_stores([tmp_path / "here"]):
        other = TileStore(tmp_path / "there" / store.path.name)
        assert np.array_equal(store.numbers("crc32c"), other.numbers("crc32c"))


def test_a_bad_slide_on_the_cluster_does_not_stop_the_others(
    program: Run, failure: Failure, cohort: Path, scheduler: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.svs").write_bytes(b"II*\0 not really")
    arguments = ("tile", cohort, tmp_path / "bad.svs", "--out", tmp_path / "out", "--mpp", 1.0, "--size", 64)
    ended = program(*arguments, "--scheduler", scheduler, status=1)
    assert "1 of 5 slides failed" in failure(ended)
    assert ended.stdout.count("\tok\t") == 4


HASTY = "from simtriplet.pipelines import batch, program; batch._DASK_LOST_S = 1; program.main()"
PATIENT = "from simtriplet.pipelines import program; program.main()"


@pytest.mark.parametrize("program", [HASTY, PATIENT], ids=["no workers", "scheduler killed"])
def test_a_cluster_that_is_gone_is_told_for_each_slide(tmp_path: Path, program: str) -> None:
    """A scheduler alone; workers are waited for a second, for a minute otherwise, and then it is killed."""
    file = tmp_path / "scheduler.json"
    words = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    process = subprocess.Popen([sys.executable, "-m", "dask", *words], **quiet)  # type: ignore[call-overload]
    try:
        wait_for(file)
        for name in "ab":
            (tmp_path / f"{name}.svs").touch()
        address = json.loads(file.read_text())["address"]
        words = ["tile", str(tmp_path), "--out", str(tmp_path / "out"), "--scheduler", address]
        tile = subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True)
        if program is PATIENT:
            wait_for(tmp_path / "out" / "tile.toml")
            time.sleep(2)
            process.kill()
        _, told = tile.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(timeout=30)
    assert tile.returncode == 1
    assert "Error: 2 of 2 slides failed" in told
    assert "Traceback" not in told
    rows = (tmp_path / "out" / "tile-summary.csv").read_text().splitlines()[1:]
    assert rows == [f"{name},failed,,,,,,,\"slide '{name}.svs': {GONE}\"" for name in "ab"]


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_no_scheduler_there_is_one_line(program: Run, failure: Failure, cohort: Path, tmp_path: Path) -> None:
    ended = program("tile", cohort, "--out", tmp_path, "--scheduler", "tcp://127.0.0.1:9", status=1)
    line = failure(ended)
    assert "127.0.0.1:9" in line
    assert "--scheduler" in line
