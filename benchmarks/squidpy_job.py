"""Time squidpy's grid graph of one store's tiles, compare it with the index in the store, and print a line of JSON.

Equal calls: `spatial_neighbors(coord_type="grid", n_neighs=4, n_rings=1, delaunay=False)` for `--connectivity 4`, and the
same with `n_neighs=8` for 8. squidpy takes the nearest tiles of each and drops those farther than 1.3 medians: 1.3 pitches
(straight neighbours only) with 4, and, where more than half of the pairs it found are diagonal, 1.84 with 8.
"""

import argparse
import importlib.metadata
import json
import resource
import time
import warnings
from pathlib import Path

import numpy as np

from simtriplet.wsi.neighbour_index import places_of
from simtriplet.wsi.neighbours import GridRule
from simtriplet.wsi.store import open_stores


def main() -> None:
    """Measure both in this process, the same tiles one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", type=Path, required=True, help="folder of one store")
    parser.add_argument("--connectivity", type=int, choices=(4, 8), default=4)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    import anndata
    import squidpy

    (store,) = open_stores([asked.stores])
    centres = store.centres()
    table = anndata.AnnData(shape=(len(store), 0), obsm={"spatial": centres})
    squidpy.gr.spatial_neighbors(table[:1000].copy(), coord_type="grid", n_neighs=asked.connectivity)  # compiles
    start = time.perf_counter()
    squidpy.gr.spatial_neighbors(
        table, coord_type="grid", n_neighs=asked.connectivity, n_rings=1, delaunay=False, spatial_key="spatial"
    )
    theirs = time.perf_counter() - start
    places = places_of(store)  # both start from coordinates in memory and end with a graph in memory
    start = time.perf_counter()
    adjacency = GridRule(asked.connectivity).adjacency(places)
    ours = time.perf_counter() - start
    graph = table.obsp["spatial_connectivities"].tocsr()
    graph.sort_indices()
    same = np.array_equal(graph.indptr, adjacency.indptr) and np.array_equal(graph.indices, adjacency.indices)
    said = {
        "tiles": len(store),
        "seconds": ours,
        "squidpy_seconds": theirs,
        "times_faster": theirs / ours,
        "same_graph": bool(same),
        "squidpy": importlib.metadata.version("squidpy"),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "note": f"{adjacency.n_pairs:,} pairs",
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
