"""Write label curves: label_curves.json and label_curves.csv."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simtriplet.evaluate.atomic_output import replace_file
from simtriplet.evaluate.csv_text import csv_text
from simtriplet.evaluate.label_curve import LabelCurve
from simtriplet.evaluate.paired import PairedDifference, compare_curves

__all__ = ["CurveDifference", "curve_values", "write_label_curves"]

CurveDifference = Mapping[float, Mapping[str, PairedDifference]]
"""By amount of labels, then by metric name, as compare_curves returns it."""

SCHEMA = "simtriplet.label_curves"
VERSION = "1.1"  # 1.1 adds against


def write_label_curves(
    out: str | Path, curves: Sequence[LabelCurve], *, differences: Sequence[CurveDifference] | None = None
) -> None:
    """Write both files into the folder `out`, each whole or not at all.

    Of several curves the first is also compared with each of the others, at each amount: `against` in the JSON.

    No absolute path and no time goes into them, so that equal measurements give equal files.

    Args:
        out: made where it is not there.
        curves: of the same tiles and draws.
        differences: what compare_curves found of the first and each other one; found here where not given.

    Raises:
        EvaluationError: if the folder cannot be written.
    """
    out = Path(out)
    if differences is None:
        differences = [compare_curves(curves[0], other) for other in curves[1:]]
    values = {
        "schema": SCHEMA,
        "version": VERSION,
        "curves": [curve_values(curve) for curve in curves],
        "against": [_against(*pair) for pair in zip(curves[1:], differences, strict=True)],
        "versions": {name: importlib.metadata.version(name) for name in ("simtriplet", "numpy", "scikit-learn")},
    }
    replace_file(out / "label_curves.csv", csv_text(_rows(curves)))
    replace_file(out / "label_curves.json", json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _against(other: LabelCurve, found: CurveDifference) -> dict[str, Any]:
    """Return how far the first curve is from another, amount by amount and metric by metric."""
    points = [
        {"amount": amount, "differences": {name: dataclasses.asdict(one) for name, one in by_metric.items()}}
        for amount, by_metric in found.items()
    ]
    return {"features": other.features, "leakage": other.leakage, "points": points}


def curve_values(curve: LabelCurve) -> dict[str, Any]:
    """Return a curve as plain JSON values, without its predictions."""
    tiles = curve.tiles
    return {
        "features": curve.features,
        "encoder": curve.encoder,
        "kind": curve.kind,
        "settings": dataclasses.asdict(curve.settings) if curve.settings else None,
        "labels": curve.label_source,
        "classes": list(curve.classes),
        "n_tested_tiles": len(tiles) if tiles else None,
        "n_test_patients": len(set(tiles.patients.tolist())) if tiles else None,
        "leakage": curve.leakage,
        "points": [
            {
                "amount": point.amount,
                "metrics": {name: dataclasses.asdict(interval) for name, interval in point.intervals.items()},
                "draws": [dataclasses.asdict(draw) for draw in point.draws],
            }
            for point in curve.points
        ],
    }


def _rows(curves: Sequence[LabelCurve]) -> Iterator[Sequence[object]]:
    """One row a metric of a point (scope `mean`, with interval) and one a metric of a draw (scope `draw`)."""
    yield "features", "kind", "amount", "scope", "seed", "n_labels", "metric", "value", "low", "high", "leakage"
    for curve in curves:
        for point in curve.points:
            where = curve.features, curve.kind, f"{point.amount:g}"
            mean_labels = sum(draw.n_labels for draw in point.draws) / len(point.draws)
            for name, interval in point.intervals.items():
                numbers = interval.value, interval.low, interval.high
                yield *where, "mean", None, mean_labels, name, *numbers, curve.leakage
            for draw in point.draws:
                for name, value in draw.scores.items():
                    yield *where, "draw", draw.seed, draw.n_labels, name, value, None, None, curve.leakage
