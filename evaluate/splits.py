"""Which tiles are learnt from and which are tested on: always whole patients on one side.

Tiles of one slide, and slides of one patient, resemble each other; a split inside a patient measures memory.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from simtriplet.wsi.errors import EvaluationError, SettingsError
from simtriplet.wsi.registry import nearest_name

__all__ = ["Fold", "hold_out", "leave_one_patient_out", "make_folds", "patient_folds", "patients_per_class"]

_DEFAULT_FOLDS = 5
_ATTEMPTS = 10
"""Shuffles tried before a class that is missing from a training side makes us leave one patient out instead."""

_logger = logging.getLogger(__name__)
_Ints = npt.NDArray[np.int64]
_Patients = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Fold:
    """One split.

    Attributes:
        train: (k,) int64 places of the tiles to learn from.
        test: (l,) int64 places of the tiles to test on.
    """

    train: _Ints
    test: _Ints


def patients_per_class(codes: _Ints, patients: _Patients, n_classes: int) -> _Ints:
    """Return (n_classes,) how many patients have a tile of each class."""
    _, number = np.unique(patients.astype(str), return_inverse=True)
    pairs = np.unique(np.column_stack([codes, number]), axis=0)
    return np.bincount(pairs[:, 0], minlength=n_classes).astype(np.int64)


def patient_folds(
    codes: _Ints, patients: _Patients, *, classes: Sequence[str], folds: int | None = None, seed: int = 0
) -> tuple[Fold, ...]:
    """Split into folds by patient, classes spread as evenly as whole patients allow; each tile is tested once.

    Every training side holds every class; where shuffling does not reach that, one patient is left out at a time, which
    always does.

    Args:
        codes: (m,) class codes.
        patients: (m,) patient of each tile.
        classes: names for messages, in code order.
        folds: how many are wanted, at least 2; without it 5, or as many as the rarest class has patients.
        seed: of the shuffling.

    Raises:
        SettingsError: if fewer than two folds are asked for.
        EvaluationError: if there is one patient, or a class has one, or fewer than the folds that were asked for.
    """
    if folds is not None and folds < 2:
        raise SettingsError(f"folds {folds}: must be at least 2; pass a larger number")
    folds = _count_folds(_require_patients(codes, patients, classes), classes, folds)
    for attempt in range(_ATTEMPTS):
        found = _shuffled_folds(
            codes, patients, folds, int(np.random.SeedSequence([seed, attempt]).generate_state(1)[0])
        )
        if all(_is_usable(fold, codes, len(classes)) for fold in found):
            return found
    _logger.warning("no %d folds keep every class in training; one patient is left out at a time instead", folds)
    return leave_one_patient_out(patients)


def _require_patients(codes: _Ints, patients: _Patients, classes: Sequence[str]) -> _Ints:
    known = set(patients.tolist())
    if len(known) < 2:
        found = f"one patient only ({known.pop()!r})" if known else "no labelled tile"
        raise EvaluationError(f"split by patient: {found}; label slides of two or more patients")
    counts = patients_per_class(codes, patients, len(classes))
    for name, count in zip(classes, counts.tolist(), strict=True):
        if count < 2:
            raise EvaluationError(
                f"class {name!r}: has tiles of {count} patient(s), a split needs two; "
                "label more patients or leave the class out"
            )
    return counts


def _count_folds(counts: _Ints, classes: Sequence[str], wanted: int | None) -> int:
    fewest, rarest = int(counts.min()), classes[int(counts.argmin())]
    if wanted is None:
        if fewest < _DEFAULT_FOLDS:
            _logger.warning("%d folds: class %r has tiles of %d patients", fewest, rarest, fewest)
        return min(_DEFAULT_FOLDS, fewest)
    if fewest < wanted:
        raise EvaluationError(
            f"class {rarest!r}: has tiles of {fewest} patients, {wanted} folds need {wanted}; "
            f"ask for {fewest} folds, label more patients or leave the class out"
        )
    return wanted


def _shuffled_folds(codes: _Ints, patients: _Patients, folds: int, seed: int) -> tuple[Fold, ...]:
    splitter: Any = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    _, groups = np.unique(patients.astype(str), return_inverse=True)
    return tuple(
        Fold(train.astype(np.int64), test.astype(np.int64)) for train, test in splitter.split(codes, codes, groups)
    )


def _is_usable(fold: Fold, codes: _Ints, n_classes: int) -> bool:
    return len(fold.test) > 0 and len(np.unique(codes[fold.train])) == n_classes


def leave_one_patient_out(patients: _Patients) -> tuple[Fold, ...]:
    """Return one fold per patient, in the order of their names.

    Raises:
        EvaluationError: if there are fewer than two patients.
    """
    names = sorted(set(patients.tolist()))
    if len(names) < 2:
        raise EvaluationError(f"split by patient: {len(names)} patient(s); label slides of two or more patients")
    return tuple(Fold(np.flatnonzero(patients != name), np.flatnonzero(patients == name)) for name in names)


def make_folds(
    codes: _Ints,
    patients: _Patients,
    *,
    classes: Sequence[str],
    folds: int | None = None,
    seed: int = 0,
    test_patients: Sequence[str] = (),
) -> tuple[Fold, ...]:
    """Return the folds of every protocol: see patient_folds, or the one of hold_out where test patients are named.

    They depend on labels, patients and seed alone, so that all features of the same tiles are measured on the same.

    Raises:
        SettingsError: see patient_folds.
        EvaluationError: see patient_folds and hold_out; and if only test patients have tiles of a class.
    """
    if test_patients:
        fold = hold_out(patients, test_patients)
        _require_learnt(codes[fold.train], classes)
        return (fold,)
    return patient_folds(codes, patients, classes=classes, folds=folds, seed=seed)


def _require_learnt(codes: _Ints, classes: Sequence[str]) -> None:
    """Refuse a class that cannot be learnt: every encoder would get all of its tiles wrong."""
    for code in np.flatnonzero(np.bincount(codes, minlength=len(classes)) == 0).tolist():
        raise EvaluationError(
            f"class {classes[code]!r}: only test patients have tiles of it, so that it cannot be learnt; "
            "test on other patients or leave the class out"
        )


def hold_out(patients: _Patients, test_patients: Sequence[str]) -> Fold:
    """Return the one fold that tests on the named patients and learns from all others.

    Raises:
        EvaluationError: if a name has no labelled tile, or nobody is left to learn from.
    """
    known = sorted(set(patients.tolist()))
    for name in test_patients:
        if name not in known:
            raise EvaluationError(
                f"test patient {name!r}: has no labelled tile{nearest_name(name, known)}; name one that has"
            )
    test = np.isin(patients.astype(str), list(test_patients))
    if test.all():
        raise EvaluationError(f"test patients {', '.join(test_patients)}: nobody is left to learn from; name fewer")
    return Fold(np.flatnonzero(~test), np.flatnonzero(test))
