"""Collapse and numbers that are not finite: recognised, named, and stopped or passed over as told."""

import contextlib
import copy
import json
import logging
import math
import os
import shutil
import signal

import pytest
import torch
from torch import nn

from simtriplet.pretrain.backbone import BACKBONES, Backbone
from simtriplet.pretrain.best import BestSoFar
from simtriplet.pretrain.collapse import CollapseWatch, RankWatch, warn_of_collapse
from simtriplet.pretrain.distributed import World
from simtriplet.pretrain.loss_terms import LossTerms
from simtriplet.pretrain.model import make_model
from simtriplet.pretrain.network import Network
from simtriplet.pretrain.optimiser import make_optimiser
from simtriplet.pretrain.regate import RunPlace
from simtriplet.pretrain.run_folder import RunFolder
from simtriplet.pretrain.safeguards import Safeguards
from simtriplet.pretrain.schedule import Schedule
from simtriplet.pretrain.settings import ModelSettings, OptimiserSettings
from simtriplet.pretrain.step_log import BadStep, StepReport
from simtriplet.pretrain.stop_vote import OUT_OF_TIME, StopVote
from simtriplet.pretrain.trainer import pretrain
from simtriplet.pretrain.update import Updater
from simtriplet.wsi.errors import TrainingError


def report_of(step: int, z_std: float) -> StepReport:
    return StepReport(step, 900, 1, -1.0, {}, 0.1, z_std, 1.0)


@pytest.mark.parametrize(("z_std", "warns"), [(0.125, False), (0.02, False), (0.01, True), (0.0, True)])
def test_a_collapse_is_warned_of(caplog, z_std, warns):
    with caplog.at_level(logging.WARNING):
        warn_of_collapse(report_of(3, z_std), 64)
    assert ("collapsed" in caplog.text) == warns


def first_alarm(z_stds: dict[int, float], *, total_steps: int = 10_000, report_every: int = 10) -> int | None:
    watch = CollapseWatch(dim=64, warmup_steps=50, total_steps=total_steps, report_every=report_every)
    return next((step for step, z_std in z_stds.items() if watch.see(report_of(step, z_std))), None)


def test_a_collapse_lasts_after_five_reports_and_two_hundred_steps():
    assert first_alarm(dict.fromkeys(range(10, 900, 10), 0.001)) == 260  # counted from 60, the first after the warm-up
    assert first_alarm(dict.fromkeys(range(100, 900, 100), 0.001)) == 500
    assert first_alarm(dict.fromkeys(range(10, 900, 10), 0.02)) is None


def test_a_short_run_is_judged_by_a_quarter_of_its_steps():
    """The preset `quick` has 200 steps and a report every 10."""
    reports = dict.fromkeys(range(10, 201, 10), 0.001)
    assert first_alarm(reports, total_steps=200) == 110  # 50 steps after the first one that counts
    rare = dict.fromkeys(range(50, 401, 50), 0.001)
    assert first_alarm(rare, total_steps=400, report_every=50) == 200  # two reports, 100 steps after step 100
    assert first_alarm(dict.fromkeys(range(60, 90), 0.001), total_steps=4, report_every=50) == 61  # never one alone


def test_one_healthy_report_begins_the_count_anew_and_a_resumed_watch_goes_on():
    z_stds = dict.fromkeys(range(100, 900, 10), 0.001)
    z_stds[250] = 0.1
    assert first_alarm(z_stds) == 460
    options = {"dim": 64, "warmup_steps": 0, "total_steps": 10_000, "report_every": 10}
    watch, resumed = CollapseWatch(**options), CollapseWatch(**options)
    for step in range(10, 200, 10):
        watch.see(report_of(step, 0.001))
    resumed.restore(watch.state())
    assert [resumed.see(report_of(step, 0.001)) for step in (200, 210)] == [False, True]


COLLAPSING = [
    "objective.name=vicreg",
    "objective.variance_weight=0",
    "objective.covariance_weight=0",
    "objective.invariance_weight=100",
    "model.last_norm=none",
    "optimiser.base_lr=1.0",
    "run.epochs=300",
    "run.max_steps=260",
    "run.log_every_steps=20",
    "run.checkpoint_every_epochs=1",
]


def test_a_run_whose_folder_is_taken_away_says_so(store_factory, make_settings, tmp_path):
    run, settings = tmp_path / "run", make_settings("run.max_steps=50", "run.log_every_steps=1")
    with pytest.raises(TrainingError, match=r"run folder '.*run': cannot be written \(No such file or directory\)"):
        pretrain([store_factory()], settings, run, progress=lambda _: shutil.rmtree(run))


