"""Measure how fast random tiles come out of a store, against the floor of this machine, on one core.

    python benchmarks/streaming.py --out FOLDER

The floor is a bare loop over the same random tiles: cached shard index, pread, decode; zarr-python reads them one by one. All
count processor time, the medians of alternating rounds; the page cache is warm.
"""

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numcodecs.zstd
import numpy as np
import numpy.typing as npt
import torch
import zarr
from machine import describe_machine, pick_cpus

from simtriplet.pretrain.tiles import StreamedTiles, TileNumbering
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.images import TILES_PER_SHARD, shard_path
from simtriplet.wsi.shard import read_shard_index
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.synthetic import SyntheticSlideSpec, draw_slide
from simtriplet.wsi.tiling import SlideJob, TileRequest, tile_slide

BATCH, BATCHES = 128, 16
DECODERS: dict[str, Callable[[bytes], npt.NDArray[np.uint8]]] = {
    "none": lambda data: np.frombuffer(data, np.uint8),
    "zstd": lambda data: np.frombuffer(numcodecs.zstd.decompress(data), np.uint8),
    "jpeg": lambda data: imagecodecs.jpeg8_decode(data).reshape(-1),
}


def main() -> None:
    """Draw a slide, tile it with each codec, measure, and leave the table in the output folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results and stores (removed again); 3 GB")
    parser.add_argument("--repeat", type=int, default=5)
    asked = parser.parse_args()
    out: Path = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    slide = out / "streaming.svs"
    if not slide.exists():
        draw_slide(slide, SyntheticSlideSpec(width_px=16_384, height_px=12_288, mpp=0.5, tissue_fraction=0.5))
    os.sched_setaffinity(0, pick_cpus(1))
    torch.set_num_threads(1)
    rows = [_measure(slide, out / "stores", codec, asked.repeat) for codec in DECODERS]
    shutil.rmtree(out / "stores")
    (out / "streaming.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    lines = ["| codec | tiles in the store | floor, tiles/s | streamed, tiles/s | share | zarr-python, tiles/s |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        speeds = f"{row['floor']:,.0f} | {row['streamed']:,.0f} | {row['share']:.2f}"
        lines.append(f"| {row['codec']} | {row['tiles']:,} | {speeds} | {row['zarr']:,.0f} |")
    (out / "streaming.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _measure(slide: Path, folder: Path, codec: str, repeat: int) -> dict[str, float | str]:
    tile_slide(
        SlideJob(slide, codec),
        folder,
        TileRequest(tiling=TilingSpec(mpp=0.5, size_px=256), codec=codec),  # type: ignore[arg-type]
    )
    store = TileStore(folder / f"{codec}.tiles.zarr")
    rng = np.random.default_rng(0)
    batches = [torch.from_numpy(rng.integers(0, len(store), BATCH)) for _ in range(BATCHES)]
    floor = _bare_loop(store, codec, batches)
    rates: dict[str, list[float]] = {"floor": [], "streamed": [], "zarr": []}
    array = zarr.open_array(store.path / "tiles" / "images", mode="r")
    with StreamedTiles(TileNumbering([store]), device=torch.device("cpu")) as source:
        for _ in range(repeat + 1):
            rates["floor"].append(_rate(floor))
            rates["streamed"].append(_rate(lambda: _gather(source, batches)))
            rates["zarr"].append(_rate(lambda: [array[int(tile)] for tile in batches[0]], n_tiles=BATCH))
    # the first round fills caches
    found = {name: statistics.median(values[1:]) for name, values in rates.items()}
    return {"codec": codec, "tiles": len(store), **found, "share": found["streamed"] / found["floor"]}


def _gather(source: StreamedTiles, batches: list[torch.Tensor]) -> None:
    for ids in batches:
        source.gather(ids)  # dropped at once, as by a step: what is kept costs fresh memory each time


def _bare_loop(store: TileStore, codec: str, batches: list[torch.Tensor]) -> Callable[[], None]:
    array = store.path / "tiles" / "images"
    files = [os.open(shard_path(array, shard), os.O_RDONLY) for shard in range(-(-len(store) // TILES_PER_SHARD))]
    tables = [read_shard_index(file, chunks_per_shard=TILES_PER_SHARD, name="shard") for file in files]
    places = [[(int(t.offsets[k]), int(t.sizes[k])) for k in range(TILES_PER_SHARD)] for t in tables]
    size = store.size_px**2 * 3

    def loop() -> None:
        for ids in batches:
            out = np.empty((BATCH, size), np.uint8)
            for row, tile in enumerate(ids.tolist()):
                shard, entry = divmod(tile, TILES_PER_SHARD)
                offset, length = places[shard][entry]
                out[row] = DECODERS[codec](os.pread(files[shard], length, offset))

    return loop


def _rate(work: Callable[[], object], n_tiles: int = BATCH * BATCHES) -> float:
    start = time.process_time()
    work()
    return n_tiles / (time.process_time() - start)


if __name__ == "__main__":
    main()
