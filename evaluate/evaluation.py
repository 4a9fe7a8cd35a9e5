"""Measure features: labels, a split by patient, a protocol, numbers with intervals."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.bootstrap import Interval, patient_intervals
from simtriplet.evaluate.feature_geometry import FeatureGeometry, measure_geometry
from simtriplet.evaluate.labelled_tiles import LabelledTiles, encoder_record, gather_tiles
from simtriplet.evaluate.labels import read_labels
from simtriplet.evaluate.metrics import Metrics, measure
from simtriplet.evaluate.protocol import FoldPrediction
from simtriplet.evaluate.protocol_registry import PROTOCOLS
from simtriplet.evaluate.splits import Fold, make_folds
from simtriplet.wsi.errors import EvaluationError, SettingsError
from simtriplet.wsi.store import TileStore

__all__ = [
    "EvaluationResult",
    "EvaluationSettings",
    "FoldResult",
    "Leakage",
    "assemble_result",
    "evaluate_features",
    "fold_leakage",
    "read_labelled_tiles",
]

Leakage = Literal["inductive", "transductive"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How features are measured.

    Attributes:
        protocol: name of how the predictions were made; `evaluate_features` takes a registered evaluation protocol.
        folds: folds of patients; None for 5, or as many as the rarest class has patients.
        seed: of the folds, the protocol and the bootstrap.
        draws: bootstrap resamples of patients.
        test_patients: tested on, all others learnt from; without them folds are made.
        classes: the classes to tell apart; all where empty.
    """

    protocol: str = "linear"
    folds: int | None = None
    seed: int = 0
    draws: int = 2000
    test_patients: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value, least in (("folds", self.folds, 2), ("seed", self.seed, 0), ("draws", self.draws, 100)):
            if value is not None and value < least:
                raise SettingsError(f"{name} {value}: must be at least {least}; pass a larger number")


