"""The study: does the neighbour help, by how much, and where? Trains, embeds and measures; docs/study.md tells what came out.

    python benchmarks/study.py --data GLAS --out FOLDER [--scale cpu|gpu|tiny] [--minutes N] [--folds N] [--report-only]

GLAS is the unpacked archive of the GlaS challenge (Grade.csv and BMP files), or a folder of slides/, annotations/ and
labels.csv. Runs begin in a fixed order; what is finished is kept, so that the same command goes on where it was stopped,
and what is there so far is reported.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

# threads that wait in a loop take the cores from those that work, where the machine is shared
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from study_data import StudyData, kept_folds
from study_glas import find_glas
from study_plan import PAIRINGS, RANDOM, SCALES, Run, ScaleName, plan_runs
from study_results import write_study
from study_training import Work, do_all, keep_features, run_settings

from simtriplet.pretrain.encoder import load_encoder


def main() -> int:
    """Do what is missing, within the minutes given, and report; 1 if a run failed."""
    asked = _parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("simtriplet").setLevel(logging.WARNING)
    scale = SCALES[asked.scale]
    out: Path = asked.out.resolve() / asked.scale
    source = find_glas(asked.data.resolve(), out)
    data = StudyData(source, out / "tiles")
    patients = kept_folds(out / "folds.json", data.tiles("60um").labelled("diagnosis")[0], scale.folds)
    deadline = time.time() + 60 * asked.minutes
    work = Work(source, out, scale, patients, tuple(asked.overrides), deadline)
    runs = [run for run in plan_runs(scale) if run.fold < asked.folds]
    failed = 0
    if not asked.report_only:
        for name in {PAIRINGS[pairing].tiles for pairing in scale.pairings}:
            data.tiles(name)  # cut and indexed once, before several processes want them
        _keep_random(work, data)
        failed = do_all(runs, work, jobs=asked.jobs)
    failed += write_study(work, data, jobs=asked.jobs)
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("SIMTRIPLET_DATA")
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--data", type=Path, default=Path(default) / "glas" if default else None, required=not default)
    parser.add_argument("--out", type=Path, required=True, help="folder for tiles, runs and results")
    names: list[ScaleName] = list(SCALES)
    parser.add_argument("--scale", choices=names, default="gpu" if has_gpu else "cpu")
    jobs = 1 if has_gpu else os.cpu_count() or 1
    parser.add_argument("--jobs", type=int, default=jobs, help="runs at a time, the cores shared between them")
    parser.add_argument("--minutes", type=float, default=1e7, help="begin no run after so long")
    parser.add_argument("--folds", type=int, default=99, help="only the first so many folds of patients")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="for pilots")
    return parser.parse_args()


def _keep_random(work: Work, data: StudyData) -> None:
    """Keep the features of random weights, once: what an encoder that learnt nothing gives."""
    file = work.out / "features" / f"{RANDOM}.npy"
    if not file.exists():
        settings = run_settings(next(run for run in plan_runs(work.scale) if isinstance(run, Run)), work.scale)
        source = f"random:{settings.model.backbone}:{settings.data.image_size_px}"
        keep_features(load_encoder(source), data.tiles("60um"), file)


if __name__ == "__main__":
    sys.exit(main())