def test_a_run_that_collapses_is_stopped_with_what_to_try(store_factory, make_settings, tmp_path):
    """Nothing keeps z apart but chance: the invariance term alone pulls all of it to one point."""
    with pytest.raises(
        TrainingError, match=r"z has collapsed since step \d+: .*optimiser\.base_lr.*last good"
    ) as caught:
        pretrain([store_factory()], make_settings(*COLLAPSING), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    since = int(str(caught.value).split("since step ")[1].split(":")[0])
    assert 260 // 4 <= lines[-1]["step"] - since < 260 // 4 + 20
    healthy = [line["step"] for line in lines if line["z_std"] >= 0.1 / math.sqrt(16)]
    assert since == min(line["step"] for line in lines if line["step"] > max(2, *healthy))  # two steps of warm-up
    result = pretrain([store_factory("again")], make_settings(*COLLAPSING, "run.on_collapse=warn"), tmp_path / "warned")
    assert (result.finished, result.steps) == (True, 260)


def test_the_last_good_checkpoint_is_one_from_before(tmp_path, make_settings):
    best = BestSoFar()
    guards = Safeguards(
        make_settings(), RunFolder(tmp_path), schedule=Schedule(0.1, 0, 100), best=best, precision="fp32"
    )

    def message(step: int) -> str:
        with pytest.raises(TrainingError) as caught:
            guards.check_losses(step, bad=BadStep(step, "loss"), skipped_in_a_row=0)
        return str(caught.value)

    assert "last good checkpoint: none yet" in message(40)
    guards.last_saved = 30
    assert "last.pt' of step 30" in message(40)
    best.offer(knn_accuracy=0.5, loss=0.0, step=20)
    assert "last.pt' of step 30" in message(40)
    assert "best.pt' of step 20" in message(30)


class Loss:
    """-mean(z p), and NaN or an infinite gradient in the steps that it is told."""

    def __init__(self, bad: dict[int, str]) -> None:
        self.bad, self.step = bad, -1

    def __call__(self, outputs, part):
        self.step += 1
        loss = -(outputs.z[0] * outputs.p[1]).mean()
        kind = self.bad.get(self.step)
        if kind == "loss":
            loss = loss * math.nan
        elif kind == "gradient":
            loss = loss + (outputs.z[0] - outputs.z[0].detach()).abs().sqrt().mean()  # 0, with an infinite slope
        return LossTerms(loss, {"all": loss.detach()})


def make_updater(*, scaled: bool = False, skip: bool = True):
    torch.manual_seed(0)
    model = make_model(ModelSettings(backbone="small", projector_dim=16, predictor_dim=8), with_predictor=True).train()
    optimiser = make_optimiser(model, OptimiserSettings(), peak_lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=4.0)
    options = {"precision": "fp32", "world": World(), "accumulate": 1, "skip_bad_steps": skip}
    return model, Updater(model, optimiser, scaler, **options)


def views(number: int) -> torch.Tensor:
    return torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bad_step", [0, 1])
def test_a_bad_step_is_as_if_it_had_not_been(kind, scaled, bad_step):
    """The second case of each pair is the very first step, before which the momentum has no value yet."""
    model, updater = make_updater(scaled=scaled)
    plain, without = make_updater(scaled=scaled)
    loss_of, plain_loss = Loss({bad_step: kind}), Loss({})
    flags = []
    for number in range(4):
        before = copy.deepcopy(model.state_dict())
        flags.append(bool(updater.step(views(number), loss_of, measure_gradient=False).skipped))
        if number == bad_step:
            for name, value in model.state_dict().items():
                assert torch.equal(value, before[name]), name
        else:
            without.step(views(number), plain_loss, measure_gradient=False)
    assert flags == [number == bad_step for number in range(4)]
    for (name, one), other in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=name, rtol=1e-5, atol=1e-6)


def test_a_scale_that_can_be_no_lower_still_counts_what_is_left_out():
    _, updater = make_updater(scaled=True)
    updater.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0**-148)
    loss_of = Loss(dict.fromkeys(range(5), "loss"))
    assert [bool(updater.step(views(n), loss_of, measure_gradient=False).skipped) for n in range(5)] == [True] * 5


