"""The work of the study: encoders learnt without labels, networks trained with them, each in a process of its own."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from study_data import StudyData, StudyTiles, fold_of_patients
from study_plan import METHODS, PAIRINGS, Run, Scale, SupervisedRun

from simtriplet.evaluate.label_curve import CurveSettings
from simtriplet.evaluate.label_efficiency import LearnFold, PrepareFold, curve_of_tiles
from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.splits import Fold
from simtriplet.evaluate.supervised import train_classifier
from simtriplet.evaluate.supervised_settings import SupervisedSettings
from simtriplet.pretrain.encoder import Encoder, load_encoder
from simtriplet.pretrain.settings import PretrainSettings, load_settings
from simtriplet.pretrain.trainer import pretrain
from simtriplet.wsi.errors import TrainingError

_EMBED_BATCH = 256
_SUPERVISED_EPOCHS = 10
_logger = logging.getLogger("study")
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Work:
    """What every run needs to know.

    Attributes:
        source: folder of GlaS.
        out: folder of the study at this scale.
        scale: how large it is.
        patients: test patients of each fold.
        overrides: settings of pilots.
        deadline: time.time() after which no run begins.
    """

    source: Path
    out: Path
    scale: Scale
    patients: tuple[tuple[str, ...], ...]
    overrides: tuple[str, ...]
    deadline: float

    def result_of(self, run: Run | SupervisedRun) -> Path:
        """Return the file that a finished run leaves."""
        folder, suffix = ("features", "npy") if isinstance(run, Run) else ("supervised", "npz")
        return self.out / folder / f"{run.name}.{suffix}"

    def record_of(self, run: Run) -> Path:
        """Return the file with the numbers of a finished run."""
        return self.out / "features" / f"{run.name}.json"


def do_all(runs: Iterable[Run | SupervisedRun], work: Work, *, jobs: int) -> None:
    """Do the runs that are not done, so many at a time, in order, until the deadline.

    Raises:
        Whatever a run raised, once those under way have ended.
    """
    missing = [run for run in runs if not work.result_of(run).exists()]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_begin, initargs=(threads,)) as pool:
        waiting = {pool.submit(_do, run, work): run for run in missing}
        for done in as_completed(waiting):
            try:
                said = done.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            _logger.info("%s: %s", waiting[done].name, said or "left for the next time")


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    logging.getLogger("simtriplet").setLevel(logging.WARNING)


def _do(run: Run | SupervisedRun, work: Work) -> str:
    """Do one run and say what came out; nothing after the deadline."""
    if time.time() > work.deadline:
        return ""
    start = time.monotonic()
    data = StudyData(work.source, work.out / "tiles")
    said = _learn(run, work, data) if isinstance(run, Run) else _supervise(run, work, data)
    return f"{said}, {(time.monotonic() - start) / 60:.1f} minutes"


def _learn(run: Run, work: Work, data: StudyData) -> str:
    """Train one encoder without the fold's patients and keep its features of all evaluated tiles."""
    tiles = data.tiles(PAIRINGS[run.pairing].tiles)
    folder = work.out / "runs" / run.name
    begun = (folder / "checkpoints" / "last.pt").exists()
    settings = run_settings(run, work.scale, work.overrides)
    result = pretrain(tiles.stores, settings, folder, exclude_patients=work.patients[run.fold], resume=begun)
    if not result.finished:
        raise TrainingError(f"run '{folder}': did not finish; begin it again")
    record = {"loss": result.loss, "z_std": result.z_std, "steps": result.steps, "tiles": result.n_tiles}
    file = work.result_of(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    work.record_of(run).write_text(json.dumps(record) + "\n", encoding="utf-8")
    keep_features(load_encoder(folder), tiles, file)
    return f"loss {result.loss:.4f}, z_std {result.z_std:.4f}"


def run_settings(run: Run, scale: Scale, overrides: Sequence[str] = ()) -> PretrainSettings:
    """Return the settings of a run."""
    method = METHODS[run.method]
    steps = scale.steps * method.times_steps
    own = [f"run.seed={run.fold}", f"run.max_steps={steps}", f"data.neighbours={run.pairing}"]
    quiet = ["run.monitor_every_epochs=0", "run.tensorboard=off", "run.log_every_steps=20", "run.epochs=1000"]
    return load_settings(preset=scale.preset, overrides=[*scale.base, *method.overrides, *own, *quiet, *overrides])


def keep_features(encoder: Encoder, tiles: StudyTiles, file: Path) -> None:
    """Write (m, d) float32 features of all evaluated tiles."""
    pixels = tiles.read_evaluated()
    parts = [encoder.embed(pixels[start : start + _EMBED_BATCH]) for start in range(0, len(pixels), _EMBED_BATCH)]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    with partial.open("wb") as opened:
        np.save(opened, torch.cat(parts).float().cpu().numpy())
    partial.replace(file)


def _supervise(run: SupervisedRun, work: Work, data: StudyData) -> str:
    """Train the fold's networks with labels and keep what they say of the test tiles.

    The labels of all folds are drawn, as the report draws them, and networks trained for this fold alone.
    """
    tiles = data.tiles("60um")
    labelled, _ = tiles.labelled(run.task)
    folds = [fold_of_patients(labelled, names) for names in work.patients]
    scale = work.scale
    settings = SupervisedSettings(
        backbone=_setting(scale, "model.backbone"),
        image_size_px=int(_setting(scale, "data.image_size_px")),
        epochs=_SUPERVISED_EPOCHS,
        min_steps=scale.supervised_steps,
    )
    said: dict[str, npt.NDArray[np.float64]] = {}

    def prepare(all_tiles: LabelledTiles, fold: Fold, _: CurveSettings) -> LearnFold:
        def learn(places: _Ints, seed: int) -> npt.NDArray[np.float64]:
            if fold is not folds[run.fold]:
                return np.full((len(fold.test), len(all_tiles.classes)), 1 / len(all_tiles.classes))
            classifier = train_classifier(tiles.stores, all_tiles, places, replace(settings, seed=seed))
            found = classifier.probabilities(tiles.stores, all_tiles, fold.test)
            said[_key(fold, places)] = found
            return found

        return learn

    curve_of_tiles(labelled, curve_settings(scale), prepare, features="", encoder={}, label_source="GlaS", folds=folds)
    file = work.result_of(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    with partial.open("wb") as opened:
        np.savez(opened, **said)
    partial.replace(file)
    return f"{len(said)} networks"


def recall_supervised(files: Sequence[Path]) -> PrepareFold:
    """Return what answers as the networks of finished runs did."""
    said: dict[str, npt.NDArray[np.float64]] = {}
    for file in files:
        with np.load(file) as kept:
            said.update({key: kept[key] for key in kept.files})

    def prepare(_: LabelledTiles, fold: Fold, __: CurveSettings) -> Callable[[_Ints, int], npt.NDArray[np.float64]]:
        return lambda places, _seed: said[_key(fold, places)]

    return prepare


def curve_settings(scale: Scale, shares: Sequence[float] = (0.01, 0.1, 0.25, 1.0)) -> CurveSettings:
    """Return how labels are drawn: the same ones for every encoder and network."""
    return CurveSettings(kind="share", amounts=tuple(shares), draws=scale.draws)


def _key(fold: Fold, places: _Ints) -> str:
    """Name a network by what it learnt from and was tested on."""
    return hashlib.sha256(fold.test.tobytes() + b"|" + places.tobytes()).hexdigest()


def _setting(scale: Scale, key: str) -> str:
    return next(line.split("=", 1)[1] for line in scale.base if line.startswith(f"{key}="))
