"""A batch of slides with some that fail, hang or kill the process that reads them: the others are tiled, all are listed."""

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from simtriplet.pipelines.batch import _not_twice, _Tile, _tile_on_worker, _without_folders
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.store import find_stores
from simtriplet.wsi.synthetic import SyntheticSlideSpec, draw_slide
from simtriplet.wsi.tile_request import SlideJob, TileRequest

Run = Callable[..., "CompletedProcess[str]"]
Failure = Callable[["CompletedProcess[str]"], str]
TILING = ("--mpp", 0.5, "--size", 64)

# what an installed package with a reader looks like; it does what a broken decoder does, by the name of the slide
PLUGIN = """
    import ctypes, os, signal, time
    from simtriplet.wsi.tiff_reader import TiffReader

    FAULTS = {
        "hangs": lambda: time.sleep(600),
        "crashes": lambda: ctypes.string_at(0),
        "exits": lambda: os._exit(3),
        "hungry": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "buggy": lambda: {}["no such key"],
        "takes-worker-along": lambda: os.kill(os.getppid(), signal.SIGKILL),
    }

    class FaultyReader(TiffReader):
        name = "faulty"

        def __init__(self, path):
            if path.stem == "crashes-at-once":
                FAULTS["crashes"]()
            super().__init__(path)

        def read_windows(self, level, xy, size, *, out=None):
            FAULTS.get(self.path.stem, lambda: None)()
            return super().read_windows(level, xy, size, out=out)
    """


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 640 x 512 px."""
    path = tmp_path_factory.mktemp("slide") / "tiny.svs"
    draw_slide(path, SyntheticSlideSpec(width_px=640, height_px=512, tissue_fraction=0.5, n_pieces=1, region_um=100.0))
    return path


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed package that adds the reader `faulty` through the entry points `simtriplet.readers`."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "faulty_reader.py").write_text(textwrap.dedent(PLUGIN))
    about = folder / "faulty_reader-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-reader\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[simtriplet.readers]\nfaulty = faulty_reader:FaultyReader\n")
    return folder


@pytest.fixture
def faulty(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The option that chooses the faulty reader, which all processes started here can import."""
    monkeypatch.setenv("PYTHONPATH", str(plugin))
    return "--reader", "faulty"


