"""Count predictions by patient once, so that thousands of resamples of patients cost a matrix product each.

AUROC is the share of (positive, negative) pairs in which the positive scores higher. Sorted by the patients of the two
they are a matrix, and where patient p counts w[p] times, the pairs won are w' W w: exact, without a sort per resample.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.metrics import accuracy, balanced_accuracy, macro_f1

__all__ = ["METRICS", "PatientTally", "tally_patients"]

METRICS = ("balanced_accuracy", "macro_f1", "macro_auroc", "accuracy")
"""Names in results. `macro_auroc` is left out of intervals and comparisons where no class has positives and negatives."""

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PatientTally:
    """Predictions of u patients, counted.

    Attributes:
        confusion: (u, k, k) tiles of class row predicted as class column.
        wins: (k, u, u) pairs of a tile of the class, of patient row, and a tile of another class, of patient column,
            in which the first scores higher in the class; ties count half. None without scores.
    """

    confusion: _Floats
    wins: _Floats | None

    def metrics(self, weights: _Floats) -> dict[str, _Floats]:
        """Return every metric for (d, u) `weights`: how often each patient counts; (d,) each.

        AUROC is the mean of the classes that have positives and negatives; NaN where none has.
        """
        n_units, n_classes, _ = self.confusion.shape
        drawn = (weights @ self.confusion.reshape(n_units, -1)).reshape(-1, n_classes, n_classes)
        found = {
            "balanced_accuracy": balanced_accuracy(drawn),
            "macro_f1": macro_f1(drawn),
            "accuracy": accuracy(drawn),
        }
        if self.wins is not None:
            found["macro_auroc"] = _macro_auroc(self.wins, drawn.sum(axis=2), weights)
        return {name: found[name] for name in METRICS if name in found}


def _macro_auroc(wins: _Floats, positives: _Floats, weights: _Floats) -> _Floats:
    """Combine (k, u, u) wins for (d, u) weights under which (d, k) tiles are of each class."""
    pairs = positives * (positives.sum(axis=1, keepdims=True) - positives)
    won = np.stack([np.einsum("du,du->d", weights @ of_class, weights) for of_class in wins], axis=1)
    defined = pairs > 0
    aurocs = np.where(defined, won / np.where(defined, pairs, 1), 0.0)
    counted = defined.sum(axis=1)
    return np.where(counted > 0, aurocs.sum(axis=1) / np.maximum(counted, 1), np.nan)


def tally_patients(
    codes: _Ints,
    predicted: _Ints,
    numbers: _Ints,
    *,
    n_classes: int,
    n_patients: int,
    scores: npt.NDArray[np.floating] | None = None,
) -> PatientTally:
    """Count predictions by patient.

    Args:
        codes: (m,) labels.
        predicted: (m,) predictions.
        numbers: (m,) number of each tile's patient.
        n_classes: k.
        n_patients: u.
        scores: (m, k) probabilities or anything that rises with them; without them there is no AUROC.
    """
    cells = numbers * n_classes**2 + codes * n_classes + predicted
    counts = np.bincount(cells, minlength=n_patients * n_classes**2).astype(np.float64)
    wins = None
    if scores is not None:
        wins = np.stack([_wins(codes == code, scores[:, code], numbers, n_patients) for code in range(n_classes)])
    return PatientTally(counts.reshape(n_patients, n_classes, n_classes), wins)


def _wins(
    positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating], numbers: _Ints, n_patients: int
) -> _Floats:
    values, ranks = np.unique(scores, return_inverse=True)
    of_positive, of_negative = numbers[positive], numbers[~positive]
    rank_of_positive, rank_of_negative = ranks[positive], ranks[~positive]
    wins = np.zeros((n_patients, n_patients))
    for patient in np.unique(of_negative).tolist():
        at_rank = np.bincount(rank_of_negative[of_negative == patient], minlength=len(values))
        lower = np.cumsum(at_rank) - at_rank / 2
        wins[:, patient] = np.bincount(of_positive, weights=lower[rank_of_positive], minlength=n_patients)
    return wins
