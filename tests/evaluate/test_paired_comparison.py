"""Paired differences: closed forms, error rates over simulated cohorts, refusals."""

import dataclasses

import numpy as np
import pytest

from simtriplet.evaluate.paired import compare_predictions
from simtriplet.wsi.errors import EvaluationError, SettingsError


def scores_of(predicted):
    """Return (1, m, 2) scores that predict these classes."""
    return np.eye(2)[np.asarray(predicted)][None]


def people(n_patients, per_patient):
    return np.repeat(np.array([f"p{number}" for number in range(n_patients)], dtype=object), per_patient)


def test_equal_encoders_do_not_differ():
    rng = np.random.default_rng(0)
    codes, scores = rng.integers(0, 2, 60), rng.random((1, 60, 2))
    for one in compare_predictions(codes, people(6, 10), scores, scores, draws=100).values():
        assert (one.difference, one.low, one.high, one.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize("n_patients", [2, 3, 5, 10])
def test_the_smallest_p_value_is_that_of_a_sign_test(n_patients):
    codes = np.tile([0, 1], 2 * n_patients)
    found = compare_predictions(codes, people(n_patients, 4), scores_of(codes), scores_of(1 - codes), draws=100)
    for name in ("balanced_accuracy", "macro_f1", "macro_auroc", "accuracy"):
        assert (found[name].a, found[name].b, found[name].difference) == (1, 0, 1)
        assert (found[name].low, found[name].high) == (1, 1)
        assert found[name].p_value == 2 / 2**n_patients
    assert found["accuracy"].test == f"all swaps of {n_patients} patients"


def test_the_exact_p_value_of_accuracy_is_that_of_all_sign_flips():
    # With equally many tiles each, a swap of patients flips the sign of its difference in accuracy.
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 2, 80)
    a, b = (np.where(rng.random(80) < chance, codes, 1 - codes) for chance in (0.8, 0.65))
    by_patient = ((a == codes).astype(float) - (b == codes)).reshape(8, 10).mean(axis=1)
    signs = np.array([[1 if place >> bit & 1 else -1 for bit in range(8)] for place in range(256)])
    expected = (np.abs(signs @ by_patient) >= abs(by_patient.sum()) - 1e-9).mean()
    found = compare_predictions(codes, people(8, 10), scores_of(a), scores_of(b), draws=100)["accuracy"]
    assert found.difference == pytest.approx(by_patient.mean())
    assert found.p_value == expected


def test_swapping_the_two_turns_the_sign_only():
    rng = np.random.default_rng(1)
    codes, a, b = rng.integers(0, 2, 200), rng.random((3, 200, 2)), rng.random((3, 200, 2))
    one, other = (compare_predictions(codes, people(20, 10), *pair, draws=500) for pair in ((a, b), (b, a)))
    for name in one:
        assert one[name].difference == -other[name].difference
        assert one[name].p_value == other[name].p_value
        np.testing.assert_allclose([one[name].low, one[name].high], [-other[name].high, -other[name].low])


def test_the_comparison_of_auroc_looks_at_the_order_alone():
    rng = np.random.default_rng(4)
    patients = people(12, 10)
    codes = (rng.random(120) < np.repeat(rng.random(12), 10)).astype(np.int64)  # patients have more of one class
    a, b = (rng.random((2, 120, 2)) + gain * np.eye(2)[codes] for gain in (0.4, 0.25))
    surer = 9 + a**3  # rises with a, and is above every score of b
    one, other = (compare_predictions(codes, patients, each, b, draws=200)["macro_auroc"] for each in (a, surer))
    assert one == other
    assert one.p_value < 0.05


def test_draws_of_labels_are_averaged():
    rng = np.random.default_rng(2)
    codes, patients = rng.integers(0, 2, 100), people(10, 10)
    a, b = rng.random((4, 100, 2)), rng.random((4, 100, 2))
    together = compare_predictions(codes, patients, a, b, draws=100)
    each = [compare_predictions(codes, patients, a[[n]], b[[n]], draws=100) for n in range(4)]
    for name, one in together.items():
        assert one.difference == pytest.approx(np.mean([single[name].difference for single in each]))
        assert one.a == pytest.approx(np.mean([single[name].a for single in each]))


def simulate(rng, *, n_patients, gain):
    """Tiles of patients who differ in how hard they are, alike and apart for the two encoders."""
    sizes = rng.integers(4, 30, n_patients)
    patients = np.repeat(np.array([f"p{n:02d}" for n in range(n_patients)], dtype=object), sizes)
    codes = np.where(rng.random(len(patients)) < 0.5, 0, 1)
    hardness = np.repeat(rng.normal(0, 1, n_patients), sizes)
    noise = rng.normal(size=(2, len(codes)))
    own = np.stack([np.repeat(rng.normal(0, 0.5, n_patients), sizes) for _ in range(2)])
    margin = 0.5 + hardness + own + noise
    margin[0] += gain
    scores = 1 / (1 + np.exp(-np.where(codes == 1, margin, -margin)))
    return codes, patients, *(np.stack([1 - one, one], axis=1)[None] for one in scores)


@pytest.mark.parametrize("n_patients", [10, 20])
def test_false_positives_are_at_most_five_in_a_hundred_and_clear_gains_are_found(n_patients):
    rng = np.random.default_rng(n_patients)
    found = {}
    for gain in (0.0, 1.5):
        runs = [
            compare_predictions(*simulate(rng, n_patients=n_patients, gain=gain), draws=200, seed=seed)
            for seed in range(300)
        ]
        for name in ("balanced_accuracy", "macro_auroc"):
            found[gain, name] = np.mean([run[name].p_value < 0.05 for run in runs])
    for name in ("balanced_accuracy", "macro_auroc"):
        assert found[0.0, name] < 0.08
        assert found[1.5, name] > 0.8
    assert found[0.0, "balanced_accuracy"] > 0.015  # a test that never rejects would pass, too


def test_one_patient_has_neither_interval_nor_p_value():
    codes = np.array([0, 1, 0, 1])
    found = compare_predictions(codes, people(1, 4), scores_of(codes), scores_of(1 - codes), draws=100)["accuracy"]
    assert (found.difference, found.low, found.high, found.p_value) == (1, None, None, None)


def test_unfit_scores_and_few_draws_are_refused():
    codes, scores = np.array([0, 1]), np.zeros((1, 2, 2))
    with pytest.raises(EvaluationError, match=r"must both be \(draws, tiles, classes\)"):
        compare_predictions(codes, people(2, 1), scores, np.zeros((2, 2, 2)))
    with pytest.raises(SettingsError, match="at least 100"):
        compare_predictions(codes, people(2, 1), scores, scores, draws=10)


def test_a_difference_is_a_plain_record():
    codes = np.array([0, 1, 0, 1])
    one = compare_predictions(codes, people(2, 2), scores_of(codes), scores_of(codes), draws=100)["accuracy"]
    assert dataclasses.asdict(one) == {
        "a": 1.0, "b": 1.0, "difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0, "n_patients": 2,
        "test": "all swaps of 2 patients",
    }  # fmt: skip
