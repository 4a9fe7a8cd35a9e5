"""Protocols on features whose answer is known."""

import dataclasses

import numpy as np
import pytest
from scipy.special import softmax

from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.leave_one_out_ensemble import combine_logits
from simtriplet.evaluate.linear_head import fit_heads
from simtriplet.evaluate.metrics import balanced_accuracy, confusion_matrix
from simtriplet.evaluate.nearest_neighbours import CosineNeighbours
from simtriplet.evaluate.protocol_registry import PROTOCOLS
from simtriplet.evaluate.splits import Fold, hold_out, patient_folds
from simtriplet.wsi.errors import EvaluationError, SettingsError, UnknownNameError

CLASSES = ("a", "b", "c")


def make_tiles(*, signal, n_patients=6, per_patient=30, dim=12, seed=0):
    """Make tiles whose first features are the class, `signal` standard deviations apart, in noise."""
    rng = np.random.default_rng(seed)
    m = n_patients * per_patient
    codes = rng.integers(0, 3, m)
    features = rng.normal(size=(m, dim))
    features[np.arange(m), codes] += signal
    patients = np.repeat([f"p{number}" for number in range(n_patients)], per_patient).astype(object)
    places = np.arange(m)
    return LabelledTiles(
        features.astype(np.float32),
        codes,
        CLASSES,
        patients,
        patients,
        places.astype(object),
        places,
        np.zeros((m, 2), np.int64),
    )


def score(protocol, tiles, seed=0):
    predicted = np.full(len(tiles), -1)
    for fold in patient_folds(tiles.codes, tiles.patients, classes=CLASSES, folds=3, seed=seed):
        outcome = PROTOCOLS.get(protocol).predict(tiles, fold, seed=seed)
        np.testing.assert_allclose(outcome.probabilities.sum(axis=1), 1)
        predicted[fold.test] = outcome.predicted
    return float(balanced_accuracy(confusion_matrix(tiles.codes, predicted, 3)))


@pytest.mark.parametrize("protocol", ["linear", "knn", "paper"])
def test_separable_classes_are_told_apart_and_noise_is_not(protocol):
    assert score(protocol, make_tiles(signal=14.0)) == 1.0
    assert score(protocol, make_tiles(signal=0.0, n_patients=12)) == pytest.approx(1 / 3, abs=0.1)


@pytest.mark.parametrize("protocol", ["linear", "knn", "paper"])
def test_test_labels_are_never_looked_at(protocol):
    tiles = make_tiles(signal=1.0)
    fold = hold_out(tiles.patients, ["p0", "p1"])
    hidden = tiles.codes.copy()
    hidden[fold.test] = (hidden[fold.test] + 1) % 3
    other = LabelledTiles(
        tiles.features, hidden, CLASSES, tiles.patients, tiles.slides, tiles.tile_ids, tiles.rows, tiles.base_xy
    )
    one, two = (PROTOCOLS.get(protocol).predict(part, fold, seed=0) for part in (tiles, other))
    np.testing.assert_array_equal(one.probabilities, two.probabilities)
    assert one.fitted == two.fitted


def test_a_weak_signal_in_many_features_asks_for_a_strong_penalty():
    tiles = make_tiles(signal=0.7, dim=300)
    fold = hold_out(tiles.patients, ["p0"])
    fitted = PROTOCOLS.get("linear").predict(tiles, fold, seed=0).fitted
    assert fitted["C"] <= 1e-2
    assert fitted["C_chosen_by"] == "inner folds of patients"
    assert fitted["converged"] is True


def test_a_penalty_that_cannot_be_chosen_is_said_so():
    tiles = make_tiles(signal=14.0, n_patients=2)
    outcome = PROTOCOLS.get("linear").predict(tiles, hold_out(tiles.patients, ["p1"]), seed=0)
    assert (outcome.fitted["C_chosen_by"], outcome.fitted["C"]) == ("default", 1e-2)


def test_heads_know_only_the_classes_they_saw():
    tiles = make_tiles(signal=14.0)
    kept = tiles.codes != 1
    (head,) = fit_heads(tiles.features[kept], tiles.codes[kept], n_classes=3, strengths=[1.0])
    probabilities = softmax(head.logits(tiles.features), axis=1)
    assert (probabilities[:, 1] == 0).all()
    np.testing.assert_array_equal(probabilities[kept].argmax(axis=1), tiles.codes[kept])


def test_constant_features_do_no_harm():
    tiles = make_tiles(signal=14.0)
    features = np.concatenate([tiles.features, np.ones((len(tiles), 2), np.float32)], axis=1)
    (head,) = fit_heads(features, tiles.codes, n_classes=3, strengths=[1.0])
    assert (head.logits(features).argmax(axis=1) == tiles.codes).all()


