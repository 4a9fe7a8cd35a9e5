"""What a run says of itself while it goes on."""

import importlib.util
import json
import shutil
import threading

import numpy as np
import pytest
import torch

from simtriplet.pretrain.encoder import load_encoder
from simtriplet.pretrain.rank import effective_rank
from simtriplet.pretrain.tensorboard_log import EventLog
from simtriplet.pretrain.trainer import pretrain
from simtriplet.wsi.errors import MissingDependencyError, TrainingError

HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None


def monitor_of(out):
    return [json.loads(line) for line in (out / "monitor.jsonl").read_text().splitlines()]


def state_of(out):
    state = torch.load(out / "checkpoints" / "last.pt", weights_only=True)
    return {key: state[key] for key in ("model", "optimiser", "rng", "step")}


def flat(value, path=""):
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{path}.{key}").items()}
    if isinstance(value, list):
        return flat(dict(enumerate(value)), path)
    return {path: value}


def test_measures_are_those_of_the_encoder_that_the_run_leaves(store_factory, make_settings, tmp_path):
    stores = [store_factory(name, patient_id=f"p{name}", seed=seed) for seed, name in enumerate("ab")]
    out = pretrain(stores, make_settings("run.monitor_every_epochs=1"), tmp_path / "run").out
    lines = monitor_of(out)
    assert [(line["step"], line["epoch"]) for line in lines] == [(6, 1), (12, 2)]
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(np.mean([line["loss"] for line in metrics[:6]]))
    assert lines[1]["loss"] == pytest.approx(np.mean([line["loss"] for line in metrics[6:]]))
    last, reported = lines[-1], metrics[-1]
    assert {key: last[key] for key in ("lr", "z_std", "terms", "grad_norm")} == {
        key: reported[key] for key in ("lr", "z_std", "terms", "grad_norm")
    }
    tiles = np.concatenate([store.images.read(np.arange(24)) for store in stores])
    features = load_encoder(out).embed(tiles)
    assert last["feature_rank"] == pytest.approx(effective_rank(features), rel=1e-3)
    assert 1 < last["z_rank"] <= 16
    assert 1 < last["z_spread_rank"] <= 16
    assert (last["z_std_healthy"], last["n_tiles"], last["isolated_share"]) == (0.25, 48, 0.0)
    assert 0.5 < last["knn_accuracy"] <= 1  # textures differ a lot
    assert 0 <= last["slide_leakage"] <= 1
    assert last["slide_leakage_chance"] == 0.5
    assert last["gpu_memory_max_bytes"] is None
    assert "features" not in last  # one flat line


def test_isolated_tiles_are_a_share_and_one_slide_has_no_leakage(store_factory, make_settings, tmp_path):
    corners = np.isin(np.arange(9), [0, 1, 6, 8])
    out = pretrain(
        [store_factory(rows=3, cols=3, keep=corners)], make_settings("run.batch_size=4"), tmp_path / "run"
    ).out
    last = monitor_of(out)[-1]
    assert last["isolated_share"] == 0.5
    assert last["slide_leakage"] is None
    assert last["knn_accuracy"] is None  # one patient: every neighbour is of its own


@pytest.mark.parametrize("backbone", ["small", "timid"])
def test_monitors_leave_weights_statistics_and_random_numbers_alone(
    store_factory, make_settings, tmp_path, backbone, timid_backbone
):
    """`timid` draws random numbers in evaluation mode too; whatever it draws there is given back."""
    stores = [store_factory(), store_factory("other", seed=1)]
    states = {}
    for every in (0, 1):
        settings = make_settings(f"run.monitor_every_epochs={every}", f"model.backbone={backbone}")
        states[every] = flat(state_of(pretrain(stores, settings, tmp_path / str(every)).out))
    assert not (tmp_path / "0" / "monitor.jsonl").exists()
    assert len(monitor_of(tmp_path / "1")) == 2
    for key, value in states[0].items():
        same = torch.equal(value, states[1][key]) if isinstance(value, torch.Tensor) else value == states[1][key]
        assert same, key


