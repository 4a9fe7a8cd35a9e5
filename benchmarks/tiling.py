"""Measure how fast slides become tiles: this program, its peers and what the machine allows, in one run on the same cores.

    python benchmarks/tiling.py --out FOLDER [--cores 1 2] [--peers auto|none|hs2p,slideflow,...] [--quick]

Each measurement is a fresh process that does the whole job (find the tissue, read the tiles, write them) on drawn slides of
40,000 x 30,000 px. A peer is looked for in this Python; give others by --peer-python hs2p=/path/to/python.
benchmarks/peers/ says how to install each.
"""

import argparse
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import describe_machine, pick_cpus, warm_page_cache
from report import Group, write_reports
from runs import HERE, Contender, Result, measure, run_program

PEERS = ("hs2p", "slideflow", "tiatoolbox")
FULL_PX, QUICK_PX = (40_000, 30_000), (8_000, 6_000)


@dataclass(frozen=True, slots=True)
class Job:
    """What every program is asked to do.

    Attributes:
        name: short.
        title: as shown.
        native_px: side of the slide's own tiles.
        mpp: of the tiles; the slides have 0.5.
        size_px: side of a tile.
    """

    name: str
    title: str
    native_px: int
    mpp: float
    size_px: int = 256

    @property
    def arguments(self) -> list[str]:
        """The job as every measured program takes it."""
        return ["--mpp", str(self.mpp), "--size", str(self.size_px)]


JOBS = (
    Job("aligned", "Tiles of 256 px from native tiles of 256 px, 0.5 um per pixel", 256, 0.5),
    Job("cut", "Tiles of 256 px from native tiles of 240 px, 0.5 um per pixel", 240, 0.5),
    Job("resampled", "Tiles of 256 px at 1.0 um per pixel from native tiles of 256 px at 0.5", 256, 1.0),
)


