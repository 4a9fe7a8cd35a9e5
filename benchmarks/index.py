"""Measure how fast tiles become neighbours: 10^4 to 10^7 lattice tiles, one store or many, and squidpy on the same tiles.

    python benchmarks/index.py --out FOLDER [--sizes 10000 ...] [--many 100x100000 ...] [--squidpy-python PATH | --no-squidpy]

Each measurement is a fresh process that opens the stores, builds the index (grid, 8-adjacency, same tissue) and writes it; its
time does not count imports, its peak memory is all of the process. The lattices lack a tenth of their tiles here and there.
squidpy runs on 10^6 tiles, from coordinates in memory to a graph in memory, as does this program there.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, pick_cpus
from runs import HERE, RunError, run_program

Row = dict[str, Any]
CORES = 2


def main() -> None:
    """Measure what the command line asks for; print the tables and leave them in the output folder."""
    asked = _parse()
    out: Path = asked.out.resolve()
    machine = describe_machine()
    rows = [_measure(out, n_tiles, 1, asked.repeat) for n_tiles in sorted(asked.sizes)]
    rows += [_measure(out, n_tiles, count, 1) for count, n_tiles in asked.many]
    peers = [] if asked.no_squidpy else [_compare(out, asked, connectivity) for connectivity in (4, 8)]
    fits = {"all": _exponent(rows), "from 100,000": _exponent([row for row in rows if row["tiles"] >= 100_000])}
    record = {"machine": machine, "cores": CORES, "rows": rows, "exponents": fits, "squidpy": peers}
    (out / "index.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (out / "index.md").write_text(_markdown(record), encoding="utf-8")
    print(_markdown(record))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results and stores (removed again); 2 GB")
    parser.add_argument("--sizes", type=int, nargs="*", default=[10**4, 10**5, 10**6, 10**7], help="tiles of one store")
    parser.add_argument("--many", type=_count_and_size, nargs="*", default=[], metavar="STORESxTILES")
    parser.add_argument("--repeat", type=int, default=3, help="rounds; the first makes an index, others replace it")
    parser.add_argument("--no-squidpy", action="store_true")
    parser.add_argument("--squidpy-python", default=sys.executable, help="a Python that has squidpy and simtriplet")
    parser.add_argument("--squidpy-tiles", type=int, default=10**6)
    return parser.parse_args()


def _count_and_size(text: str) -> tuple[int, int]:
    count, _, n_tiles = text.partition("x")
    return int(count), int(n_tiles)


def _measure(out: Path, n_tiles: int, count: int, repeat: int) -> Row:
    stores = out / "stores"
    shutil.rmtree(stores, ignore_errors=True)
    _job(out, "make", stores, "--tiles", str(n_tiles), "--count", str(count))
    rounds = [_job(out, "index", stores) for _ in range(repeat)]
    n_bytes = sum(
        file.stat().st_size for file in stores.rglob("*") if {"obsp", "uns"} & set(file.parts) and file.is_file()
    )
    shutil.rmtree(stores)
    row = {
        "stores": count,
        "tiles": n_tiles * count,
        "seconds": statistics.median(float(said["seconds"]) for said in rounds),
        "rounds_s": [round(float(said["seconds"]), 3) for said in rounds],
        "peak_mb": max(float(said["peak_mb"]) for said in rounds),
        "index_mb": n_bytes / 1e6,
        "note": rounds[0]["note"],
    }
    print(row, file=sys.stderr)
    return row


def _job(out: Path, what: str, stores: Path, *arguments: str) -> dict[str, str | int | float]:
    command = [sys.executable, str(HERE / "index_job.py"), "--what", what, "--stores", str(stores), *arguments]
    return run_program(command, cpus=pick_cpus(CORES), log=out / "index.log")


def _compare(out: Path, asked: argparse.Namespace, connectivity: int) -> Row:
    """Run squidpy and this program in one process on one store, in turn; keep the median ratio."""
    stores = out / "stores"
    shutil.rmtree(stores, ignore_errors=True)
    _job(out, "make", stores, "--tiles", str(asked.squidpy_tiles))
    command = [asked.squidpy_python, "-W", "ignore", str(HERE / "squidpy_job.py"), "--stores", str(stores)]
    try:
        said = [
            run_program([*command, "--connectivity", str(connectivity)], cpus=pick_cpus(CORES), log=out / "squidpy.log")
            for _ in range(asked.repeat)
        ]
    except RunError as error:
        return {"connectivity": connectivity, "skipped": str(error)}
    finally:
        shutil.rmtree(stores)
    return {
        "connectivity": connectivity,
        "tiles": said[0]["tiles"],
        "squidpy": said[0]["squidpy"],
        "squidpy_s": statistics.median(float(one["squidpy_seconds"]) for one in said),
        "seconds": statistics.median(float(one["seconds"]) for one in said),
        "times_faster": statistics.median(float(one["times_faster"]) for one in said),
        "same_graph": all(bool(one["same_graph"]) for one in said),
    }


def _exponent(rows: Sequence[Row]) -> float | None:
    """Return b of seconds = a * tiles^b over the single stores, None of fewer than two sizes."""
    single = [row for row in rows if row["stores"] == 1]
    if len({row["tiles"] for row in single}) < 2:
        return None
    x, y = (np.log([row[key] for row in single]) for key in ("tiles", "seconds"))
    return float(np.polyfit(x, y, 1)[0])


def _markdown(record: dict[str, Any]) -> str:
    machine = record["machine"]
    about = f"{machine['cpu']}, {record['cores']} cores used, {machine['memory_gb']} GB, Python {machine['python']}, "
    about += f"{machine['date']}, load {machine['load_at_start']} at the start."
    lines = [
        "# Index benchmark",
        "",
        about,
        "",
        "| stores | tiles | s | tiles/s | peak MB | index MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        speed = f"{row['tiles'] / row['seconds']:,.0f}"
        numbers = f"{row['seconds']:.3f} | {speed} | {row['peak_mb']:,.0f} | {row['index_mb']:,.1f}"
        lines.append(f"| {row['stores']} | {row['tiles']:,} | {numbers} |")
    fits = ", ".join(f"{value:.2f} ({what})" for what, value in record["exponents"].items() if value is not None)
    lines += ["", f"Fitted exponent of time over tiles: {fits}.", ""] if fits else [""]
    for peer in record["squidpy"]:
        if "skipped" in peer:
            lines.append(f"* squidpy, {peer['connectivity']}-adjacency: skipped, {peer['skipped']}")
            continue
        graph = "the same graph" if peer["same_graph"] else "ANOTHER GRAPH"
        lines.append(
            f"* {peer['connectivity']}-adjacency of {peer['tiles']:,} tiles: squidpy {peer['squidpy']} {peer['squidpy_s']:.2f} s, "
            f"here {peer['seconds']:.3f} s, {peer['times_faster']:.0f} times as fast; {graph}."
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
