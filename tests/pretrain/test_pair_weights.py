"""The weight of a pair against its definition, pair by pair, in float64."""

import numpy as np
import pytest
import torch
import zarr

from simtriplet.evaluate.feature_array import write_features
from simtriplet.pretrain.cohort import Cohort
from simtriplet.pretrain.pair_weights import PAIR_WEIGHTS, weigh_pairs
from simtriplet.pretrain.settings import load_settings
from simtriplet.wsi.errors import NeighbourError, SettingsError, StoreError, UnknownNameError
from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.neighbours import RadiusRule

CPU = torch.device("cpu")


@pytest.fixture
def store(store_factory):
    """A lattice with a hole, joined up to 2.3 tiles (of 16 um) away, with features of which one vector is zero."""
    store = store_factory(keep=np.arange(24) != 8)
    index_store(store, RadiusRule(16 * 2.3))
    features = np.random.default_rng(0).normal(size=(23, 5)).astype(np.float32)
    features[3] = 0
    write_features(store, "seen", features, {"encoder_hash": "one"})
    return type(store)(store.path)


def pairs_of(store):
    graph = store.neighbours()
    return np.repeat(np.arange(len(store)), graph.degrees), graph.indices


def test_distance_is_relative_to_the_nearest_of_the_slide(store):
    anchors, others = pairs_of(store)
    xy = store.centres() * store.base_mpp
    apart = np.hypot(*(xy[anchors] - xy[others]).T)
    weights = weigh_pairs(store, store.neighbours(), ["distance"])
    np.testing.assert_allclose(weights, 16 / apart, rtol=1e-6)
    assert weights.dtype == np.float32
    assert {round(float(w), 3) for w in weights} == {1.0, 0.707, 0.5, 0.447}


def test_tissue_is_the_smaller_fraction_of_the_two(store):
    fraction = np.random.default_rng(1).random(len(store)).astype(np.float32)
    zarr.open_array(store.path / "tables/tiles/obs/tissue_fraction", mode="r+")[:] = fraction
    weights = weigh_pairs(store, store.neighbours(), ["tissue"])
    for weight, a, b in zip(weights, *pairs_of(store), strict=True):
        assert weight == min(fraction[a], fraction[b])


@pytest.mark.parametrize("name", ["seen", "X_seen"])
def test_similarity_is_the_cosine_and_never_negative(store, name):
    x = store.features("seen").astype(np.float64)
    weights = weigh_pairs(store, store.neighbours(), ["similarity"], features=name)
    expected = []
    for a, b in zip(*pairs_of(store), strict=True):
        length = np.linalg.norm(x[a]) * np.linalg.norm(x[b])
        expected.append(max(0.0, x[a] @ x[b] / length) if length else 0.0)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert (weights == 0).sum() > 16
    assert weights.max() > 0.5


def test_similarity_of_many_pairs_is_computed_in_blocks(store, monkeypatch):
    whole = weigh_pairs(store, store.neighbours(), ["similarity"], features="seen")
    monkeypatch.setattr("simtriplet.pretrain.pair_weights._BLOCK_NUMBERS", 35)
    np.testing.assert_array_equal(weigh_pairs(store, store.neighbours(), ["similarity"], features="seen"), whole)


def test_several_weights_are_multiplied(store):
    graph = store.neighbours()
    both = weigh_pairs(store, graph, ["similarity", "distance"], features="seen")
    one, other = (weigh_pairs(store, graph, [name], features="seen") for name in ("distance", "similarity"))
    np.testing.assert_allclose(both, one.astype(np.float64) * other, rtol=1e-6)
    assert weigh_pairs(store, graph, []).tolist() == [1.0] * len(graph.indices)


