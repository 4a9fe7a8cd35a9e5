"""Measure networks trained with labels on the folds, tiles and metrics of `evaluate_features`, so that they compare."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.embed import encoder_attributes
from simtriplet.evaluate.evaluation import EvaluationResult, EvaluationSettings, assemble_result
from simtriplet.evaluate.label_curve import CurveSettings, LabelCurve
from simtriplet.evaluate.label_efficiency import curve_of_tiles
from simtriplet.evaluate.labelled_tiles import LabelledTiles, locate_tiles
from simtriplet.evaluate.labels import read_labels
from simtriplet.evaluate.protocol import FoldPrediction
from simtriplet.evaluate.splits import Fold, make_folds
from simtriplet.evaluate.supervised import is_pretrained, train_classifier
from simtriplet.evaluate.supervised_settings import SupervisedSettings
from simtriplet.pretrain.encoder import Encoder
from simtriplet.wsi.errors import EvaluationError
from simtriplet.wsi.store import TileStore

__all__ = ["evaluate_supervised", "supervised_curve"]

_Ints = npt.NDArray[np.int64]


def evaluate_supervised(
    stores: Sequence[TileStore],
    settings: SupervisedSettings,
    *,
    encoder: Encoder | None = None,
    labels: Path | None = None,
    label_column: str = "label",
    patient_column: str | None = None,
    folds: int | None = None,
    seed: int = 0,
    draws: int = 2000,
    test_patients: Sequence[str] = (),
    classes: Sequence[str] = (),
    out: Path | None = None,
) -> EvaluationResult:
    """Train a network on the training patients of each fold and test it on the others.

    The result is named `supervised`, or `finetune` where it starts from an encoder that has learnt something.

    Args:
        stores: the slides.
        settings: how to train; `seed` below takes the place of its own.
        encoder: where to start from; without it, random weights.
        labels: see evaluate_features, as for all below.
        label_column: the column of the file or of the stores.
        patient_column: the file's column of patients.
        folds: how many, by patient.
        seed: of the folds, the networks and the bootstrap.
        draws: bootstrap resamples of patients.
        test_patients: tested on instead of folds.
        classes: the classes to tell apart.
        out: folder to write results.json, results.csv, predictions.csv and confusion_matrix.png into.

    Raises:
        SettingsError: if a number is out of range.
        AnnotationError: if the label file is not valid.
        EvaluationError: if labels or patients do not allow it.
        TrainingError: if the device is not there, or the stores differ in tile size or resolution.
        StoreError: if a store is damaged.
    """
    name, record = _record(settings, encoder)
    chosen = EvaluationSettings(name, folds, seed, draws, tuple(test_patients), tuple(classes))
    tiles, source = _read_tiles(stores, labels, label_column, patient_column, classes)
    split = make_folds(
        tiles.codes, tiles.patients, classes=tiles.classes, folds=folds, seed=seed, test_patients=test_patients
    )
    outcomes = [
        _train_and_test(stores, tiles, fold, dataclasses.replace(settings, seed=seed), encoder) for fold in split
    ]
    result = assemble_result(
        tiles, split, outcomes, settings=chosen, features=name, encoder=record, label_source=source
    )
    if out is not None:
        from simtriplet.evaluate.results import write_results  # it draws, and matplotlib is slow to import

        write_results(out, result)
    return result


def supervised_curve(
    stores: Sequence[TileStore],
    settings: SupervisedSettings,
    curve: CurveSettings,
    *,
    encoder: Encoder | None = None,
    labels: Path | None = None,
    label_column: str = "label",
    patient_column: str | None = None,
) -> LabelCurve:
    """Train a network for each amount of labels, fold and draw, with the very tiles that the linear heads get.

    Args:
        stores: the slides.
        settings: how to train; the seed of each draw takes the place of its own.
        curve: amounts, draws, folds.
        encoder: where to start from; without it, random weights.
        labels: see evaluate_features, as for all below.
        label_column: the column of the file or of the stores.
        patient_column: the file's column of patients.

    Raises:
        SettingsError: if a number is out of range.
        AnnotationError: if the label file is not valid.
        EvaluationError: if labels or patients do not allow it.
        TrainingError: if the device is not there, or the stores differ in tile size or resolution.
        StoreError: if a store is damaged.
    """
    name, record = _record(settings, encoder)
    tiles, source = _read_tiles(stores, labels, label_column, patient_column, curve.classes)

    def learn(_: LabelledTiles, fold: Fold, __: CurveSettings) -> Callable[[_Ints, int], npt.NDArray[np.float64]]:
        def predict(labelled: _Ints, seed: int) -> npt.NDArray[np.float64]:
            drawn = dataclasses.replace(settings, seed=seed)
            return _train_and_test(stores, tiles, Fold(labelled, fold.test), drawn, encoder).probabilities

        return predict

    return curve_of_tiles(tiles, curve, learn, features=name, encoder=record, label_source=source)


def _record(settings: SupervisedSettings, encoder: Encoder | None) -> tuple[str, dict[str, Any]]:
    """Return the name of the protocol, and the encoder's record as `embed` writes it, which tells leakage."""
    if encoder is not None:
        record = encoder_attributes(encoder, settings.precision)
        return ("finetune" if is_pretrained(encoder) else "supervised"), record
    return "supervised", {
        "encoder_hash": None,
        "backbone": settings.backbone,
        "objective": "supervised",
        "steps": 0,
        "mpp": None,
        "image_size_px": settings.image_size_px,
        "precision": settings.precision,
        "pretraining_patients": [],
        "pretraining_slides": [],
    }


def _read_tiles(
    stores: Sequence[TileStore],
    labels: Path | None,
    label_column: str,
    patient_column: str | None,
    classes: Sequence[str],
) -> tuple[LabelledTiles, str]:
    if not stores:
        raise EvaluationError("evaluation of no stores: needs at least two patients; pass tile stores")
    found = read_labels(stores, file=labels, label_column=label_column, patient_column=patient_column)
    if classes:
        found = found.keep_classes(tuple(classes))
    return locate_tiles(stores, found), found.source


def _train_and_test(
    stores: Sequence[TileStore], tiles: LabelledTiles, fold: Fold, settings: SupervisedSettings, encoder: Encoder | None
) -> FoldPrediction:
    classifier = train_classifier(stores, tiles, fold.train, settings, encoder=encoder)
    found = classifier.probabilities(stores, tiles, fold.test)
    return FoldPrediction(found, {"steps": classifier.steps, "lr": settings.lr, "precision": classifier.precision})
