"""Measure how fast the trainer trains: the whole step, with neighbours and views, against the same step on ready tensors.

    python benchmarks/training.py --out FOLDER [--device auto|cpu|cuda] [--rounds 7] [--quick]

Both kinds of step take turns in one process, and of each the median of the rounds counts. The whole step is what a run does, its
log included: every round ends with a report. The step without data trains on a batch of views that lies on the device already, and
logs nothing. Peak memory is what the process held on the GPU, which is all memory it may take where `--limit-gb` caps
it. The stores are drawn here, of noise in the colours of tissue: a GPU that has no slides can run this, and no
arithmetic depends on what a tile shows.
"""

import argparse
import gc
import importlib.metadata
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine

from simtriplet.pretrain.cohort import Cohort
from simtriplet.pretrain.distributed import join_world
from simtriplet.pretrain.optimiser import set_learning_rate
from simtriplet.pretrain.precision import float32_rounding, pick_precision
from simtriplet.pretrain.run_folder import RunFolder
from simtriplet.pretrain.run_parts import RunParts
from simtriplet.pretrain.settings import CompiledPart, PretrainSettings, StorageTier, load_settings
from simtriplet.pretrain.step_log import StepOutcome
from simtriplet.pretrain.tiles import open_tiles
from simtriplet.wsi.codec import make_codec
from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.store import TileStore
from simtriplet.wsi.store_writer import StoreContents, StoreWriter

