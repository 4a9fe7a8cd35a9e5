"""Measure encoders on the same tiles and the same folds of patients, one after the other."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from simtriplet.evaluate.comparison import (
    ComparedEncoder,
    Comparison,
    ComparisonSettings,
    CurveDifferences,
    check_titles,
    find_encoder,
)
from simtriplet.evaluate.embedding_map import map_features
from simtriplet.evaluate.evaluation import EvaluationResult, evaluate_features
from simtriplet.evaluate.gallery import pick_anchors
from simtriplet.evaluate.label_curve import DEFAULT_AMOUNTS, CurveKind, LabelCurve
from simtriplet.evaluate.label_efficiency import measure_label_curve
from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.nearest_tiles import nearest_tiles
from simtriplet.evaluate.paired import compare_curves, compare_paired
from simtriplet.wsi.store import TileStore

__all__ = ["compare_encoders"]

_logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]

_KIND_NOTES: dict[CurveKind, str] = {"share": "label efficiency", "shots": "few-shot"}


def compare_encoders(
    stores: Sequence[TileStore],
    features: Mapping[str, str],
    *,
    settings: ComparisonSettings | None = None,
    reference: str | None = None,
    results: Mapping[str, EvaluationResult] | None = None,
    result_curves: Mapping[str, Sequence[LabelCurve]] | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Measure encoders on the same tiles and the same folds of patients.

    Args:
        stores: the slides.
        features: name in the stores -> title for a reader.
        settings: how; the defaults where not given.
        reference: title or name of the one to take differences from; the first where not given.
        results: title -> evaluation of a network trained with labels, on the same tiles and folds.
        result_curves: title in `results` -> its curves over the number of labels.
        out: folder to write comparison.json, comparison.csv, comparison.md and comparison.html into.
        progress: called with (steps done, steps in all, what comes next).

    Raises:
        EvaluationError: if there are fewer than two encoders, two of one title, a reference that is none of them, or
            results of other tiles or folds; and as for evaluate_features.
        StoreError: if a store has no such features.
    """
    settings, trained = settings or ComparisonSettings(), dict(results or {})
    titles = [*features.values(), *trained]
    names = [*features, *(result.features for result in trained.values())]
    check_titles(titles)
    base = 0 if reference is None else find_encoder(reference, titles, names)
    say = _Steps(progress, len(features) * (1 + len(_kinds(settings))) + len(titles) - 1 + (out is not None))
    rows, anchors = _measure_features(stores, features, settings, say)
    rows += [_trained_row(title, result, (result_curves or {}).get(title, ())) for title, result in trained.items()]
    comparison = Comparison(tuple(_compare_rows(rows, rows[base], settings.seed, say)), titles[base], anchors)
    if out is not None:
        from simtriplet.evaluate.comparison_report import write_comparison  # it draws: matplotlib is slow to import

        say("report")
        write_comparison(out, comparison, stores)
    say("done")
    return comparison


class _Steps:
    """Counts what has been done, and says what comes next."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, -1

    def __call__(self, note: str) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total, note)


def _kinds(settings: ComparisonSettings) -> tuple[CurveKind, ...]:
    return tuple(_KIND_NOTES) if settings.curves else ()


def _measure_features(
    stores: Sequence[TileStore], features: Mapping[str, str], settings: ComparisonSettings, say: Callable[[str], None]
) -> tuple[list[ComparedEncoder], npt.NDArray[np.int64]]:
    """Return a row per feature set, and the tiles whose nearest tiles all of them tell."""
    anchors = np.zeros(0, np.int64)
    rows: list[ComparedEncoder] = []
    for name, title in features.items():
        say(f"{title}: {settings.protocol}")
        result = _evaluate(stores, name, settings)
        if not rows:
            anchors = pick_anchors(result.tiles, tested_places(result), seed=settings.seed)
        row = _features_row(title, result, anchors, settings)
        curves = []
        for kind in _kinds(settings):
            say(f"{title}: {_KIND_NOTES[kind]}")
            if amounts := _amounts(kind, result):
                curves.append(_curve(stores, name, kind, amounts, settings))
        rows.append(dataclasses.replace(row, curves=tuple(curves)))
    return rows, anchors


def _amounts(kind: CurveKind, result: EvaluationResult) -> tuple[float, ...]:
    """Return the default amounts of labels that every fold's training tiles allow."""
    if kind == "share":
        return DEFAULT_AMOUNTS[kind]
    tiles = result.tiles
    least = min(
        np.bincount(
            tiles.codes[np.isin(tiles.patients.astype(str), fold.train_patients)], minlength=len(tiles.classes)
        ).min()
        for fold in result.folds
    )
    allowed = tuple(amount for amount in DEFAULT_AMOUNTS[kind] if amount <= least)
    if len(allowed) < len(DEFAULT_AMOUNTS[kind]):
        _logger.warning("few-shot: at most %d tiles of a class are in every fold's training; more are left out", least)
    return allowed


