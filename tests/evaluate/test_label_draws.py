"""Draws of labels: laws that hold for every cohort."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simtriplet.evaluate.label_draws import draw_labels, draw_seeds
from simtriplet.wsi.errors import EvaluationError


@st.composite
def cohorts(draw):
    tiles = st.tuples(st.integers(0, 3), st.integers(0, 6))
    codes, who = np.array(draw(st.lists(tiles, min_size=1, max_size=80)), dtype=np.int64).T
    return codes, np.array([f"p{number}" for number in who], dtype=object)


@settings(max_examples=60, deadline=None)
@given(cohort=cohorts(), seed=st.integers(0, 999))
def test_shares_are_nested_stratified_and_spread(cohort, seed):
    codes, patients = cohort
    shares = (0.01, 0.1, 0.25, 0.5, 1.0)
    drawn = draw_labels(codes, patients, kind="share", amounts=shares, seed=seed)
    np.testing.assert_array_equal(drawn[-1], np.arange(len(codes)))
    for less, more in itertools.pairwise(drawn):
        assert set(less.tolist()) <= set(more.tolist())
    for share, places in zip(shares, drawn, strict=True):
        assert len(set(places.tolist())) == len(places)
        for code in np.unique(codes):
            size = int((codes == code).sum())
            taken = places[codes[places] == code]
            assert len(taken) == max(1, math.floor(size * share + 0.5))
            require_even(patients[codes == code], patients[taken])


def require_even(had, taken):
    """No patient gave two more tiles than another one who had a tile left."""
    names = sorted(set(had.tolist()))
    given_by = {name: int((taken == name).sum()) for name in names}
    left = [given_by[name] for name in names if given_by[name] < (had == name).sum()]
    assert not left or max(given_by.values()) - min(left) <= 1


def test_shots_come_from_as_many_patients_as_there_are():
    codes = np.tile([0, 1], 200)
    patients = np.repeat(np.array([f"p{number}" for number in range(8)], dtype=object), [300, 50, *[8] * 5, 10])
    for places, shots in zip(
        draw_labels(codes, patients, kind="shots", amounts=(1, 2, 4, 8, 16), seed=3), (1, 2, 4, 8, 16), strict=True
    ):
        for code in (0, 1):
            owners = patients[places[codes[places] == code]].tolist()
            assert len(owners) == shots
            assert len(set(owners)) == min(shots, 8)


def test_draws_follow_their_seed_and_differ_between_seeds():
    codes, patients = np.tile([0, 1], 200), np.repeat(np.array(["a", "b", "c", "d"], dtype=object), 100)
    seeds = draw_seeds(0, 50)
    assert len(set(seeds)) == 50
    assert draw_seeds(0, 8) == seeds[:8]
    assert not set(seeds) & set(draw_seeds(1, 50))
    drawn = [tuple(draw_labels(codes, patients, kind="shots", amounts=(2,), seed=seed)[0]) for seed in seeds]
    again = [tuple(draw_labels(codes, patients, kind="shots", amounts=(2,), seed=seed)[0]) for seed in seeds]
    assert drawn == again
    assert len(set(drawn)) == 50


def test_every_tile_of_a_patient_is_as_likely():
    codes, patients = np.zeros(20, np.int64), np.repeat(np.array(["a", "b"], dtype=object), [15, 5])
    seeds = range(3000)
    first = [int(draw_labels(codes, patients, kind="shots", amounts=(1,), seed=seed)[0][0]) for seed in seeds]
    expected = np.repeat([3000 / 2 / 15, 3000 / 2 / 5], [15, 5])
    chi_square = ((np.bincount(first, minlength=20) - expected) ** 2 / expected).sum()
    assert chi_square < 43.8  # 99.9 % of chi-square with 19 degrees of freedom


def test_more_shots_than_tiles_are_refused():
    codes, patients = np.array([0, 0, 0, 1]), np.array(["a", "a", "b", "b"], dtype=object)
    with pytest.raises(EvaluationError, match="class 'rare': has 1 training tiles in a fold, 2 shots need 2"):
        draw_labels(codes, patients, kind="shots", amounts=(1, 2), seed=0, classes=("many", "rare"))
