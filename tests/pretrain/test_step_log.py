import logging
import math

import pytest
import torch

from simtriplet.pretrain.objective import LossTerms
from simtriplet.pretrain.step_log import StepLog, StepReport, deviation_of, warn_of_collapse


def note(log: StepLog, loss: float, lr: float = 0.1) -> None:
    value = torch.tensor(loss)
    log.add(LossTerms(value, {"half": value / 2}), lr=lr, z=torch.eye(4))


def test_a_report_averages_what_came_since_the_last():
    log = StepLog(total_steps=9, batch_size=4)
    for loss, lr in ((1.0, 0.1), (3.0, 0.2)):
        note(log, loss, lr)
    report, bad = log.report(step=2, epoch=1)
    assert (report.loss, report.terms, report.lr, bad) == (2.0, {"half": 1.0}, 0.2, None)
    assert report.triplets_per_s > 0
    note(log, 5.0)
    assert log.report(step=3, epoch=1)[0].loss == 5.0
    assert len(log) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_loss_that_is_not_finite_is_named(value):
    log = StepLog(total_steps=9, batch_size=4)
    for loss in (1.0, 2.0, value, 2.0, value):
        note(log, loss)
    assert log.report(step=17, epoch=1)[1] == 15


def test_deviation_is_one_over_root_d_for_spread_z_and_zero_for_collapsed_z():
    spread = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert deviation_of(spread).item() == pytest.approx(1 / 8, rel=0.01)
    assert deviation_of(torch.ones(16, 64) * 3).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(("z_std", "warns"), [(0.125, False), (0.02, False), (0.01, True), (0.0, True)])
def test_a_collapse_is_warned_of(caplog, z_std, warns):
    report = StepReport(3, 9, 1, -1.0, {}, 0.1, z_std, 1.0)
    with caplog.at_level(logging.WARNING):
        warn_of_collapse(report, 64)
    assert ("collapsed" in caplog.text) == warns