@dataclass(frozen=True, slots=True)
class FoldResult:
    """One fold.

    Attributes:
        train_patients: learnt from, sorted.
        test_patients: tested on, sorted.
        n_train: training tiles.
        n_test: test tiles.
        metrics: on the test tiles.
        leakage: `transductive` where the encoder was pretrained on tiles (without labels) of a test patient.
        fitted: what the protocol chose.
    """

    train_patients: tuple[str, ...]
    test_patients: tuple[str, ...]
    n_train: int
    n_test: int
    metrics: Metrics
    leakage: Leakage
    fitted: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """What `evaluate` found.

    Attributes:
        features: name of the features in the stores.
        encoder: what `embed` recorded of the encoder.
        settings: as asked for.
        label_source: where the labels come from.
        tiles: the labelled tiles.
        probabilities: (m, k) float64 per labelled tile; NaN where it was not tested.
        predicted: (m,) int64 class codes; -1 where it was not tested.
        metrics: over all tested tiles together.
        intervals: by metric name, 95 % over patients; `macro_auroc` is missing where no class has one.
        folds: one by one.
        geometry: what the features are worth without a head; None for a network trained with labels, which has none.
    """

    features: str
    encoder: dict[str, Any]
    settings: EvaluationSettings
    label_source: str
    tiles: LabelledTiles
    probabilities: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.int64]
    metrics: Metrics
    intervals: dict[str, Interval]
    folds: tuple[FoldResult, ...]
    geometry: FeatureGeometry | None = None

    @property
    def leakage(self) -> Leakage:
        """`transductive` if any fold is."""
        return "transductive" if any(fold.leakage == "transductive" for fold in self.folds) else "inductive"

    def codes_of(self, store: TileStore, codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Lay codes of the labelled tiles (`tiles.codes` or `predicted`) out over a store's tiles: (n,), -1 for none."""
        laid_out = np.full(len(store), -1, dtype=np.int64)
        here = self.tiles.slides == store.slide_id
        laid_out[self.tiles.rows[here]] = codes[here]
        return laid_out


def evaluate_features(
    stores: Sequence[TileStore],
    features: str,
    *,
    labels: Path | None = None,
    label_column: str = "label",
    patient_column: str | None = None,
    protocol: str = "linear",
    folds: int | None = None,
    seed: int = 0,
    draws: int = 2000,
    test_patients: Sequence[str] = (),
    classes: Sequence[str] = (),
    k: int = 5,
    out: Path | None = None,
) -> EvaluationResult:
    """Measure how well classes can be told apart from the stored features.

    Args:
        stores: the slides.
        features: the name `embed` was given.
        labels: a CSV by slide or by tile; without it the stores' own labels are used.
        label_column: the column of the file or of the stores.
        patient_column: the file's column of patients.
        protocol: see EvaluationSettings, as for all up to classes.
        folds: how many, by patient; without it 5, or as many as the rarest class has patients.
        seed: of everything drawn.
        draws: bootstrap resamples of patients.
        test_patients: tested on instead of folds.
        classes: the classes to tell apart.
        k: tiles retrieved for each in FeatureGeometry.
        out: folder to write results.json, results.csv, predictions.csv and confusion_matrix.png into.

    Raises:
        SettingsError: if the protocol is not known or a number is out of range.
        AnnotationError: if the label file is not valid.
        EvaluationError: if labels, patients or features do not allow it.
        StoreError: if a store has no such features.
    """
    chosen = EvaluationSettings(protocol, folds, seed, draws, tuple(test_patients), tuple(classes))
    method = PROTOCOLS.get(protocol)
    tiles, source = read_labelled_tiles(
        stores, features, labels=labels, label_column=label_column, patient_column=patient_column, classes=classes
    )
    encoder = encoder_record(stores, features)
    split = make_folds(
        tiles.codes, tiles.patients, classes=tiles.classes, folds=folds, seed=seed, test_patients=test_patients
    )
    outcomes = [method.predict(tiles, fold, seed=seed) for fold in split]
    result = assemble_result(
        tiles, split, outcomes, settings=chosen, features=features, encoder=encoder, label_source=source
    )
    tested = np.flatnonzero(result.predicted >= 0)
    result = dataclasses.replace(result, geometry=measure_geometry(tiles, tested, k=k, seed=seed))
    if out is not None:
        from simtriplet.evaluate.results import write_results  # it draws, and matplotlib is slow to import

        write_results(out, result)
    return result


def read_labelled_tiles(
    stores: Sequence[TileStore],
    features: str,
    *,
    labels: Path | None = None,
    label_column: str = "label",
    patient_column: str | None = None,
    classes: Sequence[str] = (),
) -> tuple[LabelledTiles, str]:
    """Read the labelled tiles of stores with their features, and where the labels come from.

    Args:
        stores: the slides.
        features: the name `embed` was given.
        labels: see evaluate_features, as for all below.
        label_column: the column of the file or of the stores.
        patient_column: the file's column of patients.
        classes: the classes to tell apart; all where empty.

    Raises:
        AnnotationError: if the label file is not valid.
        EvaluationError: if there is no store, or labels or features do not allow it.
        StoreError: if a store has no such features.
    """
    if not stores:
        raise EvaluationError("evaluation of no stores: needs at least two patients; pass tile stores")
    found = read_labels(stores, file=labels, label_column=label_column, patient_column=patient_column)
    if classes:
        found = found.keep_classes(tuple(classes))
    return gather_tiles(stores, features, found), found.source


def assemble_result(
    tiles: LabelledTiles,
    folds: Sequence[Fold],
    outcomes: Sequence[FoldPrediction],
    *,
    settings: EvaluationSettings,
    features: str,
    encoder: dict[str, Any],
    label_source: str,
) -> EvaluationResult:
    """Put the predictions of all folds together and measure them.

    Args:
        tiles: the labelled tiles; their features are not looked at.
        folds: no tile is tested twice.
        outcomes: one per fold, over its test tiles.
        settings: how it was done; seed and draws are those of the bootstrap.
        features: name of the features, or of what was done instead of embedding.
        encoder: record of the encoder; `pretraining_patients` and `pretraining_slides` tell leakage.
        label_source: where the labels come from.
    """
    probabilities = np.full((len(tiles), len(tiles.classes)), np.nan)
    predicted = np.full(len(tiles), -1, dtype=np.int64)
    for fold, outcome in zip(folds, outcomes, strict=True):
        probabilities[fold.test], predicted[fold.test] = outcome.probabilities, outcome.predicted
    tested = predicted >= 0
    labelled = tiles.codes[tested], predicted[tested], tiles.patients[tested]
    intervals = patient_intervals(
        *labelled,
        n_classes=len(tiles.classes),
        draws=settings.draws,
        seed=settings.seed,
        probabilities=probabilities[tested],
    )
    return EvaluationResult(
        features=features,
        encoder=encoder,
        settings=settings,
        label_source=label_source,
        tiles=tiles,
        probabilities=probabilities,
        predicted=predicted,
        metrics=measure(*labelled, tiles.classes, probabilities=probabilities[tested]),
        intervals=intervals,
        folds=tuple(_fold_result(tiles, fold, outcome, encoder) for fold, outcome in zip(folds, outcomes, strict=True)),
    )


def _fold_result(tiles: LabelledTiles, fold: Fold, outcome: FoldPrediction, encoder: dict[str, Any]) -> FoldResult:
    if not outcome.fitted.get("converged", True):
        _logger.warning("a linear head stopped before it converged; results.json says in which fold")
    return FoldResult(
        train_patients=tuple(sorted(set(tiles.patients[fold.train].tolist()))),
        test_patients=tuple(sorted(set(tiles.patients[fold.test].tolist()))),
        n_train=len(fold.train),
        n_test=len(fold.test),
        metrics=measure(
            tiles.codes[fold.test],
            outcome.predicted,
            tiles.patients[fold.test],
            tiles.classes,
            probabilities=outcome.probabilities,
        ),
        leakage=fold_leakage(tiles, fold, encoder),
        fitted=outcome.fitted,
    )


def fold_leakage(tiles: LabelledTiles, fold: Fold, encoder: dict[str, Any]) -> Leakage:
    """Tell whether the encoder was pretrained on tiles (without labels) of a test patient.

    A label file may name patients otherwise than the stores did in pretraining: slides are compared too, and the patients
    that the file gives to the slides of pretraining, which need no labelled tile.
    """
    slides = set(encoder.get("pretraining_slides", ()))
    patients = {
        *encoder.get("pretraining_patients", ()),
        *(tiles.patient_of[one] for one in slides & set(tiles.patient_of)),
    }
    seen = patients & set(tiles.patients[fold.test].tolist()) or slides & set(tiles.slides[fold.test].tolist())
    return "transductive" if seen else "inductive"
