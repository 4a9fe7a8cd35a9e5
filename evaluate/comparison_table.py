"""A comparison as comparison.json, comparison.csv and comparison.md.

No absolute path and no time goes into them, so that equal comparisons give equal files.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from simtriplet.evaluate.bootstrap import Interval
from simtriplet.evaluate.comparison import ComparedEncoder, Comparison
from simtriplet.evaluate.csv_text import csv_text
from simtriplet.evaluate.figure import shorten
from simtriplet.evaluate.label_curve import CurvePoint, LabelCurve
from simtriplet.evaluate.paired import PairedDifference
from simtriplet.evaluate.visible_text import visible

__all__ = [
    "EMPTY",
    "TRANSDUCTIVE",
    "comparison_csv",
    "comparison_json",
    "comparison_markdown",
    "comparison_values",
    "headers",
    "table_cells",
]

SCHEMA = "simtriplet.comparison"
VERSION = "1.0"

TABLE_METRICS = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1", "macro_auroc": "AUROC"}
"""Metric names -> column titles."""

DIFFERENCE_METRIC = "balanced_accuracy"
"""What the column of differences is about."""

EMPTY = "–"
"""In a cell that does not apply."""

TRANSDUCTIVE = "transductive"

_NOTES = (
    "Intervals: bootstrap over patients. p: two-sided, paired over patients, not corrected for the number of encoders.",
    "retrieval@k: share of the k most similar tiles of other patients that have the tile's class. Effective rank: RankMe.",
    "Slide leakage: how often the 20 most similar other tiles vote for the tile's slide; lower is better.",
)

_GEOMETRY = (
    "k",
    "retrieval",
    "retrieval_chance",
    "slide_leakage",
    "slide_leakage_chance",
    "effective_rank",
    "feature_dim",
)


def comparison_values(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as plain JSON values."""
    first = comparison.encoders[0].result
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "reference": comparison.reference,
        "classes": list(first.tiles.classes),
        "labels": first.label_source,
        "n_tiles": int((first.predicted >= 0).sum()),
        "n_patients": n_patients(comparison),
        "n_folds": len(first.folds),
        "encoders": [_encoder_values(encoder, comparison) for encoder in comparison.encoders],
    }


def n_patients(comparison: Comparison) -> int:
    """Return how many patients were tested."""
    first = comparison.encoders[0].result
    return len(set(first.tiles.patients[first.predicted >= 0].tolist()))


def _encoder_values(encoder: ComparedEncoder, comparison: Comparison) -> dict[str, Any]:
    result = encoder.result
    return {
        "title": encoder.title,
        "features": result.features if encoder.geometry else None,
        "is_reference": encoder.title == comparison.reference,
        "encoder": result.encoder,
        "settings": dataclasses.asdict(result.settings),
        "leakage": encoder.leakage,
        "metrics": {name: dataclasses.asdict(one) for name, one in result.intervals.items()},
        "differences": _difference_values(encoder.differences),
        "geometry": dataclasses.asdict(encoder.geometry) if encoder.geometry else None,
        "per_class": [dataclasses.asdict(one) for one in result.metrics.per_class],
        "confusion": [list(row) for row in result.metrics.confusion],
        "curves": [_curve_values(curve, encoder) for curve in encoder.curves],
    }


def _curve_values(curve: LabelCurve, encoder: ComparedEncoder) -> dict[str, Any]:
    differences = encoder.curve_differences.get(curve.kind, {})
    points = [_point_values(point, differences.get(point.amount, {})) for point in curve.points]
    return {"kind": curve.kind, "leakage": curve.leakage, "points": points}


def _point_values(point: CurvePoint, differences: Mapping[str, PairedDifference]) -> dict[str, Any]:
    return {
        "amount": point.amount,
        "metrics": {name: dataclasses.asdict(one) for name, one in point.intervals.items()},
        "differences": _difference_values(differences),
        "draws": [dataclasses.asdict(draw) for draw in point.draws],
    }


def _difference_values(differences: Mapping[str, PairedDifference]) -> dict[str, Any]:
    return {name: dataclasses.asdict(one) for name, one in differences.items()}


