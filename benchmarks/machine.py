"""Where a benchmark ran: processor, memory, versions; and which cores to use."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIBRARIES = ("simtriplet", "numpy", "imagecodecs", "tifffile", "opencv-python-headless", "openslide-bin", "zarr")


def describe_machine() -> dict[str, Any]:
    """Return what a reader must know of the machine; no name of it and no path."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int((_field(Path("/proc/meminfo"), "MemTotal") or "0 kB").split()[0]) * 1024 / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def pick_cpus(count: int) -> list[int]:
    """Return `count` of the processors this process may use, of different physical cores first."""
    allowed = sorted(os.sched_getaffinity(0))
    seen: set[str] = set()
    first: list[int] = []
    siblings: list[int] = []
    for cpu in allowed:
        core = _siblings(cpu)
        (siblings if core in seen else first).append(cpu)
        seen.add(core)
    return [*first, *siblings][:count]


def warm_page_cache(paths: Sequence[Path]) -> None:
    """Read files once, so that every program finds them in memory."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def _siblings(cpu: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return path.read_text().strip() if path.exists() else str(cpu)


def _field(path: Path, name: str) -> str | None:
    """Return the first value called `name` in a file of "name : value" lines."""
    for line in path.read_text().splitlines() if path.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
