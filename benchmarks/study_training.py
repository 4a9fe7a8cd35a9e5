"""The work of the study: encoders learnt without labels, networks trained with them, each in a process of its own."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from study_data import StudyData, StudyTiles, fold_of_patients
from study_plan import MAIN_PAIRING, METHODS, NETWORKS, PAIRINGS, Heads, Run, Scale, SupervisedRun

from simtriplet.evaluate.few_label_head import learn_linearly
from simtriplet.evaluate.label_curve import DEFAULT_AMOUNTS, CurveSettings
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
_Floats = npt.NDArray[np.float64]


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

    def result_of(self, run: Run | SupervisedRun | Heads) -> Path:
        """Return the file that is there when a run is done: features of tiles, or answers for test tiles."""
        if isinstance(run, Run):
            return self.out / "features" / f"{run.name}.npy"
        return self.out / ("heads" if isinstance(run, Heads) else "supervised") / f"{run.name}.npz"

    def record_of(self, run: Run) -> Path:
        """Return the file with the numbers of a finished run."""
        return self.out / "features" / f"{run.name}.json"


def do_all(runs: Iterable[Run | SupervisedRun], work: Work, *, jobs: int) -> int:
    """Do the runs that are not done, so many at a time, in order, until the deadline; return how many failed."""
    missing = {run.name: (_do, run) for run in runs if not work.result_of(run).exists()}
    return _do_each(missing, work, jobs)


def fit_all(wanted: Iterable[Heads], work: Work, *, jobs: int) -> int:
    """Fit the heads that are not fitted, so many at a time; return how many failed."""
    missing = {heads.name: (fit_heads_of, heads) for heads in wanted if not work.result_of(heads).exists()}
    return _do_each(missing, work, jobs)


def _do_each(tasks: Mapping[str, tuple[Callable[[Any, Work], str], Any]], work: Work, jobs: int) -> int:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    failed = 0
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_begin, initargs=(threads,)) as pool:
        waiting = {pool.submit(task, what, work): name for name, (task, what) in tasks.items()}
        try:
            for done in as_completed(waiting):
                error = done.exception()
                if isinstance(error, KeyboardInterrupt):
                    raise error
                failed += error is not None
                said = f"failed: {error}" if error else done.result() or "left for the next time"
                _logger.info("%s: %s", waiting[done], said)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return failed


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
    given = ["data.balance=slide", *scale.base, *method.views, *method.overrides, *own, *quiet, *overrides]
    return load_settings(preset="paper", overrides=given)


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
    """Train the fold's networks with labels and keep what they say of the test tiles."""
    tiles, scale = data.tiles("60um"), work.scale
    labelled, _ = tiles.labelled(run.task)
    start = NETWORKS[run.kind].start
    encoder = load_encoder(work.out / "runs" / Run(start, MAIN_PAIRING, run.fold).name) if start else None
    settings = SupervisedSettings(
        backbone=_setting(scale, "model.backbone"),
        image_size_px=int(_setting(scale, "data.image_size_px")),
        epochs=_SUPERVISED_EPOCHS,
        min_steps=scale.supervised_steps,
    )

    def prepare(all_tiles: LabelledTiles, fold: Fold, _: CurveSettings) -> LearnFold:
        def learn(places: _Ints, seed: int) -> _Floats:
            drawn = replace(settings, seed=seed)
            classifier = train_classifier(tiles.stores, all_tiles, places, drawn, encoder=encoder)
            return classifier.probabilities(tiles.stores, all_tiles, fold.test)

        return learn

    return f"{_keep_answers(labelled, run.fold, prepare, work, work.result_of(run))} networks"


def fit_heads_of(heads: Heads, work: Work) -> str:
    """Fit the heads on frozen features and keep what they say of the test tiles."""
    data = StudyData(work.source, work.out / "tiles")
    labelled, places = data.tiles(heads.tiles).labelled(heads.task)
    features = np.asarray(np.load(work.out / "features" / f"{heads.encoder}.npy"), np.float32)[places]
    own = replace(labelled, features=features)
    return f"{_keep_answers(own, heads.fold, learn_linearly, work, work.result_of(heads))} heads"


def _keep_answers(tiles: LabelledTiles, number: int, learn: PrepareFold, work: Work, file: Path) -> int:
    """Learn from every draw of labels of one fold and write the answers; return how many there are.

    The labels of all folds are drawn, as the report draws them, and learnt from in this fold alone.
    """
    folds = [fold_of_patients(tiles, names) for names in work.patients]
    said: dict[str, _Floats] = {}

    def prepare(all_tiles: LabelledTiles, fold: Fold, settings: CurveSettings) -> LearnFold:
        own = learn(all_tiles, fold, settings) if fold is folds[number] else None

        def answer(places: _Ints, seed: int) -> _Floats:
            if own is None:
                return np.full((len(fold.test), len(all_tiles.classes)), 1 / len(all_tiles.classes))
            said[_key(fold, places)] = own(places, seed)
            return said[_key(fold, places)]

        return answer

    curve_of_tiles(tiles, curve_settings(work.scale), prepare, features="", encoder={}, label_source="", folds=folds)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    with partial.open("wb") as opened:
        np.savez(opened, **said)
    partial.replace(file)
    return len(said)


def recall_answers(files: Sequence[Path]) -> PrepareFold:
    """Return what answers as the heads or networks did that left these files, one for each fold."""
    said: dict[str, _Floats] = {}
    for file in files:
        with np.load(file) as kept:
            said.update({key: kept[key] for key in kept.files})

    def prepare(_: LabelledTiles, fold: Fold, __: CurveSettings) -> LearnFold:
        return lambda places, _seed: said[_key(fold, places)]

    return prepare


def curve_settings(scale: Scale) -> CurveSettings:
    """Return how labels are drawn: the same ones for every encoder and network."""
    return CurveSettings(kind="share", amounts=DEFAULT_AMOUNTS["share"], draws=scale.draws)


def _key(fold: Fold, places: _Ints) -> str:
    """Name a network by what it learnt from and was tested on."""
    return hashlib.sha256(fold.test.tobytes() + b"|" + places.tobytes()).hexdigest()


def _setting(scale: Scale, key: str) -> str:
    return next(line.split("=", 1)[1] for line in scale.base if line.startswith(f"{key}="))