def copies(slide: Path, folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        shutil.copy(slide, folder / f"{name}.svs")
    return folder


def summary(out: Path) -> dict[str, dict[str, str]]:
    with (out / "tile-summary.csv").open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def children(process: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def lives(process: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    return False


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def test_stores_that_may_not_be_touched_keep_their_lines_and_settings(
    program: Run, failure: Failure, slide: Path, tmp_path: Path
) -> None:
    folder, out = copies(slide, tmp_path / "slides", "a", "b"), tmp_path / "out"
    program("tile", folder, "--out", out, *TILING)
    before = [(out / name).read_text() for name in ("tile-summary.csv", "tile.toml")]
    for existing in ("error", "skip"):
        other = ("--mpp", 0.5, "--size", 128, "--existing", existing)
        assert "2 of 2 slides failed" in failure(program("tile", folder, "--out", out, *other, status=1))
        assert [(out / name).read_text() for name in ("tile-summary.csv", "tile.toml")] == before
    shutil.copy(slide, folder / "c.svs")
    program("tile", folder, "--out", out, "--mpp", 0.5, "--size", 128, status=1)
    assert {name: row["status"] for name, row in summary(out).items()} == {"a": "ok", "b": "ok", "c": "ok"}
    assert "size_px = 128" in (out / "tile.toml").read_text()


def root_written(store: Path) -> int:
    """Return when the store was written: its id would be the same if it were written again."""
    return (store / "zarr.json").stat().st_mtime_ns


def test_one_bad_slide_of_fifty_and_another_try(program: Run, failure: Failure, slide: Path, tmp_path: Path) -> None:
    folder, out = copies(slide, tmp_path / "slides", *(f"s{number:02d}" for number in range(50))), tmp_path / "out"
    bad = folder / "s23.svs"
    bad.write_bytes(slide.read_bytes()[:-500])
    ended = program("tile", folder, "--out", out, *TILING, "--workers", 2, status=1)
    assert "1 of 50 slides failed" in failure(ended)
    assert ended.stdout.count("\tok\t") == 49
    rows = summary(out)
    assert len(rows) == 50
    assert [name for name, row in rows.items() if row["status"] == "failed"] == ["s23"]
    assert "slide 's23.svs': " in rows["s23"]["reason"]
    assert "the file is damaged" in rows["s23"]["reason"]
    assert str(folder) not in rows["s23"]["reason"]
    made = {store.name: root_written(store) for store in find_stores([out])}
    assert len(made) == 49

    again = ("tile", folder, "--out", out, *TILING, "--retry-failed")
    ended = program(*again, status=1)
    assert "1 of 50 slides of the earlier run failed" in ended.stderr
    assert "the file is damaged" in failure(ended)
    assert summary(out).keys() == rows.keys()
    shutil.copy(slide, bad)
    assert program(*again).stdout.count("\tok\t") == 1
    assert {row["status"] for row in summary(out).values()} == {"ok"}
    now = {store.name: root_written(store) for store in find_stores([out])}
    assert len(now) == 50
    assert made.items() <= now.items(), "the others were not touched"
    assert "nothing to do" in program(*again).stderr


def test_another_try_without_a_first_one(program: Run, failure: Failure, slide: Path, tmp_path: Path) -> None:
    line = failure(program("tile", slide, "--out", tmp_path / "out", "--retry-failed", status=1))
    assert "tile-summary.csv': does not exist; tile without --retry-failed first" in line
    out = tmp_path / "out"
    program("tile", slide, tmp_path / "gone.svs", "--out", out, *TILING, status=1)


def test_another_try_does_not_pass_over_what_a_killed_run_never_reached(
    program: Run, failure: Failure, slide: Path, tmp_path: Path
) -> None:
    folder, out = copies(slide, tmp_path / "slides", "first", "second"), tmp_path / "out"
    program("tile", folder / "first.svs", "--out", out, *TILING)
    line = failure(program("tile", folder, "--out", out, *TILING, "--retry-failed", status=1))
    assert "tile-summary.csv': lacks 1 of the 2 slides given, 'second' for instance; tile with --existing skip" in line


def test_two_runs_of_one_folder_share_its_summary_and_a_killed_third_tells_what_it_did_not_reach(
    program: Run, failure: Failure, slide: Path, tmp_path: Path, faulty: tuple[str, str]
) -> None:
    out = tmp_path / "out"
    folders = [copies(slide, tmp_path / name, *(f"{name}{number}" for number in range(4))) for name in "ab"]
    commands = [
        [sys.executable, "-m", "simtriplet.pipelines", "tile", str(folder), "--out", str(out), *map(str, TILING)]
        for folder in folders
    ]
    for process in [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]:
        assert process.wait(timeout=120) == 0
    assert {name: row["status"] for name, row in summary(out).items()} == dict.fromkeys(
        [f"{name}{number}" for name in "ab" for number in range(4)], "ok"
    )
    shutil.copy(slide, folders[0] / "hangs.svs")
    process = subprocess.Popen([*commands[0], "--existing", "replace", *faulty], stdout=subprocess.DEVNULL)
    wait_for(lambda: (out / "hangs.tiles.zarr.partial").exists() and len(summary(out)) == 8)
    process.kill()
    process.wait()
    line = failure(program("tile", folders[0], "--out", out, *TILING, "--retry-failed", status=1))
    assert "lacks 1 of the 5 slides given, 'hangs' for instance" in line


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_readers_that_hang_or_die_are_listed(
    cold_program: Run, failure: Failure, slide: Path, tmp_path: Path, faulty: tuple[str, str], workers: int
) -> None:
    reasons = {
        "buggy": "slide 'buggy.svs': KeyError: 'no such key'; report this as a bug",
        "crashes": "slide 'crashes.svs': the process that read it died (signal 11, SIGSEGV)",
        "crashes-at-once": "slide 'crashes-at-once.svs': the process that read it died (signal 11, SIGSEGV)",
        "exits": "slide 'exits.svs': the process that read it died (exit status 3)",
        "hangs": "slide 'hangs.svs': took longer than 8 s; ",
        "hungry": "slide 'hungry.svs': the process that read it died (signal 9, SIGKILL, perhaps for lack of memory)",
    }
    folder = copies(slide, tmp_path / "slides", *reasons, "fine-1", "fine-2", "zfine-3")
    out = tmp_path / "out"
    options = (*TILING, *faulty, "--workers", workers, "--slide-timeout", 8)
    ended = cold_program("tile", folder, "--out", out, *options, status=1)
    assert "6 of 9 slides failed" in failure(ended)
    rows = summary(out)
    for name, reason in reasons.items():
        assert rows[name]["status"] == "failed"
        assert rows[name]["reason"].startswith(reason), name
    assert sorted(store.name.partition(".")[0] for store in find_stores([out])) == ["fine-1", "fine-2", "zfine-3"]
    assert list(out.glob("*.partial")) == [], "what a lost process left is removed"


def test_readers_that_hang_or_die_do_not_stop_an_import(
    cold_program: Run, failure: Failure, slide: Path, tmp_path: Path, faulty: tuple[str, str]
) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra interop is not installed")
    reasons = {
        "buggy": "slide 'buggy.svs': KeyError: 'no such key'; report this as a bug",
        "crashes": "slide 'crashes.svs': the process that read it died (signal 11, SIGSEGV)",
        "hangs": "slide 'hangs.svs': took longer than 4 s; ",
    }
    folder = copies(slide, tmp_path / "slides", *reasons, "fine-1", "zfine-2")
    places, out = tmp_path / "places", tmp_path / "out"
    places.mkdir()
    for path in folder.iterdir():
        with h5py.File(places / f"{path.stem}.h5", "w") as file:
            coords = file.create_dataset("coords", data=[(0, 0), (64, 0), (0, 64)])
            coords.attrs.update({"patch_size": 64, "patch_level": 0, "name": path.stem})
    words = ("import", places, "--slides", folder, "--out", out, *faulty, "--slide-timeout", 4)
    ended = cold_program(*words, status=1)
    assert failure(ended) == "Error: 3 of 5 slides failed; the table says why"
    rows = {line.split("\t")[0]: line.split("\t") for line in ended.stdout.splitlines()[1:]}
    assert {name: row[1] for name, row in rows.items()} == {
        **dict.fromkeys(reasons, "failed"),
        "fine-1": "ok",
        "zfine-2": "ok",
    }
    for name, reason in reasons.items():
        assert rows[name][-1].startswith(reason)
    assert sorted(path.name for path in out.iterdir()) == ["fine-1.tiles.zarr", "zfine-2.tiles.zarr"]
    line = failure(cold_program("import", places / "crashes.h5", *words[2:], status=1))
    assert "the process that read it died (signal 11, SIGSEGV); try another --reader" in line


def test_a_single_slide_whose_reader_dies_is_one_line(
    cold_program: Run, failure: Failure, slide: Path, tmp_path: Path, faulty: tuple[str, str]
) -> None:
    folder = copies(slide, tmp_path / "slides", "crashes")
    line = failure(cold_program("tile", folder, "--out", tmp_path / "out", *TILING, *faulty, status=1))
    assert "the process that read it died (signal 11, SIGSEGV); try another --reader" in line


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_has_its_summary_and_leaves_no_process(
    slide: Path, tmp_path: Path, faulty: tuple[str, str], number: signal.Signals
) -> None:
    folder, out = copies(slide, tmp_path / "slides", "a", "b", "hangs"), tmp_path / "out"
    arguments = ["tile", folder, "--out", out, *TILING, *faulty]
    command = [sys.executable, "-m", "simtriplet.pipelines", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        partial = out / "hangs.tiles.zarr.partial"
        wait_for(lambda: partial.exists() and len(summary(out)) == 2)
        (worker,) = children(process.pid)
        process.send_signal(number)
        start = time.monotonic()
        process.communicate(timeout=30)
        assert time.monotonic() - start < 10
        assert process.returncode == (143 if number == signal.SIGTERM else -9)
        wait_for(lambda: not lives(worker), 5)
    finally:
        process.kill()
    assert {name: row["status"] for name, row in summary(out).items()} == {"a": "ok", "b": "ok"}


@pytest.fixture
def cluster(tmp_path: Path, plugin: Path) -> Iterator[str]:
    """A Dask scheduler with two workers that can import the plugin; gives its address."""
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    local = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
    commands = [[*dask, "scheduler", *local, "--port", "0"], *[[*dask, "worker", *local, "--nthreads", "1"]] * 2]
    environment = {
        **os.environ,
        "PYTHONPATH": str(plugin),
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
    }
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **quiet)  # type: ignore[call-overload]
        for command in commands
    ]
    try:
        wait_for(file.exists)
        yield json.loads(file.read_text())["address"]
    finally:
        for process in processes:  # with the nannies' children
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=60)


@pytest.mark.slow
def test_a_reason_names_files_without_their_folders_and_is_whole_otherwise() -> None:
    job = SlideJob(Path("s/a.svs"), "a")
    said = "store 'o/stores/a.tiles.zarr': slide 's/a.svs' is bad; see s/a.svs, /data/s/a.svs and as/a.svs"
    assert (
        _without_folders(said, job)
        == "store 'a.tiles.zarr': slide 'a.svs' is bad; see a.svs, /data/s/a.svs and as/a.svs"
    )


def test_a_slide_of_a_worker_that_died_when_it_was_done_is_done(slide: Path, tmp_path: Path) -> None:
    """The scheduler gives it to another worker, whose own store of before it is not."""
    task = _Tile(tmp_path, TileRequest(tiling=TilingSpec(mpp=1.0, size_px=64)), "error", None, tells_room=False)
    job = SlideJob(slide, "a")
    again = _not_twice(task, job)
    first, second = (_tile_on_worker(again, job, 60) for _ in range(2))
    assert (first.status, second.status) == ("ok", "ok"), second.reason
    refused = _tile_on_worker(_not_twice(task, job), job, 60)
    assert "exists already; pass --existing skip" in refused.reason


def test_a_cluster_goes_on_after_readers_and_workers_that_die(
    cold_program: Run, failure: Failure, slide: Path, tmp_path: Path, faulty: tuple[str, str], cluster: str
) -> None:
    """A slide whose Dask worker is killed is tried as often as the scheduler allows, here once more, then it is listed."""
    names = ("crashes", "hangs", "takes-worker-along", "fine-1", "fine-2")
    folder, out = copies(slide, tmp_path / "slides", *names), tmp_path / "out"
    options = (*TILING, *faulty, "--scheduler", cluster, "--slide-timeout", 8)
    ended = cold_program("tile", folder, "--out", out, *options, status=1)
    assert "3 of 5 slides failed" in failure(ended)
    rows = summary(out)
    assert "the process that read it died (signal 11, SIGSEGV)" in rows["crashes"]["reason"]
    assert "took longer than 8 s" in rows["hangs"]["reason"]
    assert "the worker failed (KilledWorker" in rows["takes-worker-along"]["reason"]
    assert {rows[name]["status"] for name in ("fine-1", "fine-2")} == {"ok"}
