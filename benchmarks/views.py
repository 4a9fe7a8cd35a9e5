"""Measure how fast tiles become views: this program's and torchvision's v2 transforms, on one thread, round about.

    python benchmarks/views.py --out FOLDER [--sizes 128 224] [--rounds 7] [--quick]

Both make the views of the preset `paper` (SimSiam's) from uint8 tiles of the views' size: crop and resize, flip, colour
jitter, grey, blur, normalise. torchvision's take one tile after the other, for on a batch they would draw one set of
parameters for all of it.
"""

import argparse
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from torch import Tensor
from torchvision.transforms import v2

from simtriplet.pretrain.resampling import blur_radius
from simtriplet.pretrain.settings import ViewSettings, load_settings
from simtriplet.pretrain.views import ViewMaker

Row = dict[str, Any]
Maker = Callable[[Tensor], Tensor]
PEER, OURS = "torchvision v2", "simtriplet"
HEADINGS = ("views", "program", "views / CPU s", "least..most", "x torchvision v2")
LEGEND = """One thread. Views per second of CPU time, the median of the rounds; in each round every program takes its turn on the
same tiles. torchvision's tiles are (3, s, s) uint8 tensors, made beforehand, and its blur has a kernel as wide as this
program's widest."""


def main() -> None:
    """Measure what the command line asks for; print the table and leave it in the output folder."""
    asked = _parse()
    torch.set_num_threads(1)
    machine = describe_machine()
    rows = [row for size in asked.sizes for row in _compare(size, asked.views, asked.rounds)]
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "torchvision")}
    record = {
        "machine": machine,
        "libraries": libraries,
        "rounds": asked.rounds,
        "views_per_round": asked.views,
        "rows": rows,
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "views.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (asked.out / "views.md").write_text(_markdown(record), encoding="utf-8")
    print(_markdown(record))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 224], help="sides of tile and view, pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--views", type=int, default=384, help="in a round: 128 triplets")
    parser.add_argument("--quick", action="store_true", help="one round of 32 views: tries the rows, measures little")
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.views = 1, 32
    if min(asked.rounds, asked.views) < 1:
        parser.error("--rounds and --views: must be at least 1")
    return asked


def _compare(size: int, n_views: int, rounds: int) -> list[Row]:
    tiles = _draw_tiles(n_views, size)
    makers = _makers(size)
    channels_first = tiles.permute(0, 3, 1, 2).contiguous()
    inputs = {name: channels_first if name == PEER else tiles for name in makers}
    speeds: dict[str, list[float]] = {name: [] for name in makers}
    for turn in range(-1, rounds):  # the first warms caches and allocators and does not count
        for name in list(makers)[:: 1 if turn % 2 else -1]:
            start = time.process_time()
            made = makers[name](inputs[name])
            if turn >= 0:
                speeds[name].append(len(made) / (time.process_time() - start))
    peer = statistics.median(speeds[PEER])
    return [_row(name, size, of_name, peer) for name, of_name in speeds.items()]


def _makers(size: int) -> dict[str, Maker]:
    """Return the contenders, each from (n, ...) uint8 tiles to (n, 3, s, s) views."""
    paper, pathology = (load_settings(preset=name).views for name in ("paper", "pathology"))
    return {
        PEER: _torchvision(paper, size),
        OURS: _simtriplet(paper, size),
        f"{OURS}, preset pathology": _simtriplet(pathology, size),
    }


def _simtriplet(settings: ViewSettings, size: int) -> Maker:
    maker, generator = ViewMaker(settings, image_size_px=size), torch.Generator().manual_seed(0)
    return lambda tiles: maker(tiles, generator)


def _torchvision(settings: ViewSettings, size: int) -> Maker:
    """Compose the same recipe as torchvision's documentation has it, for uint8 tensors."""
    strengths = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    kernel = 2 * blur_radius(settings.blur_sigma_px[1], size) + 1
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=settings.crop_scale, ratio=settings.crop_ratio, antialias=True),
            v2.RandomHorizontalFlip(settings.horizontal_flip_p),
            v2.RandomApply([v2.ColorJitter(*strengths)], p=settings.jitter_p),
            v2.RandomGrayscale(settings.grey_p),
            v2.RandomApply([v2.GaussianBlur(kernel, settings.blur_sigma_px)], p=settings.blur_p),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(settings.mean, settings.std),
        ]
    )
    return lambda tiles: torch.stack([transform(tile) for tile in tiles])


def _draw_tiles(n: int, size: int) -> Tensor:
    """Draw (n, s, s, 3) uint8 of soft blobs in stained colours, with noise; no time here depends on what is seen."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((n, 2, size // 8, size // 8), dtype=np.float32))
    amounts = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    density = torch.einsum("nshw,sc->nhwc", amounts, torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]]))
    pixels = 255 * 10**-density + torch.from_numpy(rng.normal(0, 4, density.shape).astype(np.float32))
    return pixels.clamp(0, 255).to(torch.uint8)


def _row(name: str, size: int, speeds: list[float], peer: float) -> Row:
    speed = statistics.median(speeds)
    same_work = name in (PEER, OURS)
    return {
        "size_px": size,
        "program": name,
        "views_per_cpu_s": speed,
        "rounds": speeds,
        "to_torchvision": speed / peer if same_work else None,
    }


def _markdown(record: dict[str, Any]) -> str:
    machine = record["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in record["libraries"].items())
    hardware = f"{machine['cpu']}, {machine['memory_gb']} GB, {machine['system']}, Python {machine['python']}"
    about = [
        "# Views benchmark",
        "",
        f"{hardware}, {machine['date']}, load {machine['load_at_start']} at the start. {libraries}.",
        f"{record['rounds']} rounds of {record['views_per_round']} views. {LEGEND}",
        "",
        f"| {' | '.join(HEADINGS)} |",
        "|" + "---|" * len(HEADINGS),
    ]
    return "\n".join([*about, *(_line(row) for row in record["rows"])]) + "\n"


def _line(row: Row) -> str:
    ratio = "" if row["to_torchvision"] is None else f"{row['to_torchvision']:.2f}"
    spread = f"{min(row['rounds']):,.0f}..{max(row['rounds']):,.0f}"
    return f"| {row['size_px']} px | {row['program']} | {row['views_per_cpu_s']:,.0f} | {spread} | {ratio} |"


if __name__ == "__main__":
    main()
