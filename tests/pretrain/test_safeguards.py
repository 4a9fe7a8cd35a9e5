"""Collapse and numbers that are not finite: recognised, named, and stopped or passed over as told."""

import copy
import json
import logging
import math

import pytest
import torch

from simtriplet.pretrain.best import BestSoFar
from simtriplet.pretrain.collapse import CollapseWatch, warn_of_collapse
from simtriplet.pretrain.distributed import World
from simtriplet.pretrain.loss_terms import LossTerms
from simtriplet.pretrain.model import make_model
from simtriplet.pretrain.optimiser import make_optimiser
from simtriplet.pretrain.run_folder import RunFolder
from simtriplet.pretrain.safeguards import Safeguards
from simtriplet.pretrain.settings import ModelSettings, OptimiserSettings
from simtriplet.pretrain.step_log import StepReport
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


def first_alarm(z_stds: dict[int, float], **options: int) -> int | None:
    watch = CollapseWatch(dim=64, warmup_steps=50, **options)
    return next((step for step, z_std in z_stds.items() if watch.see(report_of(step, z_std))), None)


def test_a_collapse_lasts_after_five_reports_and_two_hundred_steps():
    assert first_alarm(dict.fromkeys(range(10, 900, 10), 0.001)) == 260  # counted from 60, the first after the warm-up
    assert first_alarm(dict.fromkeys(range(100, 900, 100), 0.001)) == 500
    assert first_alarm(dict.fromkeys(range(10, 900, 10), 0.02)) is None


def test_one_healthy_report_begins_the_count_anew_and_a_resumed_watch_goes_on():
    z_stds = dict.fromkeys(range(100, 900, 10), 0.001)
    z_stds[250] = 0.1
    assert first_alarm(z_stds) == 460
    watch, resumed = CollapseWatch(dim=64, warmup_steps=0), CollapseWatch(dim=64, warmup_steps=0)
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


def test_a_run_that_collapses_is_stopped_with_what_to_try(store_factory, make_settings, tmp_path):
    """Nothing keeps z apart but chance: the invariance term alone pulls all of it to one point."""
    with pytest.raises(
        TrainingError, match=r"z has collapsed since step \d+: .*optimiser\.base_lr.*last good"
    ) as caught:
        pretrain([store_factory()], make_settings(*COLLAPSING), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    since = int(str(caught.value).split("since step ")[1].split(":")[0])
    assert lines[-1]["step"] - since >= 200
    healthy = [line["step"] for line in lines if line["z_std"] >= 0.1 / math.sqrt(16)]
    assert since == min(line["step"] for line in lines if line["step"] > max(2, *healthy))  # two steps of warm-up
    result = pretrain([store_factory("again")], make_settings(*COLLAPSING, "run.on_collapse=warn"), tmp_path / "warned")
    assert (result.finished, result.steps) == (True, 260)


def test_the_last_good_checkpoint_is_one_from_before(tmp_path, make_settings):
    best = BestSoFar()
    guards = Safeguards(make_settings(), RunFolder(tmp_path), warmup_steps=0, best=best)

    def message(step: int) -> str:
        with pytest.raises(TrainingError) as caught:
            guards.check_losses(step, bad_step=step, skipped_in_a_row=0)
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
    settings = make_settings(*wild, "run.epochs=60", "run.log_every_steps=20")
    with pytest.raises(TrainingError, match=r"\d+ in a row .* not finite.*base_lr"):
        pretrain([store_factory()], settings, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["skipped_steps"] >= 20
    assert lines[-1]["loss"] is None  # JSON has no NaN


def test_skipping_changes_nothing_where_all_is_finite(store_factory, make_settings, tmp_path):
    stores = [store_factory()]
    weights = []
    for rule in ("stop", "skip"):
        out = pretrain(stores, make_settings(f"run.on_nan={rule}"), tmp_path / rule).out
        weights.append(torch.load(out / "checkpoints" / "last.pt", weights_only=True)["model"])
    for (name, one), other in zip(weights[0].items(), weights[1].values(), strict=True):
        assert torch.equal(one, other), name
