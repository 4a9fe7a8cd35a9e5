"""One measurement of benchmarks/index.py, in a process of its own: prints a line of JSON."""

import argparse
import json
import resource
import time
from pathlib import Path

from lattice_stores import make_store


def main() -> None:
    """Do what the command line asks for and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", choices=("make", "index", "build"), required=True)
    parser.add_argument("--stores", type=Path, required=True, help="folder of stores")
    parser.add_argument("--tiles", type=int, default=0, help="tiles of each store, for make")
    parser.add_argument("--count", type=int, default=1, help="stores, for make")
    parser.add_argument("--connectivity", type=int, default=8)
    asked = parser.parse_args()
    start = time.perf_counter()
    if asked.what == "make":
        for number in range(asked.count):
            make_store(asked.stores / f"s{number:04d}.tiles.zarr", asked.tiles, seed=number)
        said = {"tiles": asked.tiles * asked.count, "seconds": time.perf_counter() - start, "note": ""}
    else:
        said = _index(asked)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({**said, "peak_mb": peak_mb}))


def _index(asked: argparse.Namespace) -> dict[str, float | str]:
    from simtriplet.wsi.neighbour_index import build_neighbours, index_store
    from simtriplet.wsi.neighbours import GridRule
    from simtriplet.wsi.store import open_stores

    rule = GridRule(asked.connectivity)
    start = time.perf_counter()
    n_pairs = n_tiles = 0
    for store in open_stores([asked.stores]):
        n_tiles += len(store)
        written = asked.what == "index"
        n_pairs += index_store(store, rule).n_pairs if written else build_neighbours(store, rule).adjacency.n_pairs
    return {"tiles": n_tiles, "seconds": time.perf_counter() - start, "note": f"{n_pairs:,} pairs"}


if __name__ == "__main__":
    main()