def test_without_skipping_a_bad_loss_goes_into_the_weights():
    model, updater = make_updater(skip=False)
    outcome = updater.step(views(0), Loss({0: "loss"}), measure_gradient=False)
    assert outcome.skipped is None
    assert outcome.grad_norm is None
    assert not all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_gradients_length_is_that_of_the_whole_and_unscaled():
    for scaled in (False, True):
        model, updater = make_updater(scaled=scaled, skip=False)
        other, _ = make_updater()
        outcome = updater.step(views(0), Loss({}), measure_gradient=True)
        Loss({})(other(views(0)), slice(None)).loss.backward()
        length = math.sqrt(sum(float(each.grad.double().square().sum()) for each in other.parameters()))
        assert float(outcome.grad_norm) == pytest.approx(length, rel=1e-4)
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_run_that_only_skips_ends(store_factory, make_settings, tmp_path):
    wild = ["optimiser.base_lr=1e38", "objective.name=vicreg", "model.last_norm=none", "run.on_nan=skip"]
    rare = ["run.epochs=60", "run.log_every_steps=20", "run.checkpoint_every_epochs=60", "run.monitor_every_epochs=0"]
    settings = make_settings(*wild, *rare)
    with pytest.raises(TrainingError, match=r"\d+ in a row .* not finite.*base_lr"):
        pretrain([store_factory()], settings, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["skipped_steps"] >= 20
    assert lines[-1]["loss"] is None  # JSON has no NaN


def test_a_short_run_that_mostly_skips_is_no_encoder(store_factory, make_settings, tmp_path):
    """It ended well before, too short for fifty in a row, with weights of which nobody would see what they are."""
    wild = ["optimiser.base_lr=1e30", "optimiser.warmup_epochs=0", "objective.name=vicreg", "model.last_norm=none"]
    settings = make_settings(*wild, "run.on_nan=skip", "run.max_steps=20", "run.epochs=20")
    with pytest.raises(
        TrainingError, match=r"1\d of 20 steps .* changed nothing, the last 1\d .*: this is no encoder"
    ) as caught:
        pretrain([store_factory()], settings, tmp_path / "run")
    assert "fp32" not in str(caught.value), "it is"
    assert "lower optimiser.base_lr or lengthen optimiser.warmup_epochs in another folder (" in str(caught.value)
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


@pytest.mark.parametrize(
    ("skipped", "in_a_row", "ends"), [(70, 0, False), (71, 0, True), (20, 9, False), (20, 10, True), (0, 0, False)]
)
def test_how_many_skipped_steps_are_too_many(tmp_path, make_settings, skipped, in_a_row, ends):
    schedule = Schedule(0.1, 0, 100)
    guards = Safeguards(make_settings(), RunFolder(tmp_path), schedule=schedule, best=BestSoFar(), precision="fp16")
    with pytest.raises(TrainingError, match="or use run") if ends else contextlib.nullcontext():
        guards.check_end(100, skipped=skipped, skipped_in_a_row=in_a_row)


def test_skipping_changes_nothing_where_all_is_finite(store_factory, make_settings, tmp_path):
    stores = [store_factory()]
    weights = []
    for rule in ("stop", "skip"):
        out = pretrain(stores, make_settings(f"run.on_nan={rule}"), tmp_path / rule).out
        weights.append(torch.load(out / "checkpoints" / "last.pt", weights_only=True)["model"])
    for (name, one), other in zip(weights[0].items(), weights[1].values(), strict=True):
        assert torch.equal(one, other), name


class Faulty(nn.Module):
    """A backbone whose gradient is infinite, once, in the pass that it is told; what it returns is as it should be."""

    def __init__(self, bad_pass: int) -> None:
        super().__init__()
        self.layer, self.bad_pass, self.passes = nn.Conv2d(3, 8, 5, 4, bias=False), bad_pass, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.layer(images).mean(dim=(2, 3))
        self.passes += self.training
        if self.passes == self.bad_pass and self.training:
            features = features + (features - features.detach()).abs().sqrt()
        return features


@pytest.fixture
def faulty(monkeypatch):
    """Return a maker of the name of a backbone that fails in the first view of the given step."""
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))

    def make(bad_step: int) -> str:
        BACKBONES.add("faulty", lambda zero_init_residual: Backbone(Faulty(2 * bad_step - 1), 8))
        return "model.backbone=faulty"

    return make


SIMSIAM = ["objective.name=simsiam", "run.monitor_every_epochs=0"]


