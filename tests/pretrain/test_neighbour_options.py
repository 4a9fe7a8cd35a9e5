"""Weights, warm-in and choosing neighbours anew in whole runs: they act, and a stopped run goes on bit for bit."""

import json

import numpy as np
import pytest
import torch
import zarr

from simtriplet.evaluate.feature_array import write_features
from simtriplet.pretrain.cohort import Cohort
from simtriplet.pretrain.objective import OBJECTIVES, SimTripletObjective
from simtriplet.pretrain.sampler import TripletSampler
from simtriplet.pretrain.trainer import pretrain
from simtriplet.wsi.errors import TrainingError, UnknownNameError
from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.neighbours import RadiusRule

EVERYTHING = [
    "run.epochs=5",
    "objective.inter_warmup_epochs=1.5",
    'data.pair_weights=["distance", "tissue", "similarity"]',
    "data.similarity_features=seen",
    "data.regate_every_epochs=2",
    "data.regate_quantile=0.4",
    "data.isolated=drop",
]


@pytest.fixture
def stores(store_factory):
    """Two slides with distances, tissue fractions and features that differ from pair to pair, and one lone tile."""
    made = [store_factory("a"), store_factory("b", rows=1, cols=1), store_factory("c", rows=1, cols=3, seed=1)]
    rng = np.random.default_rng(0)
    for store in made:
        index_store(store, RadiusRule(16 * 2.3))
        fraction = rng.uniform(0.5, 1, len(store)).astype(np.float32)
        zarr.open_array(store.path / "tables/tiles/obs/tissue_fraction", mode="r+")[:] = fraction
        write_features(store, "seen", rng.normal(size=(len(store), 3)).astype(np.float32), {"encoder_hash": "one"})
    return [type(store)(store.path) for store in made]


def state_of(out):
    return torch.load(out / "checkpoints" / "last.pt", weights_only=True)


def lines_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# three steps an epoch: early in the warm-in; right before neighbours are chosen (step 6); in mid-interval; at the next choice
@pytest.mark.parametrize("step", [2, 6, 8, 12])
@pytest.mark.parametrize("objective", ["simtriplet", "vicreg", "barlow"])
def test_a_resumed_run_with_every_option_equals_an_uninterrupted_one(
    stores, make_settings, tmp_path, step, objective, assert_same
):
    settings = make_settings(f"objective.name={objective}", *EVERYTHING)

    def stop(report):
        if report.step == step:
            raise KeyboardInterrupt

    whole = pretrain(stores, settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(stores, settings, tmp_path / "parts", progress=stop)
    stopped = state_of(tmp_path / "parts")
    assert (stopped["step"], len(stopped["kept_edges"]) > 0) == (step, step > 6)
    torch.manual_seed(999)
    parts = pretrain(stores, settings, tmp_path / "parts", resume=True)
    assert parts.loss == whole.loss
    assert (whole.steps, whole.n_tiles, whole.n_isolated) == (15, 27, 1)
    assert_same(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))
    keys = ("step", "loss", "terms", "z_std")
    assert [[line[key] for key in keys] for line in lines_of(tmp_path / "parts")] == [
        [line[key] for key in keys] for line in lines_of(tmp_path / "whole")
    ]
    assert parts.encoder.read_bytes() == whole.encoder.read_bytes()


@pytest.mark.parametrize("tier", ["host", "stream"])
def test_the_storage_tier_does_not_change_the_result_of_any_option(stores, make_settings, tmp_path, tier, assert_same):
    for storage in ("device", tier):
        pretrain(stores, make_settings(f"data.storage={storage}", *EVERYTHING), tmp_path / storage)
    one, other = state_of(tmp_path / "device"), state_of(tmp_path / tier)
    assert_same(one["model"], other["model"])
    assert_same(one["kept_edges"], other["kept_edges"])


def test_the_neighbours_weight_rises_step_by_step(stores, make_settings, tmp_path):
    overrides = ["objective.inter_warmup_epochs=1.5", "objective.inter_weight=0.6"]
    pretrain(stores, make_settings(*overrides), tmp_path / "run")
    for line in lines_of(tmp_path / "run"):
        expected = 0.6 * min(1, (line["step"] - 1) / round(1.5 * 3))
        assert line["loss"] == pytest.approx(line["terms"]["intra"] + expected * line["terms"]["inter"], abs=1e-6)


def test_pair_weights_reach_the_loss(store_factory, make_settings, tmp_path):
    """With half the tissue everywhere, the neighbour's term of the very first step is half as large."""
    store = store_factory()
    inter = []
    for fraction in (1.0, 0.5):
        zarr.open_array(store.path / "tables/tiles/obs/tissue_fraction", mode="r+")[:] = np.float32(fraction)
        settings = make_settings('data.pair_weights=["tissue"]', "run.max_steps=1", "optimiser.warmup_epochs=0")
        out = tmp_path / str(fraction)
        pretrain([type(store)(store.path)], settings, out)
        inter.append(lines_of(out)[0]["terms"]["inter"])
    assert inter[1] == pytest.approx(inter[0] / 2, rel=1e-5)
    assert abs(inter[0]) > 1e-3


