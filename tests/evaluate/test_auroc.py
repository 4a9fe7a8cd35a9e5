"""AUROC against scikit-learn, and its resampling against patients that are duplicated literally."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from simtriplet.evaluate.bootstrap import draw_patients, number_patients, patient_intervals
from simtriplet.evaluate.metrics import measure
from simtriplet.evaluate.patient_tally import tally_patients

NAMES = ("a", "b", "c")


def cohort(*, m=240, n_patients=6, seed=0, decimals=2):
    """Tiles of three classes; probabilities are rounded, so that many tie."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, m)
    logits = rng.normal(size=(m, 3))
    logits[np.arange(m), codes] += 1
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    patients = np.array([f"p{number}" for number in rng.integers(0, n_patients, m)], dtype=object)
    return codes, probabilities.round(decimals), patients


def literal_auroc(codes, probabilities):
    classes = [code for code in range(probabilities.shape[1]) if 0 < (codes == code).sum() < len(codes)]
    return np.mean([roc_auc_score(codes == code, probabilities[:, code]) for code in classes]) if classes else np.nan


def test_the_value_is_that_of_scikit_learn():
    codes, probabilities, patients = cohort(decimals=9)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    found = measure(codes, probabilities.argmax(axis=1), patients, NAMES, probabilities=probabilities)
    assert found.macro_auroc == pytest.approx(roc_auc_score(codes, probabilities, multi_class="ovr", average="macro"))
    for code, one in enumerate(found.per_class):
        assert one.auroc == roc_auc_score(codes == code, probabilities[:, code])


def test_classes_without_tiles_have_none_and_are_not_in_the_mean():
    codes, probabilities = (
        np.array([0, 1, 0, 1]),
        np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.3, 0.7, 0], [0.4, 0.6, 0]]),
    )
    patients = np.array(["p", "p", "q", "q"], dtype=object)
    found = measure(codes, probabilities.argmax(axis=1), patients, NAMES, probabilities=probabilities)
    assert [one.auroc for one in found.per_class] == [0.75, 0.75, None]
    assert found.macro_auroc == 0.75


def test_one_class_alone_has_no_auroc_and_no_interval():
    codes, patients = np.zeros(4, np.int64), np.array(["p", "p", "q", "q"], dtype=object)
    probabilities = np.full((4, 2), 0.5)
    found = measure(codes, codes, patients, NAMES[:2], probabilities=probabilities)
    assert found.macro_auroc is None
    intervals = patient_intervals(codes, codes, patients, n_classes=2, probabilities=probabilities)
    assert list(intervals) == ["balanced_accuracy", "macro_f1", "accuracy"]


def test_without_probabilities_there_is_none():
    codes, _, patients = cohort()
    assert measure(codes, codes, patients, NAMES).macro_auroc is None
    assert "macro_auroc" not in patient_intervals(codes, codes, patients, n_classes=3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n_patients=st.integers(1, 7), data=st.data())
def test_weights_are_the_same_as_duplicating_patients(seed, n_patients, data):
    codes, probabilities, patients = cohort(m=60, n_patients=n_patients, seed=seed, decimals=1)
    numbers, known = number_patients(patients)
    times = data.draw(st.lists(st.integers(0, 3), min_size=known, max_size=known).filter(any))
    tally = tally_patients(
        codes, probabilities.argmax(axis=1), numbers, n_classes=3, n_patients=known, scores=probabilities
    )
    found = tally.metrics(np.array([times], dtype=float))
    drawn = np.repeat(np.arange(len(codes)), np.array(times)[numbers])
    labels, chances = codes[drawn], probabilities[drawn]
    np.testing.assert_allclose(found["macro_auroc"][0], literal_auroc(labels, chances), rtol=1e-12)
    recalls = [(chances[labels == code].argmax(axis=1) == code).mean() for code in np.unique(labels)]
    assert found["balanced_accuracy"][0] == pytest.approx(np.mean(recalls))
    assert found["macro_f1"][0] == pytest.approx(f1_score(labels, chances.argmax(axis=1), average="macro"))


def test_the_interval_is_that_of_literal_resampling():
    codes, probabilities, patients = cohort(m=300, n_patients=5)
    found = patient_intervals(
        codes, probabilities.argmax(axis=1), patients, n_classes=3, draws=200, seed=4, probabilities=probabilities
    )
    literal = {"macro_auroc": [], "balanced_accuracy": []}
    for times in draw_patients(5, 200, 4).astype(int):
        drawn = np.concatenate([np.tile(np.flatnonzero(patients == f"p{n}"), times[n]) for n in range(5)])
        literal["macro_auroc"].append(literal_auroc(codes[drawn], probabilities[drawn]))
        right = balanced_accuracy_score(codes[drawn], probabilities[drawn].argmax(axis=1))
        literal["balanced_accuracy"].append(right)
    for name, values in literal.items():
        np.testing.assert_allclose([found[name].low, found[name].high], np.percentile(values, [2.5, 97.5]))
        assert found[name].low < found[name].value < found[name].high


def test_resamples_without_both_kinds_of_tiles_are_left_out():
    # One patient per class: half of the draws hold one class only.
    codes, patients = np.repeat([0, 1], 10), np.repeat(np.array(["p", "q"], dtype=object), 10)
    probabilities = np.column_stack([1 - codes, codes]).astype(float)
    found = patient_intervals(codes, codes, patients, n_classes=2, probabilities=probabilities)["macro_auroc"]
    assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)


def test_fifty_thousand_tiles_of_a_hundred_patients_are_resampled_exactly():
    codes, probabilities, patients = cohort(m=50_000, n_patients=100, decimals=6)
    found = patient_intervals(codes, probabilities.argmax(axis=1), patients, n_classes=3, probabilities=probabilities)
    assert found["macro_auroc"].value == pytest.approx(literal_auroc(codes, probabilities), abs=1e-12)
