"""Tile slides and pair neighbours from Python: `python examples/tile_and_index.py SLIDE... --out stores`."""

import argparse
import sys
from pathlib import Path

from simtriplet.wsi import (
    SimTripletError,
    SlideJob,
    TileRequest,
    TileStore,
    TilingSpec,
    index_store,
    open_slide,
    tile_slide,
)


def main() -> None:
    """Make a store of each slide, and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slides", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("stores"))
    parser.add_argument("--mpp", type=float, default=0.5, help="micrometres per tile pixel")
    parser.add_argument("--size", type=int, default=224, help="side of a tile, pixels")
    parser.add_argument("--slide-mpp", type=float, help="micrometres per level-0 pixel, where the file does not say")
    options = parser.parse_args()
    request = TileRequest(TilingSpec(mpp=options.mpp, size_px=options.size))
    for path in options.slides:
        with open_slide(path) as slide:
            print(
                f"{path.name}: {slide.info.width} x {slide.info.height} px, {slide.info.mpp_x} um, read by {slide.name}"
            )
        job = SlideJob(path, path.stem, slide_mpp=options.slide_mpp)
        done = tile_slide(job, options.out, request, existing="skip")
        store = TileStore(options.out / f"{path.stem}.tiles.zarr")
        index_store(store)
        graph = store.neighbours()
        print(
            f"  {done.status}: {len(store)} tiles, {graph.n_pairs} pairs of neighbours, {(graph.degrees == 0).sum()} alone"
        )


if __name__ == "__main__":
    try:
        main()
    except SimTripletError as error:
        sys.exit(f"Error: {error}")
