"""Which checkpoints a run leaves: the last, the best, and every k-th for good."""

import json

import pytest
import torch

from simtriplet.pretrain.best import BestSoFar
from simtriplet.pretrain.checkpoint import copy_checkpoint, write_checkpoint
from simtriplet.pretrain.encoder import load_encoder
from simtriplet.pretrain.trainer import pretrain
from simtriplet.wsi.errors import CheckpointError


def read(path):
    return torch.load(path, weights_only=True)


def names_of(out):
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def monitor_of(out):
    return [json.loads(line) for line in (out / "monitor.jsonl").read_text().splitlines()]


def test_the_best_is_by_labels_where_there_are_any_and_else_by_the_loss(store_factory, make_settings, tmp_path):
    for labels in (True, False):
        stores = [store_factory(f"{name}{labels}", labels=labels, seed=seed) for seed, name in enumerate("ab")]
        settings = make_settings("run.monitor_every_epochs=1", "run.epochs=5", "optimiser.base_lr=2.0")
        out = pretrain(stores, settings, tmp_path / str(labels)).out
        lines = monitor_of(out)
        if labels:
            wanted = max(lines, key=lambda line: (line["knn_accuracy"], -line["step"]))
            expected = {"by": "knn_accuracy", "value": wanted["knn_accuracy"], "step": wanted["step"]}
        else:
            assert all(line["knn_accuracy"] is None for line in lines)
            wanted = min(lines, key=lambda line: line["loss"])
            expected = {"by": "loss", "value": wanted["loss"], "step": wanted["step"]}
        best = read(out / "checkpoints" / "best.pt")
        assert best["best"] == expected == read(out / "checkpoints" / "last.pt")["best"]
        assert best["step"] == wanted["step"]


def test_the_first_of_equals_is_the_best_and_what_is_not_finite_never():
    best = BestSoFar()
    assert not best.offer(knn_accuracy=None, loss=float("nan"), step=1)
    assert best.offer(knn_accuracy=None, loss=-1.0, step=2)
    assert not best.offer(knn_accuracy=None, loss=-1.0, step=3)
    assert best.offer(knn_accuracy=0.4, loss=5.0, step=4)  # labels say more than a loss
    assert not best.offer(knn_accuracy=None, loss=-9.0, step=5)
    assert best.offer(knn_accuracy=0.5, loss=9.0, step=6)
    again = BestSoFar()
    again.restore(best.state())
    assert (again.by, again.value, again.step) == ("knn_accuracy", 0.5, 6)


def test_every_kth_checkpoint_is_kept_as_it_was(store_factory, make_settings, tmp_path):
    settings = make_settings("run.epochs=5", "run.keep_every_epochs=2", "run.checkpoint_every_epochs=5")
    out = pretrain([store_factory()], settings, tmp_path / "run").out
    assert names_of(out) == ["best.pt", "epoch_0002.pt", "epoch_0004.pt", "last.pt"]
    assert [read(out / "checkpoints" / name)["step"] for name in ("epoch_0002.pt", "epoch_0004.pt")] == [6, 12]
    early = pretrain([store_factory("b")], make_settings("run.epochs=2", "run.monitor_every_epochs=0"), tmp_path / "b")
    assert names_of(early.out) == ["last.pt"]


def test_a_kept_checkpoint_is_an_encoder_and_the_run_can_go_on_from_it(store_factory, make_settings, tmp_path):
    stores, settings = [store_factory()], make_settings("run.epochs=4", "run.keep_every_epochs=1")
    out = pretrain(stores, settings, tmp_path / "run").out
    last, end = load_encoder(out / "checkpoints" / "epoch_0004.pt"), load_encoder(out)
    tiles = stores[0].images.read([0, 1, 2])
    assert torch.equal(last.embed(tiles), end.embed(tiles))
    assert (last.info.steps, last.info.slides, last.info.mpp) == (12, end.info.slides, end.info.mpp)
    early = load_encoder(out / "checkpoints" / "epoch_0001.pt")
    assert early.info.steps == 3
    assert not torch.equal(early.embed(tiles), end.embed(tiles))
    (out / "checkpoints" / "last.pt").unlink()
    (out / "checkpoints" / "epoch_0002.pt").rename(out / "checkpoints" / "last.pt")
    before = end.embed(tiles)
    pretrain(stores, settings, out, resume=True)
    assert torch.equal(load_encoder(out).embed(tiles), before)


def test_a_resumed_run_remembers_its_best(store_factory, make_settings, tmp_path):
    stores = [store_factory(), store_factory("b", seed=1)]
    settings = make_settings("run.epochs=3", "run.monitor_every_epochs=1")

    def stop(report):
        if report.step == 9:
            raise KeyboardInterrupt

    whole = pretrain(stores, settings, tmp_path / "whole").out
    with pytest.raises(KeyboardInterrupt):
        pretrain(stores, settings, tmp_path / "parts", progress=stop)
    parts = pretrain(stores, settings, tmp_path / "parts", resume=True).out
    one, other = (read(out / "checkpoints" / "best.pt") for out in (whole, parts))
    assert one["best"] == other["best"]
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name


def test_a_second_name_survives_the_first_and_replaces_its_like(tmp_path):
    last, kept = tmp_path / "last.pt", tmp_path / "kept.pt"
    write_checkpoint(last, {"step": 1})
    copy_checkpoint(last, kept)
    copy_checkpoint(last, kept)  # twice the same file
    write_checkpoint(last, {"step": 2})
    assert (read(last)["step"], read(kept)["step"]) == (2, 1)
    copy_checkpoint(last, kept)
    assert read(kept)["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.pt", "last.pt"]
    with pytest.raises(CheckpointError, match="cannot be written"):
        copy_checkpoint(tmp_path / "none.pt", kept)
