"""Real runs on real small stores."""

import json
import logging

import numpy as np
import pytest
import torch

from simtriplet.pretrain.encoder import load_encoder
from simtriplet.pretrain.trainer import pretrain
from simtriplet.wsi.errors import NeighbourError, TrainingError
from simtriplet.wsi.settings import read_toml


def metrics_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights_of(out):
    return torch.load(out / "checkpoints" / "last.pt", weights_only=True)["model"]


def test_a_run_leaves_settings_metrics_checkpoint_and_encoder(store_factory, make_settings, tmp_path):
    stores = [store_factory("b", patient_id="p2"), store_factory("a", patient_id="p1", seed=1)]
    reports = []
    result = pretrain(stores, make_settings(), tmp_path / "run", progress=reports.append)
    assert (result.steps, result.epochs, result.finished, result.batch_size) == (12, 2, True, 8)
    assert (result.n_tiles, result.n_isolated) == (48, 0)
    lines = metrics_of(result.out)
    assert [line["step"] for line in lines] == list(range(1, 13)) == [report.step for report in reports]
    assert [line["epoch"] for line in lines] == [1] * 6 + [2] * 6
    always = {"step", "total_steps", "epoch", "loss", "terms", "lr", "z_std", "triplets_per_s"}
    assert set(lines[0]) == always | {"grad_norm", "skipped_steps", "data_wait_share"}
    assert all(line["grad_norm"] > 0 and line["skipped_steps"] == 0 for line in lines)
    assert all(0 <= line["data_wait_share"] < 1 for line in lines)
    assert lines[0]["loss"] == pytest.approx(lines[0]["terms"]["intra"] + lines[0]["terms"]["inter"], abs=1e-6)
    assert lines[0]["lr"] == pytest.approx(0.05 * 8 / 256 / 3)
    assert lines[-1]["loss"] == result.loss
    assert read_toml(result.out / "settings.toml")["model"]["backbone"] == "small"
    info = load_encoder(result.out).info
    assert (info.patients, info.slides, info.steps) == (("p1", "p2"), ("a", "b"), 12)
    assert (info.image_size_px, info.mpp, info.objective) == (32, 0.5, "simtriplet")
    assert not list(result.out.rglob("*.partial"))


