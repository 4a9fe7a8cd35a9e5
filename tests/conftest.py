"""Fixtures that several test folders share: a warm process that forks commands, stores made from arrays, the real slides."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: threads of two workers would wait for one another
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(threads, "1")

from simtriplet.wsi.codec import make_codec
from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.store_writer import StoreContents, StoreWriter
from simtriplet.wsi.table import Categorical

StoreFactory = Callable[..., TileStore]

SHARED_DATA = Path(os.environ.get("SIMTRIPLET_DATA", Path(__file__).parents[2] / "shared" / "data"))


LONGEST = (
    "test_the_demo_as_it_is_learns",
    "test_one_command_goes_from_published_files_to_tables_and_goes_on_where_it_stopped",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take the longest tests first: begun last, they keep one core busy for minutes when all else is done."""
    items.sort(key=lambda item: item.name not in LONGEST)


@dataclass
class Ended:
    """A command that has ended.

    Attributes:
        status: its exit status, of a signal negative.
        results: on stdout.
        said: on stderr.
        seconds: that it took.
    """

    status: int
    results: str
    said: str
    seconds: float

    @property
    def error(self) -> str:
        """The one line that says what went wrong."""
        lines = [line for line in self.said.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, self.said
        assert "Traceback" not in self.said, self.said
        return lines[0]


class Zygote:
    """Starts commands as children of one warm process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        self.errors = (folder / "zygote.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.n_started = 0
        self.logs: dict[int, Path] = {}
        self.began: dict[int, float] = {}

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def start(
        self,
        *arguments: object,
        cwd: Path | None = None,
        fsize: int | None = None,
        writes_below: Path | None = None,
        die_at: int | None = None,
    ) -> int:
        """Start `simtriplet ARGS...`; return its process id.

        Args:
            arguments: of the program.
            cwd: where it runs.
            fsize: limit on the size of its files.
            writes_below: the folder whose writes count.
            die_at: it kills itself before this one of them.
        """
        self.n_started += 1
        log = self.folder / f"{self.n_started}.log"
        began = time.monotonic()
        order = {
            "arguments": [str(argument) for argument in arguments],
            "log": str(log),
            "cwd": str(cwd or Path.cwd()),
            "fsize": fsize,
            "writes_below": None if writes_below is None else str(writes_below),
            "die_at": die_at,
        }
        pid = int(self.ask(do="start", **order)["pid"])
        self.logs[pid], self.began[pid] = log, began
        return pid

    def wait(self, pid: int, timeout: float = 120) -> Ended:
        """Wait for the end of a command."""
        status = self.ask(do="wait", pid=pid, timeout=timeout)["status"]
        seconds = time.monotonic() - self.began[pid]
        if status is None:
            os.kill(pid, signal.SIGKILL)
            self.ask(do="wait", pid=pid, timeout=10)
            raise AssertionError(f"still running after {timeout} s: {self.logs[pid].read_text()}")
        files = (
            self.logs[pid].with_suffix(".out"),
            self.logs[pid],
        )  # missing where it was killed before it opened them
        results, said = (file.read_text(errors="replace") if file.exists() else "" for file in files)
        return Ended(status, results, said, seconds)

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to a command that may have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def kill(self, pid: int) -> Ended:
        """Kill a command and wait for its end."""
        self.signal(pid, signal.SIGKILL)
        return self.wait(pid)

    def run(self, *arguments: object, **options: Any) -> Ended:
        """Run a command to its end."""
        return self.wait(self.start(*arguments, **options))

    def done(self, *arguments: object) -> Ended:
        """Run a command that must succeed."""
        ended = self.run(*arguments)
        assert ended.status == 0, ended.said
        return ended

    def n_writes(self, below: Path, *arguments: object) -> int:
        """Run a command that must succeed; return how often it wrote below a folder."""
        pid = self.start(*arguments, writes_below=below)
        ended = self.wait(pid)
        assert ended.status == 0, ended.said
        return int(self.logs[pid].with_suffix(".count").read_text())

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()
        self.errors.close()


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """The warm process."""
    found = Zygote(tmp_path_factory.mktemp("zygote"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides; tests that ask for it are skipped where it does not exist."""
    if not (SHARED_DATA / "slides").is_dir():
        pytest.skip("the real slides are not on this machine (set SIMTRIPLET_DATA)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def n_kills() -> int:
    """Moments at which a command is killed; `make torture` asks for more."""
    return int(os.environ.get("SIMTRIPLET_FAULTS", "20"))


@pytest.fixture(scope="session")
def n_mutants() -> int:
    """Damaged files of each kind that are tried; `make torture` asks for more."""
    return int(os.environ.get("SIMTRIPLET_FUZZ", "2000"))


@pytest.fixture
def store_factory(tmp_path: Path) -> StoreFactory:
    """Make a store of rows x cols tiles without a slide: two classes that differ in texture, split by column."""

    def make(
        name: str = "slide",
        *,
        rows: int = 4,
        cols: int = 6,
        size_px: int = 32,
        patient_id: str | None = None,
        seed: int = 0,
        codec: str = "none",
        labels: bool = True,
        index: bool = True,
        keep: np.ndarray[Any, Any] | None = None,
        folder: Path | None = None,
        mpp: float = 0.5,
        base_mpp: float | None = None,
    ) -> TileStore:
        base_px = size_px * mpp / (base_mpp or mpp)  # side of a tile on the slide
        row, col = (axis.ravel() for axis in np.mgrid[0:rows, 0:cols])
        if keep is not None:
            row, col = row[keep], col[keep]
        rng = np.random.default_rng(seed)
        codes = (col >= cols // 2).astype(np.int8)
        tiles = (
            np.stack([_texture(int(code), size_px, rng) for code in codes])
            if len(codes)
            else np.zeros((0, size_px, size_px, 3), np.uint8)
        )
        contents = StoreContents(
            slide={
                "id": name,
                "patient_id": patient_id,
                "mpp": base_mpp or mpp,
                "width": round(cols * base_px),
                "height": round(rows * base_px),
            },
            tiling={"mpp": mpp, "size_px": size_px, "stride_px": size_px},
            tissue={"method": "all"},
            base_xy=np.rint(np.column_stack([col, row]) * base_px).astype(np.int64),
            row=row,
            col=col,
            tissue_id=np.zeros(len(row), np.int32),
            tissue_fraction=np.ones(len(row), np.float32),
            thumbnail=np.full((rows * 4, cols * 4, 3), 200, np.uint8),
            thumbnail_downsample=base_px / 4,
            tissue_mask=np.ones((rows * 4, cols * 4), np.uint16),
            label=Categorical(codes, ("dots", "stripes")) if labels else None,
        )
        path = (folder or tmp_path) / f"{name}.tiles.zarr"
        with StoreWriter(path, size_px=size_px, codec=make_codec(codec)) as writer:
            writer.write_tiles(tiles)
            store = writer.finish(contents)
        if index:
            index_store(store)
        return TileStore(path)

    return make


def _texture(code: int, size_px: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    tile = rng.integers(150, 220, (size_px, size_px, 3), dtype=np.uint8)
    if code:
        tile[:, ::4] = (120, 60, 140)
    else:
        for y, x in rng.integers(0, size_px - 3, (12, 2)):
            tile[y : y + 3, x : x + 3] = (60, 30, 110)
    return tile