WARM_UP = 2
"""Rounds that do not count."""
HEADINGS = (
    "backbone",
    "view",
    "batch",
    "tiles",
    "precision",
    "compiled",
    "activations",
    "triplets/s",
    "without data",
    "share",
    "peak GB",
)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table.

    Attributes:
        backbone: name in the backbone registry.
        view_px: side of views and of the stored tiles.
        batch: triplets a step.
        storage: where tiles wait.
        compiled: what goes through torch.compile.
        checkpointing: whether activations are computed twice.
        steps: measured in one round, of either kind.
    """

    backbone: str
    view_px: int
    batch: int
    storage: StorageTier
    compiled: CompiledPart = "off"
    checkpointing: bool = False
    steps: int = 10


COMPILED: tuple[CompiledPart, ...] = ("encoder", "step")
GPU_CASES = (
    *(Case("resnet50", view_px, 128, tier) for view_px in (128, 224) for tier in ("device", "host", "stream")),
    *(Case("resnet50", view_px, 128, "device", part) for view_px in (128, 224) for part in COMPILED),
    *(Case("resnet50", view_px, 128, "device", checkpointing=True) for view_px in (128, 224)),
    *(Case("resnet50", 128, 512, "device", part) for part in ("off", *COMPILED)),
    *(Case("resnet50", 224, 256, "device", part) for part in COMPILED),
)
CPU_CASES = (
    *(Case("resnet18", 64, 64, tier, steps=2) for tier in ("device", "stream")),
    *(Case("resnet50", 128, 16, tier, steps=1) for tier in ("device", "stream")),
    *(Case("resnet18", 64, 64, "device", part, steps=2) for part in COMPILED),
)


def main() -> None:
    """Measure what the command line asks for; print the table and leave it in the output folder."""
    asked = _parse()
    device = torch.device(asked.device)
    machine = describe_machine()
    if asked.limit_gb is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(asked.limit_gb * 1e9 / total, device)
    cases = CPU_CASES if device.type == "cpu" else GPU_CASES
    if asked.quick:
        cases = tuple(
            replace(case, backbone="resnet18", view_px=32, batch=8, steps=2) for case in cases[:2] + cases[-1:]
        )
    asked.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in cases:
        rows.append(_measure(case, device, asked.out, rounds=asked.rounds, n_tiles=asked.tiles))
        print(rows[-1], file=sys.stderr)
        record = {**machine, "device": _name(device), "limit_gb": asked.limit_gb, "rounds": asked.rounds}
        record["libraries"] = {name: importlib.metadata.version(name) for name in ("torch", "torchvision")}
        (asked.out / "training.json").write_text(json.dumps({"machine": record, "rows": rows}, indent=2) + "\n")
        (asked.out / "training.md").write_text(_markdown(record, rows), encoding="utf-8")
    for folder in ("stores", "run"):
        shutil.rmtree(asked.out / folder)
    print((asked.out / "training.md").read_text(encoding="utf-8"))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results and stores (removed again); 2 GB")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--rounds", type=int, default=7, help="of each kind of step  [default: %(default)s]")
    parser.add_argument("--tiles", type=int, default=8192, help="in the store  [default: %(default)s]")
    parser.add_argument("--limit-gb", type=float, help="cap the GPU memory of this process, 10^9 bytes")
    parser.add_argument("--quick", action="store_true", help="tiny: tries the rows, measures nothing")
    asked = parser.parse_args()
    if asked.device == "auto":
        asked.device = "cuda" if torch.cuda.is_available() else "cpu"
    if asked.limit_gb is not None and asked.device == "cpu":
        parser.error("--limit-gb: caps the memory of a GPU; leave it out with --device cpu")
    if asked.quick:
        asked.rounds, asked.tiles = 1, 64
    if asked.rounds < 1:
        parser.error(f"--rounds {asked.rounds}: must be at least 1")
    return asked


def _measure(case: Case, device: torch.device, folder: Path, *, rounds: int, n_tiles: int) -> dict[str, Any]:
    """Return a case with its rates, in triplets a second, and its peak memory; without them where the memory is too small."""
    settings = _settings(case, device)
    store = _make_store(folder / "stores" / f"tiles{case.view_px}.tiles.zarr", n_tiles, case.view_px)
    cohort = Cohort([store], neighbours=settings.data.neighbours)
    with ExitStack() as stack:
        world = stack.enter_context(join_world(settings.run.device))
        stack.enter_context(float32_rounding(settings.run.tf32, device))
        source = stack.enter_context(open_tiles(cohort.numbering, device=device, tier=case.storage))
        (folder / "run").mkdir(exist_ok=True)
        _forget_memory(device)
        try:
            steps = _Steps(settings, cohort, source, RunFolder(folder / "run"), device, world, None)
            with closing(steps.records):
                measured = _take_turns(steps, case, device, rounds)
        except torch.OutOfMemoryError:
            measured = {"triplets_per_s": None, "without_data": None, "share": None}
    peak = torch.cuda.max_memory_reserved(device) / 1e9 if device.type == "cuda" else None
    return {**asdict(case), **measured, "peak_gb": peak, "precision": pick_precision(settings.run.precision, device)}


def _take_turns(steps: "_Steps", case: Case, device: torch.device, rounds: int) -> dict[str, float | None]:
    ready = steps.batches.make(0, is_last=False).views
    kinds: dict[str, Callable[[int], object]] = {
        "triplets_per_s": steps.take,
        "without_data": lambda step: steps.update(ready, measure_gradient=False),
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    steps.model.train()
    for number in range(rounds + WARM_UP):
        for name, kind in kinds.items():
            rate = _rate(kind, number * case.steps, case, device)
            if (
                number >= WARM_UP
            ):  # until then kernels are picked, code compiled, CUDA graphs recorded and caches filled
                rates[name].append(rate)
    shares = [whole / bare for whole, bare in zip(*rates.values(), strict=True)]
    return {**{name: statistics.median(values) for name, values in rates.items()}, "share": statistics.median(shares)}


class _Steps(RunParts):
    """The parts of a run, and its steps without what ends an epoch: measures of the features and checkpoints."""

    def take(self, step: int) -> None:
        """Do all of a step, and report where it is time to."""
        lr = set_learning_rate(self.network.optimiser, self.schedule, step)
        batch = self.batches.make(step, is_last=False)
        reports = self.times.reports(step + 1)
        self.log.add(self.update(batch.views, measure_gradient=reports), lr=lr, waited_s=batch.waited_s)
        if reports:
            report, _ = self.log.report(step=step + 1, epoch=self.times.epochs_begun(step + 1))
            self.records.add_step(report)

    def update(self, views: torch.Tensor, *, measure_gradient: bool) -> StepOutcome:
        """Forward, loss, backward, update."""
        return self.network.updater.step(
            views, lambda outputs, _: self.objective(outputs), measure_gradient=measure_gradient
        )


def _settings(case: Case, device: torch.device) -> PretrainSettings:
    return load_settings(
        preset="paper",
        overrides=[
            f"model.backbone={case.backbone}",
            f"data.image_size_px={case.view_px}",
            f"data.storage={case.storage}",
            f"run.batch_size={case.batch}",
            f"run.compile={case.compiled}",
            f"run.activation_checkpointing={str(case.checkpointing).lower()}",
            f"run.device={device.type}",
            f"run.log_every_steps={case.steps}",  # seldom in a real run: 50
            "run.tensorboard=off",
        ],
    )


def _rate(step: Callable[[int], None], first: int, case: Case, device: torch.device) -> float:
    _wait_for(device)
    start = time.perf_counter()
    for number in range(first, first + case.steps):
        step(number)
    _wait_for(device)
    return case.steps * case.batch / (time.perf_counter() - start)


def _forget_memory(device: torch.device) -> None:
    """Let the peak be that of the next case alone."""
    if device.type == "cuda":
        torch.compiler.reset()  # and with the code the memory of its CUDA graphs
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _make_store(path: Path, n_tiles: int, size_px: int) -> TileStore:
    """Write an indexed store of a square of tiles, unless it is there."""
    if path.exists():
        return TileStore(path)
    side = round(n_tiles**0.5)
    row, col = (axis.ravel() for axis in np.mgrid[0:side, 0:side])
    rng = np.random.default_rng(0)
    contents = StoreContents(
        slide={
            "id": path.name.partition(".")[0],
            "patient_id": None,
            "mpp": 0.5,
            "width": side * size_px,
            "height": side * size_px,
        },
        tiling={"mpp": 0.5, "size_px": size_px, "stride_px": size_px},
        tissue={"detector": "all"},
        base_xy=np.column_stack([col, row]).astype(np.int64) * size_px,
        row=row,
        col=col,
        tissue_id=np.zeros(len(row), np.int32),
        tissue_fraction=np.ones(len(row), np.float32),
        thumbnail=np.full((side, side, 3), 200, np.uint8),
        thumbnail_downsample=float(size_px),
        tissue_mask=np.ones((side, side), np.uint16),
    )
    with StoreWriter(path, size_px=size_px, codec=make_codec("none")) as writer:
        for shard, start in enumerate(range(0, len(row), 64)):
            count = min(64, len(row) - start)
            tiles = rng.integers((150, 90, 150), (230, 190, 220), (count, size_px, size_px, 3), dtype=np.uint8)
            writer.write_shard(shard, list(tiles))
        index_store(writer.finish(contents))
    return TileStore(path)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def _markdown(record: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    where = f"{record['date']}, {record['device']}, " + ", ".join(f"{k} {v}" for k, v in record["libraries"].items())
    cap = "" if record["limit_gb"] is None else f", memory capped at {record['limit_gb']:g} GB"
    lines = [f"{where}{cap}. Medians of {record['rounds']} rounds.", "", f"| {' | '.join(HEADINGS)} |"]
    lines.append("|" + "---|" * len(HEADINGS))
    for row in rows:
        what = [
            row["backbone"],
            f"{row['view_px']} px",
            row["batch"],
            row["storage"],
            row["precision"],
            row["compiled"],
        ]
        what.append("twice" if row["checkpointing"] else "once")
        peak = "" if row["peak_gb"] is None else f"{row['peak_gb']:.1f}"
        rates = ["out of memory", "", ""]
        if row["share"] is not None:
            rates = [f"{row['triplets_per_s']:,.1f}", f"{row['without_data']:,.1f}", f"{row['share']:.2f}"]
        lines.append(f"| {' | '.join(map(str, [*what, *rates, peak]))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
