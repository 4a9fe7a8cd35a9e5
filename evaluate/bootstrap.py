"""95 % intervals by drawing patients, not tiles: a thousand tiles of one patient are one observation."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.metrics import accuracy, balanced_accuracy, confusion_matrix, macro_f1
from simtriplet.wsi.errors import SettingsError

__all__ = ["METRICS", "Interval", "patient_intervals"]

METRICS: dict[str, Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]]] = {
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "accuracy": accuracy,
}
"""Name in results -> function of confusion matrices (..., k, k)."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and its 95 % interval (2.5th and 97.5th percentile over the draws).

    Attributes:
        value: of all patients.
        low: lower bound; None with fewer than two patients.
        high: upper bound; None with fewer than two patients.
    """

    value: float
    low: float | None
    high: float | None


def patient_intervals(
    codes: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.int64],
    patients: npt.NDArray[np.object_],
    *,
    n_classes: int,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return every metric with its interval.

    The predictions stay as they are, so that the interval says how the result would vary with other test patients,
    not with other training patients.

    Args:
        codes: (m,) labels.
        predicted: (m,) predictions.
        patients: (m,) patient of each tile; drawn with replacement, as many as there are.
        n_classes: number of classes.
        draws: resamples.
        seed: of the draws.

    Raises:
        SettingsError: if fewer than 100 draws are asked for.
    """
    if draws < 100:
        raise SettingsError(f"bootstrap draws {draws}: must be at least 100 for a 95 % interval; pass more")
    _, number = np.unique(patients.astype(str), return_inverse=True)
    n_patients = int(number.max()) + 1
    cells = number * n_classes**2 + codes * n_classes + predicted
    by_patient = np.bincount(cells, minlength=n_patients * n_classes**2).reshape(n_patients, n_classes**2)
    times_drawn = np.random.default_rng(seed).multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=draws)
    drawn = (times_drawn @ by_patient).reshape(draws, n_classes, n_classes)
    pooled = confusion_matrix(codes, predicted, n_classes)
    intervals = {}
    for name, metric in METRICS.items():
        low, high = np.percentile(metric(drawn), [2.5, 97.5]).tolist()
        enough = n_patients > 1
        intervals[name] = Interval(float(metric(pooled)), low if enough else None, high if enough else None)
    return intervals