def test_combined_logits_are_the_sum_of_unit_rows():
    logits = np.array([[[3.0, 4.0, 0.0]], [[0.0, 0.0, 100.0]]])
    np.testing.assert_allclose(combine_logits(logits), [[0.6, 0.8, 1.0]], atol=1e-5)


def test_a_drawn_vote_is_settled_by_probability():
    logits = np.array([[[-2.0, 2.0]], [[0.1, -0.1]]])
    assert combine_logits(logits).argmax() == 1
    assert combine_logits(-logits).argmax() == 0


def test_a_class_that_a_head_does_not_know_counts_as_its_lowest():
    known = combine_logits(np.array([[[1.0, -3.0, -3.0]]]))
    np.testing.assert_allclose(combine_logits(np.array([[[1.0, -3.0, -np.inf]]])), known, atol=1e-5)


def test_the_paper_needs_patients_to_leave_out():
    tiles = make_tiles(signal=1.0, n_patients=2)
    with pytest.raises(EvaluationError, match="label slides of two or more patients"):
        PROTOCOLS.get("paper").predict(tiles, hold_out(tiles.patients, ["p0"]), seed=0)


def test_the_paper_fits_one_head_a_training_patient():
    tiles = make_tiles(signal=14.0, n_patients=7)
    assert PROTOCOLS.get("paper").predict(tiles, hold_out(tiles.patients, ["p0", "p1"]), seed=0).fitted["heads"] == 5


def test_cosine_ignores_length():
    tiles = make_tiles(signal=14.0)
    fold = hold_out(tiles.patients, ["p0"])
    stretched = tiles.features * np.linspace(0.01, 100, len(tiles))[:, None].astype(np.float32)
    other = LabelledTiles(
        stretched, tiles.codes, CLASSES, tiles.patients, tiles.slides, tiles.tile_ids, tiles.rows, tiles.base_xy
    )
    assert (CosineNeighbours().predict(other, fold, seed=0).predicted == tiles.codes[fold.test]).all()


def test_fewer_training_tiles_than_k_all_vote():
    tiles = make_tiles(signal=0.0)
    fold = Fold(np.array([0, 1, 2, 3]), np.array([40]))
    shares = CosineNeighbours().predict(tiles, fold, seed=0)
    np.testing.assert_allclose(shares.probabilities[0], np.bincount(tiles.codes[:4], minlength=3) / 4)
    assert shares.fitted == {"k": 4}


def test_a_drawn_vote_goes_to_the_class_whose_voters_are_more_alike_whatever_its_name():
    features = np.array([[1.0, 0.1], [1.0, 0.9], [1.0, -0.5], [1.0, 0.0]], np.float32)
    fold = Fold(np.array([0, 1, 2]), np.array([3]))
    for codes, k, winner in (([0, 1, 1], 2, 0), ([1, 0, 0], 2, 1), ([0, 1, 1], 3, 1), ([1, 0, 0], 3, 0)):
        tiles = LabelledTiles(
            features, np.array([*codes, 0]), CLASSES, *[np.array(list("abcd"), dtype=object)] * 3, np.arange(4),
            np.zeros((4, 2), np.int64),
        )  # fmt: skip
        outcome = CosineNeighbours(k).predict(tiles, fold, seed=0)
        assert outcome.predicted.tolist() == [winner]
        np.testing.assert_allclose(outcome.probabilities.sum(axis=1), 1, rtol=1e-12)


def test_more_heads_that_agree_are_not_surer():
    tiles = make_tiles(signal=14.0, n_patients=24, per_patient=12)
    two = dataclasses.replace(tiles, codes=np.minimum(tiles.codes, 1), classes=("a", "b"))
    unanimous = softmax([2**-0.5, -(2**-0.5)])[0]
    for n_heads in (3, 23):
        fold = hold_out(two.patients, [f"p{number}" for number in range(24 - n_heads)])
        outcome = PROTOCOLS.get("paper").predict(two, fold, seed=0)
        assert outcome.fitted["heads"] == n_heads
        assert outcome.probabilities.max() == pytest.approx(unanimous, abs=1e-5)


def test_unknown_names_and_numbers_are_refused():
    with pytest.raises(UnknownNameError, match=r"evaluation protocol 'liner'.*did you mean 'linear'"):
        PROTOCOLS.get("liner")
    with pytest.raises(SettingsError, match="k 0"):
        CosineNeighbours(k=0)
    with pytest.raises(EvaluationError, match="fewer than two classes"):
        fit_heads(np.zeros((3, 2), np.float32), np.zeros(3, np.int64), n_classes=2, strengths=[1.0])