def test_simsiam_is_simtriplet_without_inter_weight_step_for_step(store_factory, make_settings, tmp_path):
    stores = [store_factory()]
    runs = {}
    for name, changes in {
        "simsiam": ["objective.name=simsiam"],
        "weight 0": ["objective.inter_weight=0"],
        "simtriplet": [],
    }.items():
        pretrain(stores, make_settings(*changes), tmp_path / name)
        runs[name] = metrics_of(tmp_path / name)
    keys = ("step", "loss", "terms", "lr", "z_std")
    for one, other in zip(runs["simsiam"], runs["weight 0"], strict=True):
        assert [one[key] for key in keys] == [other[key] for key in keys]
    assert runs["simsiam"][0]["loss"] != runs["simtriplet"][0]["loss"]
    for (name, one), other in zip(
        weights_of(tmp_path / "simsiam").items(), weights_of(tmp_path / "weight 0").values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_simsiam_needs_no_neighbour_index(store_factory, make_settings, tmp_path):
    stores = [store_factory(index=False)]
    assert pretrain(stores, make_settings("objective.name=simsiam"), tmp_path / "a").finished
    with pytest.raises(NeighbourError, match="simtriplet index"):
        pretrain(stores, make_settings(), tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("objective", ["simtriplet", "vicreg"])
def test_training_learns_what_tells_the_textures_apart(store_factory, make_settings, tmp_path, objective):
    """The loss falls well below its start without a collapse, and the nearest class centre holds on an unseen slide."""
    stores = [store_factory(name, rows=8, cols=8, seed=seed) for seed, name in enumerate("ab")]
    settings = make_settings(
        f"objective.name={objective}", "optimiser.base_lr=1.0", "run.epochs=12", "run.batch_size=16",
        "optimiser.warmup_epochs=1",
    )  # fmt: skip
    result = pretrain(stores, settings, tmp_path / "run")
    losses = [line["loss"] for line in metrics_of(result.out)]
    start, end = np.mean(losses[:5]), np.mean(losses[-5:])
    assert end < (start - 0.15 if objective == "simtriplet" else 0.9 * start)
    assert result.z_std > 0.3 / np.sqrt(16)
    assert centre_accuracy(load_encoder(result.out), stores, store_factory("unseen", rows=8, cols=8, seed=9)) > 0.9


def centre_accuracy(encoder, stores, unseen) -> float:
    def features(store):
        return encoder.embed(store.images.read(np.arange(len(store)))).numpy(), np.asarray(store.labels().codes)

    known = [features(store) for store in stores]
    x, y = (np.concatenate(part) for part in zip(*known, strict=True))
    scale = x.std(0) + 1e-6
    centres = np.stack([(x[y == code] / scale).mean(0) for code in (0, 1)])
    x_new, y_new = features(unseen)
    distance = ((x_new[:, None] / scale - centres) ** 2).sum(2)
    return float((distance.argmin(1) == y_new).mean())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precisions_run_on_a_cpu_and_keep_float32_weights(store_factory, make_settings, tmp_path, precision):
    result = pretrain([store_factory()], make_settings(f"run.precision={precision}"), tmp_path / "run")
    assert np.isfinite(result.loss)
    assert {w.dtype for w in weights_of(result.out).values() if w.is_floating_point()} == {torch.float32}
    chosen = [line for line in (result.out / "settings.toml").read_text().splitlines() if "run.precision" in line]
    assert chosen == [f'# run.precision = "{precision}"']


def test_fp16_on_a_cpu_computes_in_half_precision_and_learns_as_fp32_does(store_factory, make_settings, tmp_path):
    losses = {}
    for precision in ("fp32", "fp16"):
        pretrain([store_factory()], make_settings(f"run.precision={precision}"), tmp_path / precision)
        losses[precision] = np.array([line["loss"] for line in metrics_of(tmp_path / precision)])
    difference = np.abs(losses["fp16"] - losses["fp32"])
    assert 0 < difference[0] < 0.02  # the same weights and views, rounded
    assert difference.max() < 0.1


def test_the_first_step_is_reported_and_then_every_kth(store_factory, make_settings, tmp_path):
    """So that nobody waits fifty slow steps for a sign of life."""
    reports = []
    settings = make_settings("run.log_every_steps=4", "run.epochs=3", "run.batch_size=4")
    pretrain([store_factory()], settings, tmp_path / "run", progress=reports.append)
    assert [report.step for report in reports] == [1, 4, 6, 8, 12, 16, 18]  # six steps an epoch
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [report.step for report in reports]
    assert reports[0].grad_norm > 0


@pytest.mark.parametrize("tier", ["host", "stream"])
def test_the_storage_tier_does_not_change_the_result(store_factory, make_settings, tmp_path, tier):
    stores = [store_factory("a"), store_factory("b", seed=1)]
    for storage in ("device", tier):
        pretrain(stores, make_settings(f"data.storage={storage}"), tmp_path / storage)
    for (name, one), other in zip(
        weights_of(tmp_path / "device").items(), weights_of(tmp_path / tier).values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_the_order_of_the_stores_does_not_matter(store_factory, make_settings, tmp_path):
    stores = [store_factory("a"), store_factory("b", seed=1)]
    one = pretrain(stores, make_settings(), tmp_path / "one")
    other = pretrain(stores[::-1], make_settings(), tmp_path / "other")
    assert one.loss == other.loss


def test_excluded_patients_are_not_trained_on(store_factory, make_settings, tmp_path, caplog):
    stores = [store_factory(name, patient_id=f"p{name}") for name in "abc"]
    with caplog.at_level(logging.WARNING):
        result = pretrain(stores, make_settings(), tmp_path / "run", exclude_patients={"pb", "typo"})
    assert result.n_tiles == 48
    assert load_encoder(result.out).info.patients == ("pa", "pc")
    assert "typo" in caplog.text
    with pytest.raises(TrainingError, match="none is left"):
        pretrain(stores, make_settings(), tmp_path / "other", exclude_patients={"pa", "pb", "pc"})


@pytest.mark.parametrize(("rule", "n_tiles"), [("self", 28), ("drop", 24)])
def test_isolated_tiles_are_counted_and_treated_as_told(store_factory, make_settings, tmp_path, caplog, rule, n_tiles):
    alone = np.isin(np.arange(9), [0, 2, 6, 8])
    stores = [store_factory("a"), store_factory("b", rows=3, cols=3, keep=alone)]
    with caplog.at_level(logging.INFO, logger="simtriplet"):
        result = pretrain(stores, make_settings(f"data.isolated={rule}"), tmp_path / "run")
    assert (result.n_tiles, result.n_isolated) == (n_tiles, 4)
    assert "4 of 28 tiles have no neighbour" in caplog.text


def test_fewer_tiles_than_a_batch_shrink_it_and_its_learning_rate(store_factory, make_settings, tmp_path):
    result = pretrain([store_factory(rows=1, cols=3)], make_settings("run.batch_size=64"), tmp_path / "run")
    assert (result.batch_size, result.steps) == (3, 2)
    assert max(line["lr"] for line in metrics_of(result.out)) == pytest.approx(0.05 * 3 / 256)


def test_max_steps_ends_the_run_and_its_schedule(store_factory, make_settings, tmp_path):
    result = pretrain([store_factory()], make_settings("run.epochs=50", "run.max_steps=4"), tmp_path / "run")
    assert (result.steps, result.finished) == (4, True)
    assert metrics_of(result.out)[-1]["lr"] < 0.3 * 0.05 * 8 / 256


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_checkpoint(store_factory, make_settings, tmp_path):
    wild = ["optimiser.base_lr=1e38", "run.log_every_steps=100", "objective.name=vicreg", "model.last_norm=none"]
    with pytest.raises(TrainingError, match=r"loss of step \d+: is not finite.*checkpoint: none yet"):
        pretrain([store_factory()], make_settings(*wild), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "last.pt").exists()


def test_tiles_of_another_size_than_the_views_are_resized(store_factory, make_settings, tmp_path):
    result = pretrain([store_factory(size_px=48)], make_settings("run.max_steps=2"), tmp_path / "run")
    assert load_encoder(result.out).info.image_size_px == 32