def test_each_micro_batch_gets_the_weights_of_its_own_pairs(stores, make_settings, tmp_path, monkeypatch):
    seen = []

    class Watching(SimTripletObjective):
        def __call__(self, outputs, *, warm_in=1.0, pair_weights=None):
            seen.append((len(outputs.z[0]), warm_in, pair_weights))
            return super().__call__(outputs, warm_in=warm_in, pair_weights=pair_weights)

    monkeypatch.setattr(OBJECTIVES, "_entries", dict(OBJECTIVES._entries))
    OBJECTIVES.add("watching", lambda settings: Watching(settings.inter_weight))
    overrides = ["objective.name=watching", "run.accumulate=2", 'data.pair_weights=["distance"]']
    settings = make_settings(*overrides, "data.isolated=drop", "objective.inter_warmup_epochs=2")
    pretrain(stores, settings, tmp_path / "run")
    draw = Cohort(stores, neighbours="spatial", pair_weights=["distance"]).neighbour_draw(torch.device("cpu"))
    sampler = TripletSampler(draw.connected_ids, batch_size=8, seed=0, neighbours=draw, device=torch.device("cpu"))
    assert [n for n, _, _ in seen] == [4] * 12
    for step in range(6):
        (_, first_share, first), (_, second_share, second) = seen[2 * step : 2 * step + 2]
        assert torch.equal(torch.cat([first, second]), sampler.weights(step))
        assert first_share.item() == second_share.item() == pytest.approx(step / 6)


def test_choosing_neighbours_changes_nothing_before_its_time_and_something_after(stores, make_settings, tmp_path):
    runs = {}
    for name, every in (("never", 0), ("chosen", 1)):
        overrides = [f"data.regate_every_epochs={every}", "data.regate_quantile=0.9"]
        pretrain(stores, make_settings(*overrides), tmp_path / name)
        runs[name] = [line["loss"] for line in lines_of(tmp_path / name)]
    assert runs["never"][:3] == runs["chosen"][:3]
    assert runs["never"][3] != runs["chosen"][3]
    assert len(state_of(tmp_path / "never")["kept_edges"]) == 0


def test_neighbours_chosen_by_learnt_features_are_of_one_class_more_often(store_factory, make_settings, tmp_path):
    """Two textures side by side: of the pairs across the border between them nearly all are left out."""
    stores = [store_factory(name, rows=8, cols=8, seed=seed) for seed, name in enumerate("ab")]
    settings = make_settings(
        "run.epochs=5", "run.batch_size=16", "data.regate_every_epochs=4", "data.regate_quantile=0.15"
    )
    pretrain(stores, settings, tmp_path / "run")
    packed = state_of(tmp_path / "run")["kept_edges"].numpy()
    agrees = []
    for store in stores:
        graph, codes = store.neighbours(), np.asarray(store.labels().codes)
        agrees.append(np.repeat(codes, graph.degrees) == codes[graph.indices])
    agree = np.concatenate(agrees)
    kept = np.unpackbits(packed, count=len(agree)).astype(bool)
    assert 0.85 <= kept.mean() < 0.9
    assert agree.mean() < 0.91
    assert agree[kept].mean() > 0.99


def test_without_a_neighbour_no_option_of_pairs_matters(stores, make_settings, tmp_path):
    plain = pretrain(stores, make_settings("objective.name=simsiam", "run.epochs=5"), tmp_path / "plain")
    everything = [each for each in EVERYTHING if "isolated" not in each]
    other = pretrain(stores, make_settings("objective.name=simsiam", *everything), tmp_path / "other")
    assert other.encoder.read_bytes() == plain.encoder.read_bytes()


def test_an_unknown_pair_weight_is_refused_before_anything_is_written(stores, make_settings, tmp_path):
    with pytest.raises(UnknownNameError, match=r"pair weight 'tisue'.*did you mean 'tissue'"):
        pretrain(stores, make_settings('data.pair_weights=["tisue"]'), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_features_of_another_encoder_are_refused_on_resuming(stores, make_settings, tmp_path):
    pretrain(stores, make_settings(*EVERYTHING), tmp_path / "run")
    write_features(stores[0], "seen", stores[0].features("seen"), {"encoder_hash": "two"})
    again = [type(store)(store.path) for store in stores]
    with pytest.raises(TrainingError, match="other features for the pair weights of slide 'a'"):
        pretrain(again, make_settings(*EVERYTHING), tmp_path / "run", resume=True)


def test_other_features_that_were_imported_are_refused_on_resuming(stores, make_settings, tmp_path):
    """Of these no encoder is known; what they are tells them apart."""
    values = stores[0].features("seen")
    write_features(stores[0], "seen", values, {"imported_from": "a.h5"})
    pretrain([type(store)(store.path) for store in stores], make_settings(*EVERYTHING), tmp_path / "run")
    write_features(stores[0], "seen", values, {"imported_from": "a.h5"})
    again = [type(store)(store.path) for store in stores]
    assert pretrain(again, make_settings(*EVERYTHING), tmp_path / "run", resume=True).finished
    write_features(stores[0], "seen", values + 1, {"imported_from": "a.h5"})
    again = [type(store)(store.path) for store in stores]
    with pytest.raises(TrainingError, match="other features for the pair weights of slide 'a'"):
        pretrain(again, make_settings(*EVERYTHING), tmp_path / "run", resume=True)


def test_barlow_learns_what_tells_the_textures_apart(store_factory, make_settings, tmp_path):
    stores = [store_factory(name, rows=8, cols=8, seed=seed) for seed, name in enumerate("ab")]
    settings = make_settings(
        "objective.name=barlow",
        "optimiser.base_lr=0.1",
        "run.epochs=12",
        "run.batch_size=16",
        "optimiser.warmup_epochs=1",
    )
    result = pretrain(stores, settings, tmp_path / "run")
    losses = [line["loss"] for line in lines_of(tmp_path / "run")]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert result.z_std > 0.3 / np.sqrt(16)