def main() -> None:
    """Measure what the command line asks for; print the tables and leave them in the output folder."""
    asked = _parse()
    # SIGTERM takes the measured program along, as Ctrl-C does
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    machine = describe_machine()
    out: Path = asked.out.resolve()
    width, height = QUICK_PX if asked.quick else FULL_PX
    slides = {native: _draw(out / "slides", width, height, native) for native in sorted(asked.slide)}
    names = ", ".join(path.stem for path in slides.values())
    settings = {"slides": names, "repeat": asked.repeat, "cores": asked.cores, "quick": asked.quick}
    peers = _find_peers(asked.peers, dict(asked.peer_python))
    groups: list[Group] = []
    for job in [job for job in JOBS if job.native_px in slides]:
        slide = slides[job.native_px]
        store = _make_store(job, slide, out / "work")
        for cores in asked.cores:
            contenders = [*_floors(job, store), *_ours(job), *peers]
            results = _compare(job, slide, contenders, cores, asked.repeat, out / "work")
            groups.append(Group(job.name, job.title, cores, results))
            write_reports(out, machine, settings, groups)
        shutil.rmtree(store.parent)
    print((out / "tiling.md").read_text(encoding="utf-8"))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for slides (kept), logs and results; 4 GB")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2], help="numbers of cores to measure on")
    parser.add_argument("--peers", default="auto", help="auto (all), none, or names with commas: " + ", ".join(PEERS))
    parser.add_argument("--peer-python", type=_name_and_path, action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--slide", type=int, nargs="+", choices=(256, 240), default=[256, 240], help="native tile side")
    parser.add_argument("--repeat", type=int, help="rounds  [default: 3, quick 1]")
    parser.add_argument(
        "--quick", action="store_true", help="a slide of 8,000 x 6,000 px: tries the rows, measures little"
    )
    asked = parser.parse_args()
    asked.repeat = asked.repeat or (1 if asked.quick else 3)
    if asked.repeat < 1:
        parser.error(f"--repeat {asked.repeat}: must be at least 1")
    allowed = len(pick_cpus(max(asked.cores)))
    if not 1 <= min(asked.cores) <= max(asked.cores) <= allowed:
        parser.error(f"--cores {asked.cores}: this process may use 1 to {allowed}")
    asked.peers = {"auto": list(PEERS), "none": []}.get(asked.peers, asked.peers.split(","))
    for name in [*asked.peers, *dict(asked.peer_python)]:
        if name not in PEERS:
            parser.error(f"peer {name!r}: must be one of {', '.join(PEERS)}")
    return asked


def _name_and_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or shutil.which(path) is None:
        raise argparse.ArgumentTypeError(f"{text!r}: must be NAME=PATH of a Python program")
    return name, path


def _draw(folder: Path, width: int, height: int, native: int) -> Path:
    """Draw a slide, in a process of its own: a child starts with the memory peak of the process that makes it."""
    print(f"slide with native tiles of {native} px", file=sys.stderr)
    sizes = ["--width", str(width), "--height", str(height), "--native", str(native)]
    command = [sys.executable, str(HERE / "slides.py"), str(folder), *sizes]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Path(said.splitlines()[-1])


def _find_peers(names: Sequence[str], pythons: dict[str, str]) -> list[Contender]:
    return [_find_peer(name, pythons.get(name, sys.executable)) for name in names]


def _find_peer(name: str, python: str) -> Contender:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    found = subprocess.run([python, "-c", code], check=False, stderr=subprocess.DEVNULL).returncode == 0
    reason = "" if found else f"not installed here; give --peer-python {name}=PYTHON"
    return Contender(name, "peer", (python, str(HERE / "peers" / f"{name}_job.py")), skip=reason)


def _floors(job: Job, store: Path) -> list[Contender]:
    """Return the floors; the first is the one that all rows are compared with."""
    kinds = {"decode": "floor: decode the native tiles once"}
    if job.native_px != job.size_px:
        kinds["cut"] = "floor: decode once, cut the tiles"
    if job.mpp == 0.5:
        kinds["copy"] = "floor: copy the JPEG bytes"
    program = (sys.executable, str(HERE / "floors.py"), "--store", str(store))
    return [Contender(name, "floor", (*program, "--kind", kind), job.size_px) for kind, name in kinds.items()]


def _ours(job: Job) -> list[Contender]:
    program = (sys.executable, str(HERE / "simtriplet_job.py"))
    rows = [
        Contender(f"simtriplet --codec {codec}", "simtriplet", (*program, "--codec", codec), job.size_px)
        for codec in ("none", "zstd", "jpeg")
    ]
    skip = "" if job.mpp == 0.5 else "native tiles come at the slide's own resolution"
    if not skip and not _has_native_grid():
        skip = "this version has no --grid"
    native = Contender("simtriplet --grid native", "simtriplet", (*program, "--grid", "native"), job.native_px, skip)
    return [*rows, native]


def _has_native_grid() -> bool:
    command = [sys.executable, "-m", "simtriplet.pipelines", "tile", "--help"]
    return "--grid" in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _make_store(job: Job, slide: Path, work: Path) -> Path:
    """Tile once unmeasured: the floors are to read just the native tiles of this store."""
    folder = work / f"store-{job.name}"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, str(HERE / "simtriplet_job.py"), "--codec", "jpeg", "--slide", str(slide)]
    arguments = [*job.arguments, "--workers", "1", "--out", str(folder)]
    run_program([*command, *arguments], cpus=pick_cpus(1), log=work / f"store-{job.name}.log")
    return folder / f"{slide.stem}.tiles.zarr"


def _compare(
    job: Job, slide: Path, contenders: Sequence[Contender], cores: int, repeat: int, work: Path
) -> list[Result]:
    warm_page_cache([slide])
    arguments = [*job.arguments, "--slide", str(slide), "--workers", str(cores)]
    logs = work / f"{job.name}-{cores}"
    results = [Result(contender, failure=contender.skip) for contender in contenders]
    for result in measure(results, arguments, cpus=pick_cpus(cores), repeat=repeat, work=logs):
        about = result.failure or f"{result.tiles} tiles in {result.seconds[-1]:.2f} s, {result.peak_mb:,.0f} MB"
        print(f"{job.name}, {cores} cores, {result.contender.name}: {about}", file=sys.stderr)
    return results


if __name__ == "__main__":
    main()
