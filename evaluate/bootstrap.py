"""95 % intervals by drawing patients, not tiles: a thousand tiles of one patient are one observation."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.patient_tally import METRICS, tally_patients
from simtriplet.wsi.errors import SettingsError

__all__ = ["METRICS", "Interval", "draw_patients", "number_patients", "patient_intervals", "percentile_interval"]

_Floats = npt.NDArray[np.float64]


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
    probabilities: _Floats | None = None,
) -> dict[str, Interval]:
    """Return every metric with its interval; AUROC only where it is defined.

    The predictions stay as they are, so that the interval says how the result would vary with other test patients,
    not with other training patients.

    Args:
        codes: (m,) labels.
        predicted: (m,) predictions.
        patients: (m,) patient of each tile; drawn with replacement, as many as there are.
        n_classes: number of classes.
        draws: resamples.
        seed: of the draws.
        probabilities: (m, n_classes), for AUROC.

    Raises:
        SettingsError: if fewer than 100 draws are asked for.
    """
    numbers, n_patients = number_patients(patients)
    weights = np.concatenate([np.ones((1, n_patients)), draw_patients(n_patients, draws, seed)])
    tally = tally_patients(codes, predicted, numbers, n_classes=n_classes, n_patients=n_patients, scores=probabilities)
    found = tally.metrics(weights)
    return {
        name: percentile_interval(float(values[0]), values[1:], n_patients)
        for name, values in found.items()
        if np.isfinite(values[0])
    }


def number_patients(patients: npt.NDArray[np.object_]) -> tuple[npt.NDArray[np.int64], int]:
    """Return (m,) numbers of patients in the order of their names, and how many there are."""
    names, numbers = np.unique(patients.astype(str), return_inverse=True)
    return numbers.astype(np.int64), len(names)


def draw_patients(n_patients: int, draws: int, seed: int) -> _Floats:
    """Return (draws, n_patients) how often each patient is drawn, with replacement, as many as there are.

    Raises:
        SettingsError: if fewer than 100 draws are asked for.
    """
    if draws < 100:
        raise SettingsError(f"bootstrap draws {draws}: must be at least 100 for a 95 % interval; pass more")
    shares = np.full(n_patients, 1 / n_patients)
    return np.random.default_rng(seed).multinomial(n_patients, shares, size=draws).astype(np.float64)


def percentile_interval(value: float, drawn: _Floats, n_patients: int) -> Interval:
    """Return the interval that (draws,) resampled values span; those in which the metric is not defined are left out."""
    defined = drawn[np.isfinite(drawn)]
    if n_patients < 2 or not len(defined):
        return Interval(value, None, None)
    low, high = np.percentile(defined, [2.5, 97.5]).tolist()
    return Interval(value, low, high)