def test_a_resumed_run_repeats_no_monitor_line(store_factory, make_settings, tmp_path):
    stores = [store_factory(), store_factory("other", seed=1)]
    settings = make_settings("run.monitor_every_epochs=1", "run.epochs=3", "run.checkpoint_every_epochs=3")
    settings_best = make_settings("run.monitor_every_epochs=1", "run.epochs=3", "run.checkpoint_every_epochs=1")
    pretrain(stores, settings_best, tmp_path / "whole")

    def fail(report):
        if report.step == 14:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pretrain(stores, settings, tmp_path / "parts", progress=fail)
    before = monitor_of(tmp_path / "parts")
    assert [line["step"] for line in before] == [6, 12]
    pretrain(stores, settings, tmp_path / "parts", resume=True)
    timing = {"seconds", "data_wait_share"}
    for one, other in zip(monitor_of(tmp_path / "parts"), monitor_of(tmp_path / "whole"), strict=True):
        assert {k: v for k, v in one.items() if k not in timing} == {k: v for k, v in other.items() if k not in timing}


@pytest.mark.skipif(HAS_TENSORBOARD, reason="tensorboard is installed")
def test_tensorboard_that_is_asked_for_and_missing_is_said_so(store_factory, make_settings, tmp_path):
    with pytest.raises(MissingDependencyError, match=r"run\.tensorboard.*not installed"):
        pretrain([store_factory()], make_settings("run.tensorboard=on"), tmp_path / "run")
    assert pretrain([store_factory()], make_settings("run.tensorboard=auto"), tmp_path / "run").finished


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="needs tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_events_hold_what_the_lines_say(store_factory, make_settings, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = pretrain([store_factory()], make_settings("run.tensorboard=on"), tmp_path / "run").out
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
    assert [event.step for event in events.Scalars("train/terms/inter")] == [1, 2, 3, 4, 5, 6]
    assert events.Scalars("monitor/feature_rank")[0].value == pytest.approx(monitor_of(out)[-1]["feature_rank"])
    off = pretrain([store_factory("b")], make_settings("run.tensorboard=off"), tmp_path / "off").out
    assert not (off / "tensorboard").exists()


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="needs tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_events_after_the_checkpoint_are_hidden_when_a_run_goes_on(store_factory, make_settings, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventLog(tmp_path / "events", after_step=0)
    for step in (1, 2, 3, 4):
        log.add("train", step, {"step": step, "loss": -0.1 * step, "terms": {"inter": 1.0}, "note": "no number"})
    again = EventLog(tmp_path / "events", after_step=2)
    again.add("train", 3, {"loss": -5.0})
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (1, pytest.approx(-0.1)),
        (2, pytest.approx(-0.2)),
        (3, pytest.approx(-5.0)),
    ]
    assert events.Tags()["scalars"] == ["train/loss", "train/terms/inter"]


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="needs tensorboard")
def test_events_that_cannot_be_written_end_a_run_in_one_line(store_factory, make_settings, tmp_path):
    """Before training, where a file stands in their way, and in the middle, where their folder goes; no thread is left."""
    run, settings = tmp_path / "run", make_settings("run.tensorboard=on", "run.log_every_steps=1")
    run.mkdir()
    (run / "tensorboard").write_text("")
    n_threads = threading.active_count()
    with pytest.raises(TrainingError, match=r"run folder '.*run': cannot be written \(File exists\)"):
        pretrain([store_factory()], settings, run)
    (run / "tensorboard").unlink()

    def take_away(report):
        shutil.rmtree(run / "tensorboard")

    with pytest.raises(TrainingError, match=r"cannot be written \(No such file or directory\); mend that and resume"):
        pretrain([store_factory("b")], settings, run, progress=take_away)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert threading.active_count() == n_threads