def comparison_json(comparison: Comparison) -> str:
    """Return the text of comparison.json."""
    return json.dumps(comparison_values(comparison), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """Return the text of comparison.csv: a line per encoder, numbers in full, empty where a column does not apply."""
    lines = [_flat(values) for values in comparison_values(comparison)["encoders"]]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    return csv_text([columns, *([line.get(column, "") for column in columns] for line in lines)])


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat = {"encoder": values["title"], **{key: values[key] for key in ("features", "is_reference", "leakage")}}
    for name, one in values["metrics"].items():
        flat |= {name: one["value"], f"{name}_low": one["low"], f"{name}_high": one["high"]}
    for name in values["metrics"]:
        one = values["differences"].get(name, {})
        for key in ("difference", "low", "high", "p_value"):
            flat[f"{name}_difference" + ("" if key == "difference" else f"_{key}")] = one.get(key)
    geometry = values["geometry"] or {}
    return flat | {key if key != "k" else "retrieval_k": geometry.get(key) for key in _GEOMETRY}


def headers(comparison: Comparison) -> tuple[tuple[str, ...], ...]:
    """Return the column titles of the table, each as lines."""
    retrieval = f"retrieval@{comparison.k}" if comparison.k else "retrieval@k"
    metrics = [(*title.split(), "[95 %]") for title in TABLE_METRICS.values()]
    difference = (
        "difference in",
        TABLE_METRICS[DIFFERENCE_METRIC],
        f"from {shorten(comparison.reference)}",
        "[95 %], p",
    )
    geometry = (retrieval, "(chance)"), ("slide", "leakage", "(chance)"), ("effective", "rank")
    return ("encoder",), *metrics, difference, *geometry


def table_cells(encoder: ComparedEncoder, comparison: Comparison) -> tuple[tuple[str, ...], ...]:
    """Return an encoder's cells, each as lines: the number, its interval, its p-value, and what must be known of it.

    A number is `transductive` where the encoder saw test patients in pretraining; a difference where one of the two did.
    """
    numbers = [_metric_lines(encoder.result.intervals.get(name)) for name in TABLE_METRICS]
    numbers.append(_difference_lines(encoder.differences.get(DIFFERENCE_METRIC), encoder.title == comparison.reference))
    numbers += _geometry_lines(encoder)
    marked = [_marked(lines, encoder.leakage == TRANSDUCTIVE) for lines in numbers]
    if encoder.differences:
        place = len(TABLE_METRICS)
        marked[place] = _marked(numbers[place], TRANSDUCTIVE in (encoder.leakage, comparison.base.leakage))
    return (encoder.title,), *marked


def _marked(lines: tuple[str, ...], transductive: bool) -> tuple[str, ...]:
    is_number = any(letter.isdigit() for letter in lines[0])
    return (*lines, TRANSDUCTIVE) if transductive and is_number else lines


def _metric_lines(interval: Interval | None) -> tuple[str, ...]:
    if interval is None:
        return (EMPTY,)
    return f"{interval.value:.3f}", *_bounds(interval.low, interval.high, ".3f")


def _difference_lines(difference: PairedDifference | None, is_reference: bool) -> tuple[str, ...]:
    if difference is None:
        return ("reference",) if is_reference else (EMPTY,)
    p = () if difference.p_value is None else (p_text(difference.p_value),)
    return f"{difference.difference:+z.3f}", *_bounds(difference.low, difference.high, "+z.3f"), *p


def p_text(p_value: float) -> str:
    """Return a p-value as a reader expects it."""
    return f"p = {p_value:.3f}" if p_value >= 0.001 else "p < 0.001"


def _bounds(low: float | None, high: float | None, form: str) -> tuple[str, ...]:
    return () if low is None or high is None else (f"[{low:{form}}, {high:{form}}]",)


def _geometry_lines(encoder: ComparedEncoder) -> list[tuple[str, ...]]:
    return [(EMPTY,)] * 3 if encoder.geometry is None else list(encoder.geometry.cells())


def comparison_markdown(comparison: Comparison) -> str:
    """Return the text of comparison.md: the table, and what its columns mean."""
    header = [_plain(" ".join(title)) for title in headers(comparison)]
    lines = ["| " + " | ".join(header) + " |", "|:--" + "|--:" * (len(header) - 1) + "|"]
    for encoder in comparison.encoders:
        cells = [_plain(" ".join(parts)) for parts in table_cells(encoder, comparison)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + "\n".join(f"{_plain(note)}  " for note in notes(comparison)) + "\n"


def notes(comparison: Comparison) -> Sequence[str]:
    """Return what a reader must know of the table, a sentence or two each."""
    first = comparison.encoders[0].result
    counts = f"{int((first.predicted >= 0).sum()):,} tested tiles of {n_patients(comparison)} patients"
    classes = ", ".join(first.tiles.classes)
    said = [
        f"{counts}, {len(first.folds)} fold(s) by patient, the same for every encoder; classes: {classes}.",
        *_NOTES,
    ]
    if any(encoder.leakage == TRANSDUCTIVE for encoder in comparison.encoders):
        said.append(
            "transductive: the encoder was pretrained on tiles (without labels) of patients it is tested on; the number "
            "may be lower for new patients."
        )
    return said


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    flat = escape(visible(" ".join(text.split())), quote=False)
    for sign in ("\\", "`", "*", "|", "~", "]("):
        flat = flat.replace(sign, f"{sign[:-1]}\\{sign[-1]}")
    return flat
