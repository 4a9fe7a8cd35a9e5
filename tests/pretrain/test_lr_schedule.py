import math

import pytest
import torch

from simtriplet.pretrain.model import make_model
from simtriplet.pretrain.optimiser import make_optimiser, set_learning_rate
from simtriplet.pretrain.schedule import Schedule, peak_learning_rate
from simtriplet.pretrain.settings import ModelSettings, OptimiserSettings
from simtriplet.wsi.errors import SettingsError


def test_the_peak_scales_with_the_batch():
    assert peak_learning_rate(0.05, 128) == 0.025
    assert peak_learning_rate(0.05, 256) == 0.05


def test_rates_against_a_table():
    schedule = Schedule(peak=1.0, warmup_steps=4, total_steps=12)
    half = math.sqrt(0.5) / 2
    table = [0.25, 0.5, 0.75, 1.0, 1.0, 0.5 + 0.4619397662556434, 0.5 + half, 0.5 + 0.1913417161825449]
    table += [0.5, 0.5 - 0.1913417161825449, 0.5 - half, 0.5 - 0.4619397662556434]
    assert [schedule.learning_rate(step) for step in range(12)] == pytest.approx(table)
    assert schedule.learning_rate(12) == pytest.approx(0)


def test_without_warm_up_the_first_step_is_at_the_peak():
    assert Schedule(peak=0.3, warmup_steps=0, total_steps=5).learning_rate(0) == 0.3


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(SettingsError, match="warmup_epochs"):
        Schedule(peak=1, warmup_steps=5, total_steps=5)


@pytest.mark.parametrize("decays", [False, True])
def test_the_predictors_rate_stays_unless_told_to_decay(decays):
    model = make_model(ModelSettings(backbone="small", projector_dim=8, predictor_dim=4), with_predictor=True)
    schedule = Schedule(peak=0.4, warmup_steps=2, total_steps=10)
    optimiser = make_optimiser(model, OptimiserSettings(predictor_decay=decays), peak_lr=schedule.peak)
    encoder, predictor = optimiser.param_groups
    assert {id(p) for p in predictor["params"]} == {id(p) for p in model.predictor.parameters()}
    assert len(encoder["params"]) + len(predictor["params"]) == len(list(model.parameters()))
    rates = []
    for step in range(10):
        assert set_learning_rate(optimiser, schedule, step) == encoder["lr"] == schedule.learning_rate(step)
        rates.append(predictor["lr"])
    assert rates == ([schedule.learning_rate(step) for step in range(10)] if decays else [0.4] * 10)


def test_one_step_is_sgd_with_momentum_and_decay_on_everything():
    model = make_model(ModelSettings(backbone="small", projector_dim=8), with_predictor=False)
    optimiser = make_optimiser(model, OptimiserSettings(weight_decay=0.1, momentum=0.9), peak_lr=0.5)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimiser.step()
    for start, now in zip(before, model.parameters(), strict=True):
        once = start - 0.5 * (1 + 0.1 * start)
        twice = once - 0.5 * (0.9 * (1 + 0.1 * start) + 1 + 0.1 * once)
        torch.testing.assert_close(now.detach(), twice, atol=1e-6, rtol=1e-5)
