"""The study: does the neighbour help, by how much, and where? Trains, embeds and measures; docs/study.md tells what came out.

    python benchmarks/study.py --data GLAS --out FOLDER [--scale cpu|gpu] [--minutes N] [--folds N] [--report-only]

GLAS is the folder of the GlaS slides: slides/, annotations/, labels.csv. Runs are done in a fixed order, one by one; what is
finished is kept, so that the same command goes on where it was stopped, and what is there so far is reported.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

# threads that wait in a loop take the cores from those that work, where the machine is shared
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from study_data import StudyData, StudyTiles, study_folds
from study_plan import METHODS, PAIRINGS, SCALES, Run, Scale, ScaleName, plan_runs
from study_results import RANDOM, write_study

from simtriplet.pretrain.encoder import Encoder, load_encoder
from simtriplet.pretrain.settings import PretrainSettings, load_settings
from simtriplet.pretrain.trainer import pretrain
from simtriplet.wsi.errors import TrainingError

_EMBED_BATCH = 256
_logger = logging.getLogger("study")


def main() -> None:
    """Do what is missing, within the minutes given, and report."""
    asked = _parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("simtriplet").setLevel(logging.WARNING)
    scale = SCALES[asked.scale]
    out: Path = asked.out.resolve() / asked.scale
    data = StudyData(asked.data, out / "tiles")
    patients = study_folds(data.tiles("60um").labelled("diagnosis")[0], scale.folds)
    deadline = time.monotonic() + 60 * asked.minutes
    runs = [run for run in plan_runs(scale) if run.fold < asked.folds]
    if not asked.report_only:
        _keep_random(scale, data, out)
        for run in runs:
            if not _is_done(run, out):
                if time.monotonic() > deadline:
                    _logger.warning("out of time: the same command goes on")
                    break
                _do(run, scale, data, out, patients[run.fold], asked.overrides)
    write_study(out, scale, data, [run for run in plan_runs(scale) if _is_done(run, out)], patients)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("SIMTRIPLET_DATA")
    parser.add_argument("--data", type=Path, default=Path(default) / "glas" if default else None, required=not default)
    parser.add_argument("--out", type=Path, required=True, help="folder for tiles, runs and results")
    names: list[ScaleName] = list(SCALES)
    parser.add_argument("--scale", choices=names, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so long")
    parser.add_argument("--folds", type=int, default=99, help="only the first so many folds of patients")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="for pilots")
    return parser.parse_args()


def _is_done(run: Run, out: Path) -> bool:
    return _features_file(run, out).exists()


def _keep_random(scale: Scale, data: StudyData, out: Path) -> None:
    """Keep the features of random weights, once: what an encoder that learnt nothing gives."""
    file = out / "features" / f"{RANDOM}.npy"
    if not file.exists():
        settings = run_settings(plan_runs(scale)[0], scale, [])
        source = f"random:{settings.model.backbone}:{settings.data.image_size_px}"
        keep_features(load_encoder(source), data.tiles("60um"), file)


def _features_file(run: Run, out: Path) -> Path:
    return out / "features" / f"{run.name}.npy"


def _do(run: Run, scale: Scale, data: StudyData, out: Path, left_out: tuple[str, ...], overrides: list[str]) -> None:
    """Train one encoder without the fold's patients and keep its features of all evaluated tiles."""
    start = time.monotonic()
    tiles = data.tiles(PAIRINGS[run.pairing].tiles)
    folder = out / "runs" / run.name
    begun = (folder / "checkpoints" / "last.pt").exists()
    settings = run_settings(run, scale, overrides)
    result = pretrain(tiles.stores, settings, folder, exclude_patients=left_out, resume=begun)
    if not result.finished:
        raise TrainingError(f"run '{folder}': did not finish; begin it again")
    keep_features(load_encoder(folder), tiles, _features_file(run, out))
    minutes = (time.monotonic() - start) / 60
    _logger.info("%s: loss %.4f, z_std %.4f, %.1f minutes", run.name, result.loss, result.z_std, minutes)


def run_settings(run: Run, scale: Scale, overrides: list[str]) -> PretrainSettings:
    """Return the settings of a run."""
    own = [f"run.seed={run.fold}", f"run.max_steps={scale.steps}", f"data.neighbours={run.pairing}"]
    quiet = ["run.monitor_every_epochs=0", "run.tensorboard=off", "run.log_every_steps=20", "run.epochs=1000"]
    return load_settings(
        preset=scale.preset, overrides=[*scale.base, *METHODS[run.method].overrides, *own, *quiet, *overrides]
    )


def keep_features(encoder: Encoder, tiles: StudyTiles, file: Path) -> None:
    """Write (m, d) float32 features of all evaluated tiles."""
    pixels = tiles.read_evaluated()
    parts = [encoder.embed(pixels[start : start + _EMBED_BATCH]) for start in range(0, len(pixels), _EMBED_BATCH)]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    with partial.open("wb") as opened:
        np.save(opened, torch.cat(parts).float().cpu().numpy())
    partial.replace(file)


if __name__ == "__main__":
    main()
