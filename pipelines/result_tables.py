"""Numbers with intervals, differences and label curves as tables for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from simtriplet.pipelines.console import print_table

if TYPE_CHECKING:  # scikit-learn stands behind these
    from simtriplet.evaluate.bootstrap import Interval
    from simtriplet.evaluate.label_curve import CurveKind, LabelCurve
    from simtriplet.evaluate.label_curve_files import CurveDifference
    from simtriplet.evaluate.paired import PairedDifference

__all__ = ["METRIC_TITLES", "interval_cell", "print_differences", "print_label_curves"]

METRIC_TITLES = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "macro_auroc": "AUROC",
    "accuracy": "accuracy",
}
_SHOWN = ("balanced_accuracy", "macro_f1", "macro_auroc")


def interval_cell(interval: Interval | None) -> str:
    """Return a value with its interval; `-` for what is not defined."""
    if interval is None:
        return "-"
    return f"{interval.value:.3f} ({_range(interval.low, interval.high)})"


def _range(low: float | None, high: float | None, sign: str = "") -> str:
    if low is None or high is None:
        return "no interval: one test patient"
    return f"{low:{sign}.3f} to {high:{sign}.3f}" if sign else f"{low:.3f}-{high:.3f}"


def print_differences(title: str, differences: Mapping[str, PairedDifference]) -> None:
    """Print paired differences, metric by metric."""
    rows = [
        [title, METRIC_TITLES[name], _difference_cell(one), "-" if one.p_value is None else f"{one.p_value:.4f}"]
        for name, one in differences.items()
    ]
    print_table("paired over patients", ("features", "metric", "difference (95 %)", "p"), rows)


def _difference_cell(one: PairedDifference) -> str:
    return f"{one.difference:+.3f} ({_range(one.low, one.high, '+')})"


def print_label_curves(curves: Sequence[LabelCurve], differences: Sequence[CurveDifference]) -> None:
    """Print a row for each set of features and metric, a column for each amount; below, the first against each other one."""
    first = curves[0]
    amounts = [_amount_title(first.kind, point.amount) for point in first.points]
    rows = [_curve_row(curve, name) for curve in curves for name in _SHOWN]
    print_table("mean over draws of labels (95 %)", ("features", "metric", *amounts, "leakage"), rows)
    for other, found_by_amount in zip(curves[1:], differences, strict=True):
        title = f"{first.features} - {other.features}"
        by_amount = found_by_amount.values()
        rows = [
            [title, METRIC_TITLES[name], *(_paired_cell(found.get(name)) for found in by_amount)] for name in _SHOWN
        ]
        print_table("paired over patients (95 %)", ("features", "metric", *amounts), rows)


def _curve_row(curve: LabelCurve, metric: str) -> list[str]:
    values = (interval_cell(point.intervals.get(metric)) for point in curve.points)
    return [curve.features, METRIC_TITLES[metric], *values, curve.leakage]


def _paired_cell(one: PairedDifference | None) -> str:
    if one is None or one.p_value is None:
        return "-" if one is None else _difference_cell(one)
    return f"{_difference_cell(one)} p {one.p_value:.4f}"


def _amount_title(kind: CurveKind, amount: float) -> str:
    return f"{amount:.4g} a class" if kind == "shots" else f"{100 * amount:.4g} % of the labels"
