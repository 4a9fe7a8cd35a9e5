"""Rank, votes of nearest neighbours and the probe that they are measured on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simtriplet.pretrain.feature_vote import balanced_share, neighbour_vote
from simtriplet.pretrain.probe import ProbeTiles
from simtriplet.pretrain.rank import effective_rank
from simtriplet.pretrain.tiles import TileNumbering


def rank_in_float64(features: np.ndarray) -> float:
    singular = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    p = singular / singular.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize("shape", [(200, 16), (30, 50), (500, 64)])
def test_effective_rank_agrees_with_float64(shape):
    rng = np.random.default_rng(0)
    features = rng.normal(size=shape) * 0.7 ** np.arange(shape[1]) + 3  # some dimensions hardly count
    assert effective_rank(torch.from_numpy(features)) == pytest.approx(rank_in_float64(features), rel=1e-3)


def test_effective_rank_is_the_number_of_equal_directions():
    assert effective_rank(torch.eye(8).repeat(5, 1)) == pytest.approx(8, rel=1e-4)
    assert effective_rank(torch.ones(20, 8)) == pytest.approx(1, abs=1e-3)
    assert np.isnan(effective_rank(torch.full((3, 3), torch.nan)))


@given(seed=st.integers(0, 99), n=st.integers(2, 40), d=st.integers(2, 20))
def test_effective_rank_lies_between_one_and_the_smaller_side(seed, n, d):
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    assert 1 - 1e-3 <= effective_rank(features) <= min(n, d) + 1e-2
    assert effective_rank(5 * features) == pytest.approx(effective_rank(features), rel=1e-3)


def vote_in_numpy(features, codes, groups, k):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    votes = []
    for i, row in enumerate(unit):
        others = np.flatnonzero(groups != groups[i])
        nearest = others[np.argsort(-(unit[others] @ row), kind="stable")][:k]
        votes.append(np.bincount(codes[nearest]).argmax() if len(nearest) else -1)
    return np.array(votes)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_votes_are_those_of_a_plain_search_among_other_groups(k):
    rng = np.random.default_rng(1)
    features, codes, groups = rng.normal(size=(1100, 6)), rng.integers(0, 3, 1100), rng.integers(0, 7, 1100)
    votes = neighbour_vote(*(torch.from_numpy(each) for each in (features.astype(np.float32), codes, groups)), k=k)
    agree = votes.numpy() == vote_in_numpy(features.astype(np.float32), codes, groups, k)
    assert agree.mean() > 0.998  # two similarities may swap in the last bit


def test_a_tile_never_votes_for_itself_nor_its_patient():
    """Each patient's two tiles are twins with a class of their own; only those twins would vote right."""
    features = torch.eye(5).repeat_interleave(2, dim=0) + 0.1
    codes = torch.arange(5).repeat_interleave(2)
    alone = torch.arange(10)
    assert torch.equal(neighbour_vote(features, codes, alone, k=1), codes)
    by_patient = neighbour_vote(features, codes, codes, k=1)
    assert (by_patient != codes).all()
    assert (by_patient >= 0).all()


def test_who_has_nobody_to_ask_has_no_vote():
    votes = neighbour_vote(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    assert votes.tolist() == [-1] * 4
    assert np.isnan(balanced_share(votes, torch.zeros(4, dtype=torch.int64)))


def test_the_share_is_averaged_over_the_classes():
    codes = torch.tensor([0] * 8 + [1] * 2)
    assert balanced_share(torch.zeros(10, dtype=torch.int64), codes) == pytest.approx(0.5)
    assert balanced_share(torch.tensor([0] * 6 + [1, -1] + [1, 1]), codes) == pytest.approx((6 / 7 + 1) / 2)


def test_the_probe_is_fixed_by_its_seed_and_knows_its_tiles(store_factory):
    stores = [store_factory("a", patient_id="p1"), store_factory("b", patient_id="p1", labels=False, seed=1)]
    stores.append(store_factory("c", patient_id="p2", seed=2))
    numbering = TileNumbering(stores)
    probe, again = (ProbeTiles(numbering, n_tiles=20, seed=3) for _ in range(2))
    assert np.array_equal(probe.ids, again.ids)
    assert not np.array_equal(probe.ids, ProbeTiles(numbering, n_tiles=20, seed=4).ids)
    assert len(np.unique(probe.ids)) == 20 == len(probe)
    assert probe.slides.tolist() == (probe.ids // 24).tolist()
    assert probe.patients.tolist() == [0 if slide < 2 else 1 for slide in probe.slides.tolist()]
    for tile, slide, label, pixels in zip(probe.ids, probe.slides.tolist(), probe.labels, probe.pixels, strict=True):
        place = tile % 24
        assert int(label) == (-1 if slide == 1 else int(place % 6 >= 3))
        assert np.array_equal(pixels.numpy(), stores[slide].images.read([place])[0])
    assert len(ProbeTiles(numbering, n_tiles=500, seed=3)) == 72