def _evaluate(stores: Sequence[TileStore], name: str, settings: ComparisonSettings) -> EvaluationResult:
    asked = settings.label_options | settings.fold_options
    return evaluate_features(stores, name, protocol=settings.protocol, k=settings.k, **asked)


def _curve(
    stores: Sequence[TileStore], name: str, kind: CurveKind, amounts: Sequence[float], settings: ComparisonSettings
) -> LabelCurve:
    asked = settings.label_options | settings.fold_options
    return measure_label_curve(stores, name, kind=kind, amounts=amounts, **asked)


def tested_places(result: EvaluationResult) -> npt.NDArray[np.int64]:
    """Return the places of the tiles that were tested."""
    return np.flatnonzero(result.predicted >= 0).astype(np.int64)


def _features_row(
    title: str, result: EvaluationResult, anchors: npt.NDArray[np.int64], settings: ComparisonSettings
) -> ComparedEncoder:
    tiles, tested = result.tiles, tested_places(result)
    _, patients = np.unique(tiles.patients.astype(str), return_inverse=True)
    return ComparedEncoder(
        title=title,
        result=_without_features(result),
        geometry=result.geometry,
        laid_out=map_features(tiles.features, tested, method=settings.map_method, seed=settings.seed),
        nearest=nearest_tiles(tiles.features, patients, anchors=anchors, k=settings.k),
    )


def _trained_row(title: str, result: EvaluationResult, curves: Sequence[LabelCurve]) -> ComparedEncoder:
    return ComparedEncoder(title=title, result=_without_features(result), curves=tuple(curves))


def _without_features(result: EvaluationResult) -> EvaluationResult:
    """Let go of what is large: of 100,000 tiles and ResNet-50, 0.8 GB an encoder."""
    tiles: LabelledTiles = dataclasses.replace(result.tiles, features=np.zeros((len(result.tiles), 0), np.float32))
    return dataclasses.replace(result, tiles=tiles)


def _compare_rows(
    rows: Sequence[ComparedEncoder], base: ComparedEncoder, seed: int, say: Callable[[str], None]
) -> Iterator[ComparedEncoder]:
    """Give the rows with their differences from the reference, and without what only those needed."""
    for row in rows:
        if row is base:
            yield _lightened(row)
            continue
        say(f"{row.title}: differences")
        with threadpool_limits(1, user_api="blas"):  # products are short: two busy cores took five times as long as one
            yield _lightened(_subtract(row, base, seed))


def _subtract(row: ComparedEncoder, base: ComparedEncoder, seed: int) -> ComparedEncoder:
    """Add the differences from the reference."""
    by_kind: CurveDifferences = {}
    for curve in row.curves:
        other = base.curve(curve.kind)
        if other is not None and _learn_alike(row.title, curve, other):
            by_kind[curve.kind] = compare_curves(curve, other, seed=seed)
    differences = compare_paired(row.result, base.result, seed=seed)
    return dataclasses.replace(row, differences=differences, curve_differences=by_kind)


def _learn_alike(title: str, curve: LabelCurve, other: LabelCurve) -> bool:
    """Tell whether two curves have the same amounts and draws; curves of networks may have fewer, as they cost hours."""
    alike = [(point.amount, [draw.seed for draw in point.draws]) for point in curve.points] == [
        (point.amount, [draw.seed for draw in point.draws]) for point in other.points
    ]
    if not alike:
        _logger.warning("%s: its %s curve has other draws of labels; no differences are told", title, curve.kind)
    return alike


def _lightened(row: ComparedEncoder) -> ComparedEncoder:
    """Let go of the predictions of the curves, which only the differences need."""
    curves = tuple(
        dataclasses.replace(
            curve,
            points=tuple(dataclasses.replace(point, log_probabilities=None) for point in curve.points),
            tiles=None,
        )
        for curve in row.curves
    )
    return dataclasses.replace(row, curves=curves)
