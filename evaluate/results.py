"""Write what an evaluation found: results.json, results.csv, predictions.csv and the confusion matrix.

No absolute path and no time goes into them, so that equal evaluations give equal files.
"""

import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simtriplet.evaluate.atomic_output import replace_file
from simtriplet.evaluate.bootstrap import METRICS
from simtriplet.evaluate.charts import draw_confusion
from simtriplet.evaluate.csv_text import csv_text
from simtriplet.evaluate.evaluation import EvaluationResult, FoldResult
from simtriplet.evaluate.paired import PairedDifference, compare_paired

__all__ = ["result_values", "write_results"]

SCHEMA = "simtriplet.evaluation"
VERSION = "1.2"  # 1.1 adds AUROC, 1.2 geometry and against


def write_results(
    out: Path,
    result: EvaluationResult,
    *,
    baseline: EvaluationResult | None = None,
    differences: Mapping[str, PairedDifference] | None = None,
) -> None:
    """Write the four files into the folder `out`, each whole or not at all.

    Args:
        out: made where it is not there.
        result: what was found.
        baseline: the same of other features, on the same folds: results.json tells the paired differences.
        differences: what compare_paired found of the two; found here where not given.

    Raises:
        EvaluationError: if the folder cannot be written, or the baseline is of other tiles or folds.
    """
    if baseline is not None and differences is None:
        differences = compare_paired(result, baseline)
    against = None if baseline is None or differences is None else _against(baseline, differences)
    values = result_values(result) | {"against": against}
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    replace_file(out / "predictions.csv", csv_text(_prediction_rows(result)))
    replace_file(out / "results.csv", csv_text(_metric_rows(result)))
    replace_file(out / "confusion_matrix.png", draw_confusion(result.metrics.confusion, result.tiles.classes))
    replace_file(out / "results.json", text + "\n")


def result_values(result: EvaluationResult) -> dict[str, Any]:
    """Return a result as plain JSON values."""
    tiles = result.tiles
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "features": result.features,
        "encoder": result.encoder,
        "settings": dataclasses.asdict(result.settings),
        "labels": result.label_source,
        "classes": list(tiles.classes),
        "n_tiles": len(tiles),
        "n_slides": len(set(tiles.slides.tolist())),
        "n_patients": len(set(tiles.patients.tolist())),
        "leakage": result.leakage,
        "metrics": {name: dataclasses.asdict(interval) for name, interval in result.intervals.items()},
        "fold_spread": _fold_spread(result.folds),
        "per_class": [dataclasses.asdict(one) for one in result.metrics.per_class],
        "confusion": [list(row) for row in result.metrics.confusion],
        "geometry": dataclasses.asdict(result.geometry) if result.geometry else None,
        "folds": [_fold_values(fold) for fold in result.folds],
        "versions": {name: importlib.metadata.version(name) for name in ("simtriplet", "numpy", "scikit-learn")},
    }


def _against(baseline: EvaluationResult, found: Mapping[str, PairedDifference]) -> dict[str, Any]:
    """Return how far a result is from a baseline, metric by metric."""
    return {
        "features": baseline.features,
        "protocol": baseline.settings.protocol,
        "leakage": baseline.leakage,
        "differences": {name: dataclasses.asdict(difference) for name, difference in found.items()},
    }


def _fold_spread(folds: Sequence[FoldResult]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the folds that have the metric, which much of the literature reports."""
    spread = {}
    for name in METRICS:
        values = [value for fold in folds if (value := getattr(fold.metrics, name)) is not None]
        if values:
            spread[name] = {"mean": float(np.mean(values)), "std": float(np.std(values))}
    return spread


def _fold_values(fold: FoldResult) -> dict[str, Any]:
    values = dataclasses.asdict(fold)
    metrics = values.pop("metrics")
    return {**values, "metrics": {name: metrics[name] for name in METRICS}, "confusion": metrics["confusion"]}


def _metric_rows(result: EvaluationResult) -> Iterator[Sequence[object]]:
    yield "scope", "name", "metric", "value", "low", "high", "n_tiles", "n_patients"
    tested = result.predicted >= 0
    counts = int(tested.sum()), len(set(result.tiles.patients[tested].tolist()))
    for metric, interval in result.intervals.items():
        yield "overall", "", metric, interval.value, interval.low, interval.high, *counts
    if result.geometry is not None:
        for metric in ("retrieval", "slide_leakage", "effective_rank"):
            yield (
                "features",
                "",
                metric,
                getattr(result.geometry, metric),
                None,
                None,
                result.geometry.n_anchors,
                counts[1],
            )
    for number, fold in enumerate(result.folds):
        for metric in METRICS:
            value = getattr(fold.metrics, metric)
            yield "fold", number, metric, value, None, None, fold.n_test, len(fold.test_patients)
    for one in result.metrics.per_class:
        for metric in ("precision", "recall", "f1", "auroc"):
            yield "class", one.name, metric, getattr(one, metric), None, None, one.n_tiles, one.n_patients


def _prediction_rows(result: EvaluationResult) -> Iterator[Sequence[object]]:
    yield "slide_id", "tile_id", "x", "y", "label", "predicted", "probability"
    tiles = result.tiles
    for place in np.flatnonzero(result.predicted >= 0).tolist():
        code = int(result.predicted[place])
        probability = f"{result.probabilities[place, code]:.6f}"
        where = tiles.slides[place], tiles.tile_ids[place], *tiles.base_xy[place].tolist()
        yield *where, tiles.classes[int(tiles.codes[place])], tiles.classes[code], probability
