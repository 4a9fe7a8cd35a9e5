"""Few-shot and label-efficiency curves: the `linear` protocol's folds, with few of their training labels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.bootstrap import draw_patients, number_patients, percentile_interval
from simtriplet.evaluate.evaluation import fold_leakage, read_labelled_tiles
from simtriplet.evaluate.few_label_head import learn_linearly
from simtriplet.evaluate.label_curve import (
    DEFAULT_AMOUNTS,
    DEFAULT_DRAWS,
    CurveKind,
    CurvePoint,
    CurveSettings,
    LabelCurve,
    LabelDraw,
    TestedTiles,
)
from simtriplet.evaluate.label_draws import draw_labels, draw_seeds
from simtriplet.evaluate.labelled_tiles import LabelledTiles, encoder_record
from simtriplet.evaluate.patient_tally import tally_patients
from simtriplet.evaluate.splits import Fold, make_folds
from simtriplet.wsi.store import TileStore

__all__ = ["LearnFold", "PrepareFold", "curve_of_tiles", "measure_label_curve"]

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]

LearnFold = Callable[[_Ints, int], _Floats]
"""(places of the labelled tiles, seed of the draw) -> (l, k) probabilities of the fold's test tiles."""

PrepareFold = Callable[[LabelledTiles, Fold, CurveSettings], LearnFold]