@pytest.mark.parametrize("log_every", [1, 2])
def test_an_infinite_gradient_of_a_finite_loss_stops_the_run_and_leaves_the_good_checkpoint(
    store_factory, make_settings, tmp_path, faulty, log_every
):
    """Of step 6, the last one: no later loss would show it."""
    settings = make_settings(*SIMSIAM, faulty(6), f"run.log_every_steps={log_every}")
    with pytest.raises(TrainingError, match=r"gradient of step 6: is not finite.*last\.pt' of step 3"):
        pretrain([store_factory()], settings, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert state["step"] == 3
    assert all(value.isfinite().all() for value in state["model"].values())
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


@pytest.mark.parametrize("how", ["interrupt", "out of time"])
def test_weights_that_are_not_finite_are_never_written(
    store_factory, make_settings, tmp_path, faulty, monkeypatch, how
):
    """The gradient of step 5 is not measured, and the run ends right after that step, before a loss could tell."""
    settings = make_settings(*SIMSIAM, faulty(5), "run.log_every_steps=100", "run.max_minutes=1000")
    vote = StopVote.ask

    def ask(self, step, reason, *, is_last):
        if step == 5 and how == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
            return signal.SIGINT
        return vote(self, step, OUT_OF_TIME if step == 5 else reason, is_last=is_last)

    monkeypatch.setattr(StopVote, "ask", ask)
    with pytest.raises(TrainingError, match=r"weights after step 5: are not finite, and are not saved.*of step 3"):
        pretrain([store_factory()], settings, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["step"] == 3
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


@pytest.mark.parametrize("where", ["weight", "statistic", "momentum"])
def test_a_network_knows_whether_all_of_it_is_finite(make_settings, where):
    place = RunPlace(torch.device("cpu"), "fp32", torch.contiguous_format)
    network = Network(make_settings(), place, Schedule(0.1, 0, 10), World(), with_predictor=True)
    assert network.is_finite()
    parameter = next(network.model.parameters())
    tensor = {
        "weight": parameter.data,
        "statistic": next(value for name, value in network.model.named_buffers() if "running_var" in name),
        "momentum": network.optimiser.state[parameter]["momentum_buffer"],
    }[where]
    tensor.view(-1)[-1] = math.inf
    assert not network.is_finite()


class OneOfTwo(nn.Module):
    """Tells bright tiles from dark ones and nothing else, as a network does whose z lies on a line."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean(dim=(1, 2, 3))
        return torch.where(means > means.median(), 1.0, -1.0)[:, None] * self.scale


LINE = ["model.backbone=one-of-two", "run.monitor_every_epochs=2", "run.epochs=8"]


@pytest.fixture
def one_of_two(monkeypatch):
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
    BACKBONES.add("one-of-two", lambda zero_init_residual: Backbone(OneOfTwo(), 1))


def test_a_collapse_to_a_line_stops_the_run_at_the_second_monitor(
    store_factory, make_settings, tmp_path, one_of_two, caplog
):
    with pytest.raises(TrainingError, match=r"collapsed to a line since step 6: .* rank is 1\.\d+ of 16 after step 12"):
        pretrain([store_factory()], make_settings(*LINE), tmp_path / "run")
    assert caplog.text.count("z lies on a line") == 1  # at the first of the two
    lines = [json.loads(line) for line in (tmp_path / "run" / "monitor.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [6, 12]
    assert all(line["z_spread_rank"] < 1.5 for line in lines)
    assert all(line["z_std"] > 0.5 * line["z_std_healthy"] for line in lines)  # which shows nothing
    assert not (tmp_path / "run" / "checkpoints" / "best.pt").exists()


def test_a_collapse_to_a_line_is_only_warned_of_where_that_is_asked_for(
    store_factory, make_settings, tmp_path, one_of_two, caplog
):
    with pytest.raises(TrainingError):
        pretrain([store_factory()], make_settings(*LINE), tmp_path / "run")
    caplog.clear()
    settings = make_settings(*LINE, "run.on_collapse=warn")
    result = pretrain([store_factory("again")], settings, tmp_path / "warned")
    assert (result.finished, result.steps) == (True, 24)
    assert caplog.text.count("z lies on a line") == 4


def test_one_healthy_monitor_begins_the_count_of_lines_anew_and_a_resumed_watch_goes_on():
    def alarms(ranks: list[float], watch: RankWatch) -> list[bool]:
        return [watch.see(10 * i, spread_rank=rank, n_tiles=500) for i, rank in enumerate(ranks, start=1)]

    assert alarms([1.1, 1.1, 1.1, 1.1], RankWatch(dim=64, warmup_steps=20)) == [False, False, False, True]
    assert alarms([1.1, 2.5, 1.1, 1.4], RankWatch(dim=64, warmup_steps=0)) == [False, False, False, True]
    assert not any(alarms([1.6, math.nan, 1.6, 30.0], RankWatch(dim=64, warmup_steps=0)))
    assert not any(alarms([1.2, 1.2, 1.2, 1.2], RankWatch(dim=2, warmup_steps=0)))  # of two dimensions there are few
    watch, resumed = RankWatch(dim=64, warmup_steps=0), RankWatch(dim=64, warmup_steps=0)
    watch.see(10, spread_rank=1.0, n_tiles=500)
    resumed.restore(watch.state())
    assert resumed.see(20, spread_rank=1.0, n_tiles=500)
    assert resumed.since == 10
