"""What every measured program shares: its arguments and the one line of JSON that it prints at the end.

Only the standard library: this file also runs under the Python of each peer, 3.9 or newer.
"""

import argparse
import importlib.metadata
import json
import resource
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One whole job: find the tissue of `slide`, read its tiles, write them under `out`.

    Attributes:
        slide: the slide file.
        out: an empty folder.
        mpp: micrometres per tile pixel.
        size: side of a tile, tile pixels.
        workers: threads or processes that may work.
    """

    slide: Path
    out: Path
    mpp: float
    size: int
    workers: int


def read_job() -> tuple[Job, list[str]]:
    """Read the job from the command line, and return the other arguments as they are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mpp", type=float, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    known, others = parser.parse_known_args()
    return Job(**vars(known)), others


def versions(*distributions: str) -> str:
    """Return "name version" of each distribution, joined."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in distributions)


def report(tiles: int, seconds: float, note: str = "") -> None:
    """Print the result as the last line of the standard output.

    The peak of memory is that of the largest process, this one or a child that has ended, in 10^6 bytes; a program that
    shares the work out among processes takes more than it says here.
    """
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024
    line = {"tiles": int(tiles), "seconds": round(seconds, 4), "peak_mb": round(peak / 1e6, 1), "note": note}
    print(f"\n{json.dumps(line)}", flush=True)