def measure_label_curve(
    stores: Sequence[TileStore],
    features: str,
    *,
    kind: CurveKind,
    amounts: Sequence[float] | None = None,
    draws: int | None = None,
    labels: Path | None = None,
    label_column: str = "label",
    patient_column: str | None = None,
    folds: int | None = None,
    seed: int = 0,
    bootstrap: int = 2000,
    test_patients: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> LabelCurve:
    """Measure how well classes can be told apart from the stored features when few training tiles have a label.

    The folds are those of `evaluate_features` with the same seed. In each, labels are drawn from the training patients
    and a linear head learns from them; all test tiles are tested. The drawn tiles depend on labels, patients and seed
    alone: features of the same tiles learn from the same.

    Args:
        stores: the slides.
        features: the name `embed` was given.
        kind: `shots` for tiles a class, `share` for shares of the training labels.
        amounts: rising; by default 1, 2, 4, 8 and 16 tiles a class, or 0.01, 0.1, 0.25 and 1.0 of the labels.
        draws: draws of labels; by default 50 for shots and 5 for shares.
        labels: see evaluate_features, as for label_column, patient_column, folds, test_patients and classes.
        label_column: the column of the file or of the stores.
        patient_column: the file's column of patients.
        folds: how many, by patient.
        seed: of folds, draws and bootstrap.
        bootstrap: resamples of test patients.
        test_patients: tested on instead of folds.
        classes: the classes to tell apart.

    Raises:
        SettingsError: if an amount or a number is out of range.
        AnnotationError: if the label file is not valid.
        EvaluationError: if labels, patients or features do not allow it, or a class has fewer training tiles in a fold
            than shots are asked for.
        StoreError: if a store has no such features.
    """
    settings = CurveSettings(
        kind=kind,
        amounts=tuple(amounts) if amounts is not None else DEFAULT_AMOUNTS.get(kind, ()),
        draws=draws if draws is not None else DEFAULT_DRAWS.get(kind, 0),
        folds=folds,
        seed=seed,
        bootstrap=bootstrap,
        test_patients=tuple(test_patients),
        classes=tuple(classes),
    )
    tiles, source = read_labelled_tiles(
        stores, features, labels=labels, label_column=label_column, patient_column=patient_column, classes=classes
    )
    encoder = encoder_record(stores, features)
    return curve_of_tiles(tiles, settings, learn_linearly, features=features, encoder=encoder, label_source=source)


def curve_of_tiles(
    tiles: LabelledTiles,
    settings: CurveSettings,
    learn: PrepareFold,
    *,
    features: str,
    encoder: dict[str, Any],
    label_source: str,
    folds: Sequence[Fold] | None = None,
) -> LabelCurve:
    """Measure any way to learn from few labels.

    Args:
        tiles: the labelled tiles.
        settings: amounts, draws, folds.
        learn: called once per fold, whose training labels it must not look at; what it returns is called for each
            draw and amount, with the places (into `tiles`) that have a label.
        features: name for the curve.
        encoder: record of the encoder; `pretraining_patients` and `pretraining_slides` tell leakage.
        label_source: where the labels come from.
        folds: to use instead of those that labels, patients and seed give, for instance where each has its own encoder.

    Raises:
        EvaluationError: if labels or patients do not allow it.
    """
    folds = folds or make_folds(
        tiles.codes,
        tiles.patients,
        classes=tiles.classes,
        folds=settings.folds,
        seed=settings.seed,
        test_patients=settings.test_patients,
    )
    points = _learn_all(tiles, folds, settings, learn)
    tested = _tested_tiles(tiles, folds)
    leaking = any(fold_leakage(tiles, fold, encoder) == "transductive" for fold in folds)
    return LabelCurve(
        features=features,
        encoder=encoder,
        kind=settings.kind,
        classes=tiles.classes,
        points=tuple(_measure_point(point, tested, settings, n_folds=len(folds)) for point in points),
        leakage="transductive" if leaking else "inductive",
        settings=settings,
        label_source=label_source,
        tiles=tested,
    )


def _learn_all(
    tiles: LabelledTiles, folds: Sequence[Fold], settings: CurveSettings, learn: PrepareFold
) -> "list[_Outcomes]":
    """Learn from every draw of every amount in every fold."""
    places = _tested_places(folds)
    seeds = draw_seeds(settings.seed, settings.draws)
    shape = len(places), len(tiles.classes)
    points = [_Outcomes(amount, _seeds_at(settings, amount, seeds), shape) for amount in settings.amounts]
    for number, fold in enumerate(folds):
        learner = learn(tiles, fold, settings)
        rows = np.searchsorted(places, fold.test)
        for draw, seed in enumerate(seeds):
            chosen = draw_labels(
                tiles.codes[fold.train],
                tiles.patients[fold.train],
                kind=settings.kind,
                amounts=settings.amounts,
                seed=(seed, number),
                classes=tiles.classes,
            )
            for point, labelled in zip(points, chosen, strict=True):
                if draw < len(point.seeds):
                    point.add(draw, rows, learner(fold.train[labelled], seed), len(labelled))
    return points


class _Outcomes:
    """What was predicted with one amount of labels, draw by draw."""

    def __init__(self, amount: float, seeds: tuple[int, ...], shape: tuple[int, int]) -> None:
        self.amount, self.seeds = amount, seeds
        self.log_probabilities = np.zeros((len(seeds), *shape), np.float32)
        self.n_labels = np.zeros(len(seeds), np.int64)

    def add(self, place: int, rows: _Ints, probabilities: _Floats, n_labels: int) -> None:
        """Keep the predictions of one fold's test tiles."""
        with np.errstate(divide="ignore"):  # a class that was not in training has probability 0
            self.log_probabilities[place, rows] = np.log(probabilities)
        self.n_labels[place] += n_labels


def _seeds_at(settings: CurveSettings, amount: float, draws: tuple[int, ...]) -> tuple[int, ...]:
    """All labels can be drawn in one way only."""
    return draws[:1] if settings.kind == "share" and amount == 1 else draws


def _tested_places(folds: Sequence[Fold]) -> _Ints:
    return np.sort(np.concatenate([fold.test for fold in folds]))


def _tested_tiles(tiles: LabelledTiles, folds: Sequence[Fold]) -> TestedTiles:
    tested = _tested_places(folds)
    fold_of = np.full(len(tiles), -1, dtype=np.int64)
    for number, fold in enumerate(folds):
        fold_of[fold.test] = number
    return TestedTiles(
        tiles.codes[tested], tiles.patients[tested], tiles.slides[tested], tiles.tile_ids[tested], fold_of[tested]
    )


def _measure_point(point: _Outcomes, tested: TestedTiles, settings: CurveSettings, *, n_folds: int) -> CurvePoint:
    """Score each draw, and their mean in every resample of patients."""
    numbers, n_patients = number_patients(tested.patients)
    drawn = draw_patients(n_patients, settings.bootstrap, settings.seed)
    weights = np.concatenate([np.ones((1, n_patients)), drawn])
    scored: list[dict[str, _Floats]] = []
    for scores in point.log_probabilities:
        tally = tally_patients(
            tested.codes,
            scores.argmax(axis=1),
            numbers,
            n_classes=scores.shape[1],
            n_patients=n_patients,
            scores=scores,
        )
        scored.append(tally.metrics(weights))
    defined = [name for name, values in scored[0].items() if np.isfinite(values[0])]
    means = {name: np.mean([one[name] for one in scored], axis=0) for name in defined}
    return CurvePoint(
        amount=point.amount,
        draws=tuple(
            LabelDraw(seed, float(n_labels) / n_folds, {name: float(one[name][0]) for name in defined})
            for seed, n_labels, one in zip(point.seeds, point.n_labels, scored, strict=True)
        ),
        intervals={name: percentile_interval(float(mean[0]), mean[1:], n_patients) for name, mean in means.items()},
        log_probabilities=point.log_probabilities,
    )
