"""Splits: laws that hold for every cohort, and refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simtriplet.evaluate.splits import hold_out, leave_one_patient_out, make_folds, patient_folds, patients_per_class
from simtriplet.wsi.errors import EvaluationError, SettingsError


def people(*names):
    return np.array(names, dtype=object)


@st.composite
def cohorts(draw):
    """Tiles of 2 to 4 classes, each of which at least two patients have."""
    n_classes, n_patients = draw(st.integers(2, 4)), draw(st.integers(2, 9))
    numbers = st.integers(0, n_patients - 1)
    pairs = [
        (code, who) for code in range(n_classes) for who in draw(st.lists(numbers, min_size=2, max_size=6, unique=True))
    ]
    extra = draw(st.lists(st.tuples(st.integers(0, n_classes - 1), numbers), max_size=30))
    codes, who = np.array([*pairs, *extra], dtype=np.int64).T
    return (
        codes,
        np.array([f"p{number}" for number in who], dtype=object),
        tuple(f"c{code}" for code in range(n_classes)),
    )


@settings(max_examples=40, deadline=None)
@given(cohort=cohorts(), folds=st.integers(2, 6), seed=st.integers(0, 99))
def test_every_tile_is_tested_once_and_no_patient_is_on_both_sides(cohort, folds, seed):
    codes, patients, classes = cohort
    folds = min(folds, int(patients_per_class(codes, patients, len(classes)).min()))
    made = patient_folds(codes, patients, classes=classes, folds=folds, seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.test for fold in made])), np.arange(len(codes)))
    for fold in made:
        assert not set(patients[fold.train]) & set(patients[fold.test])
        assert len(fold.train) + len(fold.test) == len(codes)
        assert set(codes[fold.train].tolist()) == set(range(len(classes)))
    again = patient_folds(codes, patients, classes=classes, folds=folds, seed=seed)
    assert all(np.array_equal(one.test, other.test) for one, other in zip(made, again, strict=True))


def test_folds_are_stratified():
    codes = np.repeat([0, 1], 50)
    patients = np.repeat(np.array([f"p{number}" for number in range(10)], dtype=object), 10)
    for fold in patient_folds(codes, patients, classes=("x", "y"), folds=5):
        assert np.bincount(codes[fold.test]).tolist() == [10, 10]


def test_a_class_with_fewer_patients_than_the_folds_asked_for_is_refused(caplog):
    codes = np.array([0] * 6 + [1] * 3)
    patients = people("a", "b", "c", "d", "e", "f", "a", "b", "c")
    with pytest.raises(
        EvaluationError, match=r"class 'rare': has tiles of 3 patients, 5 folds need 5; ask for 3 folds"
    ):
        patient_folds(codes, patients, classes=("many", "rare"), folds=5)
    assert len(patient_folds(codes, patients, classes=("many", "rare"), folds=3)) == 3
    assert not caplog.text
    assert len(patient_folds(codes, patients, classes=("many", "rare"))) == 3
    assert "3 folds: class 'rare' has tiles of 3 patients" in caplog.text


def test_where_no_shuffle_keeps_every_class_one_patient_is_left_out_at_a_time(caplog):
    # Each class is missing in one patient, and two folds of three patients train one side on a single patient.
    codes = np.array([0, 0, 1, 1, 2, 2])
    patients = people("a", "b", "b", "c", "a", "c")
    assert len(patient_folds(codes, patients, classes=("x", "y", "z"), folds=2)) == 3
    assert "one patient is left out at a time" in caplog.text


def test_refusals_name_the_cure():
    with pytest.raises(EvaluationError, match=r"one patient only \('a'\); label slides of two"):
        patient_folds(np.array([0, 1]), people("a", "a"), classes=("x", "y"))
    with pytest.raises(EvaluationError, match=r"class 'y': has tiles of 1 patient.*leave the class out"):
        patient_folds(np.array([0, 0, 1]), people("a", "b", "b"), classes=("x", "y"))
    with pytest.raises(SettingsError, match="folds 1: must be at least 2"):
        patient_folds(np.array([0, 1]), people("a", "b"), classes=("x", "y"), folds=1)
    with pytest.raises(EvaluationError, match="no labelled tile"):
        patient_folds(np.array([], dtype=np.int64), people(), classes=("x", "y"))


def test_leaving_one_patient_out_tests_each_alone():
    made = leave_one_patient_out(people("b", "a", "b", "c"))
    assert [fold.test.tolist() for fold in made] == [[1], [0, 2], [3]]
    assert made[1].train.tolist() == [1, 3]
    with pytest.raises(EvaluationError, match="1 patient"):
        leave_one_patient_out(people("a", "a"))


def test_holding_out_named_patients():
    patients = people("anna", "ben", "anna", "carl")
    fold = hold_out(patients, ["anna"])
    assert (fold.train.tolist(), fold.test.tolist()) == ([1, 3], [0, 2])
    with pytest.raises(EvaluationError, match="'ana': has no labelled tile; did you mean 'anna'"):
        hold_out(patients, ["ana"])
    with pytest.raises(EvaluationError, match="nobody is left"):
        hold_out(patients, ["anna", "ben", "carl"])


def test_a_class_that_only_test_patients_have_is_refused():
    codes, patients = np.array([0, 1, 0, 1, 2]), people("a", "a", "b", "b", "c")
    (fold,) = make_folds(codes, patients, classes=("x", "y", "z"), test_patients=["a"])
    assert fold.test.tolist() == [0, 1]
    with pytest.raises(EvaluationError, match=r"class 'z': only test patients have tiles of it.*leave the class out"):
        make_folds(codes, patients, classes=("x", "y", "z"), test_patients=["b", "c"])


def test_patients_per_class_counts_each_once():
    counts = patients_per_class(np.array([0, 0, 0, 1]), people("a", "a", "b", "b"), 3)
    assert counts.tolist() == [2, 1, 0]
