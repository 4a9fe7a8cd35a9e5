"""How good predictions are: from the confusion matrix, and AUROC from the probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.errors import EvaluationError

__all__ = ["ClassMetrics", "Metrics", "accuracy", "balanced_accuracy", "confusion_matrix", "macro_f1", "measure"]

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]
_Counts = npt.NDArray[np.number[Any]]


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One class.

    Attributes:
        name: the class.
        precision: share of the tiles predicted as it that are it; 0 where none was predicted.
        recall: share of its tiles predicted as it; 0 where it has no tile.
        f1: harmonic mean of the two.
        n_tiles: its tiles.
        n_patients: patients who have one.
        auroc: of its probability against all other classes; None where it has no tile, or every tile, or no
            probabilities were given.
    """

    name: str
    precision: float
    recall: float
    f1: float
    n_tiles: int
    n_patients: int
    auroc: float | None = None


@dataclass(frozen=True, slots=True)
class Metrics:
    """Numbers of one set of predictions.

    Attributes:
        balanced_accuracy: mean recall of the classes that occur.
        macro_f1: mean F1 of the classes that occur or are predicted.
        accuracy: share of tiles predicted rightly.
        per_class: in code order.
        confusion: (k, k) tiles of class row predicted as class column.
        macro_auroc: mean AUROC, one class against the rest, of the classes that have one; None where none has.
    """

    balanced_accuracy: float
    macro_f1: float
    accuracy: float
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    macro_auroc: float | None = None


def confusion_matrix(codes: _Ints, predicted: _Ints, n_classes: int) -> _Ints:
    """Return (k, k) int64: tiles of class `row` predicted as class `column`."""
    pairs = codes * n_classes + predicted
    return np.bincount(pairs, minlength=n_classes * n_classes).reshape(n_classes, n_classes).astype(np.int64)


def measure(
    codes: _Ints,
    predicted: _Ints,
    patients: npt.NDArray[np.object_],
    classes: Sequence[str],
    *,
    probabilities: _Floats | None = None,
) -> Metrics:
    """Compare predictions with labels.

    Args:
        codes: (m,) labels.
        predicted: (m,) predictions.
        patients: (m,) patient of each tile.
        classes: names in code order.
        probabilities: (m, k) of the classes, for AUROC.

    Raises:
        EvaluationError: if there is no tile, or the lengths differ.
    """
    if not len(codes) or not len(codes) == len(predicted) == len(patients):
        raise EvaluationError(
            f"metrics of {len(codes)} labels and {len(predicted)} predictions: give as many of each, at least one"
        )
    confusion = confusion_matrix(codes, predicted, len(classes))
    precision, recall, f1 = _rates(confusion)
    aurocs = _class_aurocs(codes, probabilities, len(classes))
    per_class = tuple(
        ClassMetrics(
            name=name,
            precision=float(precision[code]),
            recall=float(recall[code]),
            f1=float(f1[code]),
            n_tiles=int(confusion[code].sum()),
            n_patients=len(set(patients[codes == code].tolist())),
            auroc=aurocs[code],
        )
        for code, name in enumerate(classes)
    )
    defined = [value for value in aurocs if value is not None]
    return Metrics(
        balanced_accuracy=float(balanced_accuracy(confusion)),
        macro_f1=float(macro_f1(confusion)),
        accuracy=float(accuracy(confusion)),
        per_class=per_class,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        macro_auroc=float(np.mean(defined)) if defined else None,
    )


def _class_aurocs(codes: _Ints, probabilities: _Floats | None, n_classes: int) -> list[float | None]:
    if probabilities is None:
        return [None] * n_classes
    from sklearn.metrics import roc_auc_score  # a second, which `--help` of the commands need not take

    found: list[float | None] = []
    for code in range(n_classes):
        positive = codes == code
        both = positive.any() and not positive.all()
        found.append(float(roc_auc_score(positive, probabilities[:, code])) if both else None)
    return found


def balanced_accuracy(confusion: _Counts) -> _Floats:
    """Mean recall of the classes that occur; (..., k, k) gives (...)."""
    _, recall, _ = _rates(confusion)
    return _mean_where(recall, confusion.sum(axis=-1) > 0)


def macro_f1(confusion: _Counts) -> _Floats:
    """Mean F1 of the classes that occur or are predicted; (..., k, k) gives (...)."""
    _, _, f1 = _rates(confusion)
    return _mean_where(f1, confusion.sum(axis=-1) + confusion.sum(axis=-2) > 0)


def accuracy(confusion: _Counts) -> _Floats:
    """Share of tiles on the diagonal; (..., k, k) gives (...)."""
    return _ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum(axis=(-2, -1)))


def _rates(confusion: _Counts) -> tuple[_Floats, _Floats, _Floats]:
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    labelled, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    return _ratio(hits, predicted), _ratio(hits, labelled), _ratio(2 * hits, labelled + predicted)


def _ratio(part: _Counts, whole: _Counts) -> _Floats:
    return np.asarray(part / np.maximum(whole, 1), dtype=np.float64)


def _mean_where(values: _Floats, counted: npt.NDArray[np.bool_]) -> _Floats:
    return np.asarray((values * counted).sum(axis=-1) / np.maximum(counted.sum(axis=-1), 1), dtype=np.float64)
