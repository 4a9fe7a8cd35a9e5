"""Measure the rate of `embed` against the bare forward pass of the same network on images that lie in memory.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/embedding.py --out FOLDER [--rounds 5] [--threads 1 2] [--quick]

The bare pass has its images as normalised float32 tensors of the network's size, and takes them in batches of the size that is
given; `embed` (of its default batch) reads the stored tiles, resizes where sizes differ, normalises, and writes the features
into the store. In each round every contender takes its turn on the same tiles. OMP_WAIT_POLICY is what the program sets for
itself: threads that spin while they wait slow each other down.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lattice_stores import make_store
from machine import describe_machine, pick_cpus
from torch import Tensor

from simtriplet.evaluate.embed import embed_store
from simtriplet.pretrain.encoder import Encoder, load_encoder
from simtriplet.pretrain.settings import ViewSettings
from simtriplet.pretrain.views import normalise
from simtriplet.wsi.codec import NoneCodec
from simtriplet.wsi.images import TILES_PER_SHARD, write_image_metadata, write_image_shard
from simtriplet.wsi.store import TileStore

Row = dict[str, Any]
BATCHES = (32, 256)
EMBED = "embed"
HEADINGS = (
    "network",
    "tiles",
    "threads",
    *(f"bare, batch {batch}" for batch in BATCHES),
    EMBED,
    "of the best bare",
    "by CPU time",
)


class Case(NamedTuple):
    """A network and its tiles: side of the image, side of the stored tile, how many."""

    backbone: str
    size_px: int
    stored_px: int
    n_tiles: int


CASES = (Case("resnet18", 64, 64, 512), Case("resnet18", 64, 128, 512), Case("resnet50", 128, 128, 256))


def main() -> None:
    """Measure what the command line asks for; print the table and leave it in the output folder."""
    asked = _parse()
    record = {"machine": describe_machine(), "torch": importlib.metadata.version("torch"), "rounds": asked.rounds}
    rows = [_measure(case, threads, asked) for threads in asked.threads for case in CASES]
    record["rows"] = rows
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "embedding.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (asked.out / "embedding.md").write_text(_markdown(record), encoding="utf-8")
    print(_markdown(record))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads, one table row each")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--quick", action="store_true", help="one round of few tiles: tries the rows, measures little")
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds = 1
    if min(asked.rounds, *asked.threads) < 1:
        parser.error("--rounds and --threads: must be at least 1")
    return asked


def _measure(case: Case, threads: int, asked: argparse.Namespace) -> Row:
    os.sched_setaffinity(0, pick_cpus(threads) if asked.device == "cpu" else os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    n_tiles = 64 if asked.quick else case.n_tiles
    encoder = load_encoder(f"random:{case.backbone}:{case.size_px}").to(asked.device)
    with tempfile.TemporaryDirectory() as folder:
        store = _make_store(Path(folder), n_tiles, case.stored_px)
        images = _prepare(store, case.size_px).to(asked.device)
        contenders: dict[str, Callable[[], None]] = {
            f"bare, batch {batch}": _bare(encoder, images, batch, asked.precision) for batch in BATCHES
        }
        contenders[EMBED] = lambda: _embed(store, encoder, asked)
        turns = _race(contenders, n_tiles, asked.rounds)
    rates, cpu_rates = (
        {name: statistics.median(turn[kind] for turn in of) for name, of in turns.items()} for kind in (0, 1)
    )
    about = {**case._asdict(), "n_tiles": n_tiles, "threads": threads}
    return {**about, "tiles_per_s": rates, "share": _share(rates), "cpu_share": _share(cpu_rates), "rounds": turns}


def _share(rates: dict[str, float]) -> float:
    return rates[EMBED] / max(rate for name, rate in rates.items() if name != EMBED)


def _race(contenders: dict[str, Callable[[], None]], n_tiles: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return tiles per second and per CPU second, round by round."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(-1, rounds):  # the first warms caches and allocators and does not count
        for name in list(contenders)[:: 1 if turn % 2 else -1]:
            start, cpu_start = time.perf_counter(), time.process_time()
            contenders[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 0:
                spent = time.perf_counter() - start, time.process_time() - cpu_start
                rates[name].append((n_tiles / spent[0], n_tiles / spent[1]))
    return rates


def _bare(encoder: Encoder, images: Tensor, batch: int, precision: str) -> Callable[[], None]:
    half = encoder.device.type == "cuda" and precision != "fp32"
    context = torch.autocast("cuda", dtype=torch.bfloat16) if half else contextlib.nullcontext()

    def run() -> None:
        with torch.inference_mode(), context:
            for part in torch.split(images, batch):
                encoder(part)

    return run


def _embed(store: TileStore, encoder: Encoder, asked: argparse.Namespace) -> None:
    embed_store(store, encoder, name="measured", device=asked.device, precision=asked.precision, existing="replace")


def _make_store(folder: Path, n_tiles: int, size_px: int) -> TileStore:
    """Make a store of noise; no time here depends on what is seen."""
    path = folder / "noise.tiles.zarr"
    make_store(path, n_tiles)
    attributes = json.loads((path / "zarr.json").read_text())
    attributes["attributes"]["simtriplet"]["tiling"] |= {"size_px": size_px, "stride_px": size_px}
    (path / "zarr.json").write_text(json.dumps(attributes))
    pixels = np.random.default_rng(0).integers(0, 256, (n_tiles, size_px, size_px, 3), dtype=np.uint8)
    array = path / "tiles" / "images"
    for shard, start in enumerate(range(0, n_tiles, TILES_PER_SHARD)):
        write_image_shard(array, shard, [tile.tobytes() for tile in pixels[start : start + TILES_PER_SHARD]])
    write_image_metadata(array, n_tiles=n_tiles, size_px=size_px, codec=NoneCodec())
    return TileStore(path)


def _prepare(store: TileStore, size_px: int) -> Tensor:
    pixels = torch.from_numpy(store.images.read(np.arange(len(store)))).permute(0, 3, 1, 2).float() / 255
    resized = torch.nn.functional.interpolate(pixels, size=(size_px, size_px), mode="bilinear", antialias=True)
    return normalise(resized.contiguous(), ViewSettings())


def _markdown(record: dict[str, Any]) -> str:
    machine = record["machine"]
    hardware = f"{machine['cpu']}, {machine['memory_gb']} GB, {machine['system']}, Python {machine['python']}"
    about = [
        "# Embedding benchmark",
        "",
        f"{hardware}, {machine['date']}, load {machine['load_at_start']} at the start. torch {record['torch']}.",
        f"Tiles per second, medians of {record['rounds']} rounds in which the contenders take turns.",
        "CPU time leaves out what other programs on the machine took.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        "|" + "---|" * len(HEADINGS),
    ]
    return "\n".join([*about, *map(_line, record["rows"])]) + "\n"


def _line(row: Row) -> str:
    rates = row["tiles_per_s"]
    cells: Sequence[str] = (
        f"{row['backbone']}, {row['size_px']} px",
        f"{row['n_tiles']} of {row['stored_px']} px",
        str(row["threads"]),
        *(f"{rate:,.1f}" for rate in rates.values()),
        f"{row['share']:.0%}",
        f"{row['cpu_share']:.0%}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
