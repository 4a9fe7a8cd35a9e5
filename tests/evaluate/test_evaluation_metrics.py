"""Metrics against scikit-learn and against closed forms; intervals against what resampling must give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from simtriplet.evaluate.bootstrap import patient_intervals
from simtriplet.evaluate.metrics import measure
from simtriplet.wsi.errors import EvaluationError, SettingsError

CLASSES = ("a", "b", "c", "d")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_metrics_are_those_of_scikit_learn(pairs):
    codes, predicted = np.array(pairs, dtype=np.int64).T
    found = measure(codes, predicted, np.full(len(codes), "p", dtype=object), CLASSES)
    assert found.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(codes, predicted))
    assert found.macro_f1 == pytest.approx(sk.f1_score(codes, predicted, average="macro", zero_division=0))
    assert found.accuracy == pytest.approx(sk.accuracy_score(codes, predicted))
    np.testing.assert_array_equal(found.confusion, sk.confusion_matrix(codes, predicted, labels=range(4)))
    expected = sk.precision_recall_fscore_support(codes, predicted, labels=range(4), zero_division=0)
    ours = [(one.precision, one.recall, one.f1, one.n_tiles) for one in found.per_class]
    np.testing.assert_allclose(np.array(ours).T, np.array(expected, dtype=float))


def test_closed_form():
    codes = np.array([0, 0, 0, 0, 1, 1], dtype=np.int64)
    predicted = np.array([0, 0, 0, 1, 1, 0], dtype=np.int64)
    patients = np.array(["p", "p", "q", "q", "q", "q"], dtype=object)
    found = measure(codes, predicted, patients, ("x", "y"))
    assert found.balanced_accuracy == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.macro_f1 == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert found.confusion == ((3, 1), (1, 1))
    assert [one.n_patients for one in found.per_class] == [2, 1]


def test_lengths_must_agree():
    with pytest.raises(EvaluationError, match="give as many"):
        measure(np.array([0]), np.array([], dtype=np.int64), np.array(["p"], dtype=object), ("x", "y"))


def intervals(codes, predicted, patients, **options):
    arrays = np.array(codes, dtype=np.int64), np.array(predicted, dtype=np.int64), np.array(patients, dtype=object)
    return patient_intervals(*arrays, n_classes=2, **options)


def test_intervals_draw_patients_not_tiles():
    # Two patients, one all right and one all wrong: a draw has two right (1/4), one (1/2) or none (1/4).
    found = intervals([0, 1] * 500, [0, 1] * 250 + [1, 0] * 250, ["p"] * 500 + ["q"] * 500)
    for name in ("balanced_accuracy", "accuracy"):
        assert (found[name].low, found[name].value, found[name].high) == (0.0, 0.5, 1.0)


def test_equal_patients_leave_no_spread_and_tiles_do_not_matter():
    found = intervals([0, 0, 0, 1] * 3, [0, 0, 1, 1] * 3, np.repeat(["p", "q", "r"], 4))
    assert found["accuracy"].low == found["accuracy"].high == found["accuracy"].value == 0.75


def test_intervals_follow_the_seed_and_hold_the_value():
    rng = np.random.default_rng(0)
    codes, patients = rng.integers(0, 2, 400), rng.integers(0, 12, 400).astype(str)
    predicted = np.where(rng.random(400) < 0.7, codes, 1 - codes)
    one, same, other = (intervals(codes, predicted, patients, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    for interval in one.values():
        assert interval.low < interval.value < interval.high


def test_one_patient_gives_no_interval():
    found = intervals([0, 1], [0, 1], ["p", "p"])
    assert (found["accuracy"].value, found["accuracy"].low, found["accuracy"].high) == (1.0, None, None)


def test_too_few_draws_are_refused():
    with pytest.raises(SettingsError, match="at least 100"):
        intervals([0, 1], [0, 1], ["p", "q"], draws=10)
