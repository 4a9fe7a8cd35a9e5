"""Numbers that stop being finite in real runs: weights that become infinite, gradients that fp16 cannot hold, wild rates."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from simtriplet.pipelines.cli import cli
from simtriplet.pretrain.backbone import BACKBONES, Backbone
from simtriplet.pretrain.encoder import load_encoder
from simtriplet.pretrain.trainer import pretrain
from simtriplet.wsi.errors import TrainingError
from simtriplet.wsi.settings import read_toml


class Watched(nn.Module):
    """A small network whose passes in training are counted, so that a fault can be put into a step of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 5, 4, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.passes = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        return self.layers(images).mean(dim=(2, 3))


@pytest.fixture
def watched(monkeypatch) -> list[Watched]:
    """Register `watched`; returns the networks made of it."""
    made: list[Watched] = []

    def make(zero_init_residual: bool) -> Backbone:
        made.append(Watched())
        return Backbone(made[-1], 16)

    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
    BACKBONES.add("watched", make)
    return made


BASE = ["model.backbone=watched", "objective.name=simsiam", "run.monitor_every_epochs=0"]


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def break_weights_after(made: list[Watched], step: int):
    """Return a listener to a run's reports that makes one weight infinite when a step is done."""

    def listen(report) -> None:
        if report.step == step:
            with torch.no_grad():
                made[-1].layers[0].weight[0, 0, 0, 0] = float("inf")

    return listen


@pytest.mark.parametrize("rule", ["stop", "skip"])
def test_a_weight_that_becomes_infinite_stops_the_run_and_the_good_checkpoint_goes_on(
    store_factory, make_settings, tmp_path, watched, rule
):
    """No step can be right any more: skipping them must end too, and neither rule may save what it has."""
    settings = make_settings(*BASE, f"run.on_nan={rule}", "run.epochs=6")
    stores, run = [store_factory()], tmp_path / "run"
    with pytest.raises(TrainingError, match="not finite") as caught:
        pretrain(stores, settings, run, progress=break_weights_after(watched, 8))
    message = str(caught.value)
    assert "optimiser.base_lr" in message
    assert f"last good checkpoint: '{run / 'checkpoints' / 'last.pt'}' of step 6" in message
    if rule == "stop":
        assert message.startswith("loss of step 9: ")
        assert "--on-nan skip" in message
    saved = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    assert saved["step"] == 6
    assert all(value.isfinite().all() for value in saved["model"].values())
    assert not (run / "encoder.safetensors").exists()
    assert not list(run.rglob("*.partial"))
    again = pretrain(stores, settings, run, resume=True)
    whole = pretrain(stores, settings, tmp_path / "whole")
    assert (again.finished, again.skipped_steps) == (True, 0)
    one, other = (load_encoder(result.out).state_dict() for result in (again, whole))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_skipped_steps_under_fp16_scaling_are_counted_as_they_happened(store_factory, make_settings, tmp_path, watched):
    """The scaler begins at 65536, at which these gradients are beyond fp16 (65504) until it has come down."""
    strong = ["objective.name=vicreg", "objective.invariance_weight=3000", "model.last_norm=none"]
    settings = make_settings(*BASE, *strong, "run.precision=fp16", "run.on_nan=skip", "run.epochs=6")
    weights: list[torch.Tensor] = []

    def listen(report) -> None:
        weights.append(watched[-1].layers[0].weight.detach().clone())

    result = pretrain([store_factory()], settings, tmp_path / "run", progress=listen)
    unchanged = [bool(torch.equal(one, other)) for one, other in itertools.pairwise(weights)]
    lines = lines_of(tmp_path / "run")
    counted = [line["skipped_steps"] for line in lines]
    assert counted[0] == 1  # the first one already, before which there was no report to compare with
    assert [later > earlier for earlier, later in itertools.pairwise(counted)] == unchanged
    assert 2 <= result.skipped_steps == counted[-1] < result.steps == 18
    assert not unchanged[-1]  # and it went on
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"* {result.skipped_steps} of these steps changed nothing" in card
    assert all(value.isfinite().all() for value in load_encoder(tmp_path / "run").state_dict().values())


def test_the_count_of_skipped_steps_outlives_an_interruption(store_factory, make_settings, tmp_path, watched):
    strong = ["objective.name=vicreg", "objective.invariance_weight=3000", "model.last_norm=none"]
    settings = make_settings(*BASE, *strong, "run.precision=fp16", "run.on_nan=skip", "run.epochs=4")
    stores = [store_factory()]

    def stop(report) -> None:
        if report.step == 7:
            raise KeyboardInterrupt

    whole = pretrain(stores, settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        pretrain(stores, settings, tmp_path / "run", progress=stop)
    resumed = pretrain(stores, settings, tmp_path / "run", resume=True)
    assert resumed.skipped_steps == whole.skipped_steps > 0
    assert (tmp_path / "run" / "README.md").read_text() == (tmp_path / "whole" / "README.md").read_text()


def command(store, run: Path, *settings: str, on_nan: str) -> list[str]:
    """Return what follows `simtriplet` on a command line."""
    small = ["model.backbone=watched", "data.image_size_px=32", "objective.name=vicreg", "model.last_norm=none"]
    small += ["run.batch_size=8", "run.device=cpu", "run.log_every_steps=1", "run.monitor_every_epochs=0"]
    assignments = [part for setting in (*small, *settings) for part in ("--set", setting)]
    return ["pretrain", str(store.path), "--preset", "quick", "--out", str(run), "--on-nan", on_nan, *assignments]


def test_the_command_stops_at_a_rate_beyond_all_reason(store_factory, tmp_path, watched):
    wild = ["optimiser.base_lr=1e30", "optimiser.warmup_epochs=0"]
    with pytest.raises(TrainingError, match=r"(loss|gradient) of step \d+: is not finite; lower optimiser\.base_lr"):
        cli(command(store_factory(), tmp_path / "run", *wild, on_nan="stop"), standalone_mode=False)
    lines = lines_of(tmp_path / "run")
    assert len(lines) <= 5
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


def test_the_command_skips_and_says_how_often(store_factory, tmp_path, watched, capsys):
    strong = ["objective.invariance_weight=3000", "run.precision=fp16", "run.max_steps=12"]
    cli(command(store_factory(), tmp_path / "run", *strong, on_nan="skip"), standalone_mode=False)
    counted = lines_of(tmp_path / "run")[-1]["skipped_steps"]
    assert counted > 0
    assert f"{counted} of 12 steps were left out: their loss or gradient was not finite" in capsys.readouterr().err
    assert read_toml(tmp_path / "run" / "settings.toml")["run"]["on_nan"] == "skip"