def test_a_new_weight_is_one_function(store, monkeypatch):
    monkeypatch.setattr(PAIR_WEIGHTS, "_entries", dict(PAIR_WEIGHTS._entries))
    PAIR_WEIGHTS.add("half", lambda store, graph, features: np.full(len(graph.indices), 0.5))
    graph = store.neighbours()
    np.testing.assert_allclose(
        weigh_pairs(store, graph, ["half", "distance"]), weigh_pairs(store, graph, ["distance"]) / 2
    )
    for bad in (-0.1, np.nan, np.inf):
        PAIR_WEIGHTS.add(f"bad {bad}", lambda store, graph, features, bad=bad: np.full(len(graph.indices), bad))
        with pytest.raises(NeighbourError, match=r"bad .*must be at least 0"):
            weigh_pairs(store, graph, [f"bad {bad}"])


def test_a_slide_without_pairs_has_no_weights(store_factory):
    store = store_factory(rows=1, cols=1)
    assert len(weigh_pairs(store, store.neighbours(), ["distance", "tissue"])) == 0


def test_an_unknown_weight_names_the_nearest(store):
    with pytest.raises(UnknownNameError, match=r"did you mean 'distance'.*known are distance, similarity, tissue"):
        Cohort([store], neighbours="spatial", pair_weights=["distanse"])


def test_missing_features_name_the_cure(store):
    with pytest.raises(StoreError, match=r"no features 'other' \(known: seen\); run simtriplet embed"):
        Cohort([store], neighbours="spatial", pair_weights=["similarity"], similarity_features="other")


def test_a_cohort_tells_features_of_one_name_apart(store):
    def told(**kwargs):
        return Cohort([type(store)(store.path)], neighbours="spatial", **kwargs).describe()[0]["features"]

    similar = {"pair_weights": ["similarity"], "similarity_features": "X_seen"}
    assert (told(), told(similarity_features="seen"), told(**similar)) == (None, None, "one")
    write_features(store, "seen", store.features("seen"), {"encoder_hash": "two"})
    assert told(**similar) == "two"


def test_a_cohort_draws_with_the_weights_of_its_stores(store, store_factory):
    stores = [store, store_factory("another")]
    cohort = Cohort(stores, neighbours="spatial", pair_weights=["distance"])
    ids = torch.arange(47).repeat(30)
    neighbours, weights = cohort.neighbour_draw(CPU).draw_pairs(ids, torch.Generator().manual_seed(0))
    xy = np.concatenate([one.centres() * one.base_mpp for one in cohort.stores])
    apart = np.hypot(*(xy[ids] - xy[neighbours]).T)
    np.testing.assert_allclose(weights, 16 / apart, rtol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (['data.pair_weights=["distance","distance"]'], "pair_weights"),
        (['data.pair_weights=["similarity"]'], "similarity_features"),
        (["data.pair_weights=distance"], "pair_weights"),
        (["data.regate_every_epochs=-1"], "regate_every_epochs"),
        (["data.regate_quantile=1.0"], "regate_quantile"),
        (["data.regate_quantile=-0.1"], "regate_quantile"),
        (["objective.inter_warmup_epochs=-1"], "inter_warmup_epochs"),
        (["objective.redundancy_weight=-0.1"], "redundancy_weight"),
        (["objective.inter_weight=inf"], "inter_weight"),
        (["objective.redundancy_weight=nan"], "redundancy_weight"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(overrides, key):
    with pytest.raises(SettingsError, match=key):
        load_settings(overrides=overrides)


def test_settings_of_pairs_read_back():
    settings = load_settings(overrides=['data.pair_weights=["tissue","similarity"]', "data.similarity_features=seen"])
    assert (settings.data.pair_weights, settings.data.similarity_features) == (("tissue", "similarity"), "seen")
    assert load_settings().data.pair_weights == ()


def test_a_cohort_describes_the_features_that_it_has_weighed(store):
    """Read once: each checkpoint of a run is described by them, and they may be replaced meanwhile."""
    write_features(store, "seen", store.features("seen"), {"imported_from": "a.h5"})
    similar = {"pair_weights": ["similarity"], "similarity_features": "seen"}
    cohort = Cohort([type(store)(store.path)], neighbours="spatial", **similar)
    before = cohort.describe()
    write_features(store, "seen", store.features("seen") + 1, {"imported_from": "a.h5"})
    assert cohort.describe() == before
    assert Cohort([type(store)(store.path)], neighbours="spatial", **similar).describe() != before
