import math

import pytest
import torch

from simtriplet.pretrain.loss_terms import LossTerms
from simtriplet.pretrain.step_log import StepLog, StepOutcome, deviation_of


def note(
    log: StepLog,
    loss: float,
    lr: float = 0.1,
    *,
    skipped: bool | None = None,
    waited_s: float = 0.0,
    grad_norm: float | None = 3.0,
) -> None:
    value = torch.tensor(loss)
    norm = None if grad_norm is None else torch.tensor(grad_norm)
    flag = None if skipped is None else torch.tensor(skipped)
    outcome = StepOutcome(LossTerms(value, {"half": value / 2}), torch.eye(4), norm, flag)
    log.add(outcome, lr=lr, waited_s=waited_s)


def test_a_report_averages_what_came_since_the_last():
    log = StepLog(total_steps=9, batch_size=4)
    for loss, lr in ((1.0, 0.1), (3.0, 0.2)):
        note(log, loss, lr)
    report, bad = log.report(step=2, epoch=1)
    assert (report.loss, report.terms, report.lr, bad) == (2.0, {"half": 1.0}, 0.2, None)
    assert (report.grad_norm, report.skipped_steps, log.losses) == (3.0, 0, [1.0, 3.0])
    assert report.triplets_per_s > 0
    note(log, 5.0)
    assert log.report(step=3, epoch=1)[0].loss == 5.0
    assert len(log) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_loss_that_is_not_finite_is_named(value):
    log = StepLog(total_steps=9, batch_size=4)
    for loss in (1.0, 2.0, value, 2.0, value):
        note(log, loss)
    report, bad = log.report(step=17, epoch=1)
    assert bad == (15, "loss")
    assert report.loss == pytest.approx(5 / 3)  # of the finite ones


@pytest.mark.parametrize(
    ("grad_norm", "skipped", "bad"),
    [
        (math.inf, None, (8, "gradient")),
        (math.nan, False, (8, "gradient")),
        (math.inf, True, None),  # as a loss scaler that starts high does
        (None, None, None),
        (1e30, False, None),
    ],
)
def test_a_gradient_that_is_not_finite_is_bad_unless_its_step_was_skipped(grad_norm, skipped, bad):
    log = StepLog(total_steps=9, batch_size=4)
    note(log, 1.0, grad_norm=None)
    note(log, 1.0, grad_norm=grad_norm, skipped=skipped)
    assert log.report(step=8, epoch=1)[1] == bad


def test_skipped_steps_are_counted_over_reports():
    log = StepLog(total_steps=9, batch_size=4)
    for skipped in (True, False, True):
        note(log, 1.0, skipped=skipped)
    assert log.report(step=3, epoch=1)[0].skipped_steps == 2
    note(log, 1.0, skipped=True)
    assert log.report(step=4, epoch=1)[0].skipped_steps == 3
    assert log.skipped_in_a_row == 2
    note(log, 1.0, skipped=False)
    log.report(step=5, epoch=1)
    assert log.skipped_in_a_row == 0


def test_time_that_is_left_out_makes_the_rate_higher_and_waiting_is_a_share():
    log = StepLog(total_steps=9, batch_size=1000)
    log.leave_out(-1.0)  # as if a second had gone by
    note(log, 1.0, waited_s=0.5)
    slow = log.report(step=1, epoch=1)[0]
    assert 900 < slow.triplets_per_s <= 1000
    assert 0.4 < slow.data_wait_share <= 0.5
    log.leave_out(-1.0)
    log.leave_out(0.9)
    note(log, 1.0)
    fast = log.report(step=2, epoch=1)[0]
    assert 4_000 < fast.triplets_per_s <= 10_000
    assert fast.data_wait_share == 0


def test_deviation_is_one_over_root_d_for_spread_z_and_zero_for_collapsed_z():
    spread = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert deviation_of(spread).item() == pytest.approx(1 / 8, rel=0.01)
    assert deviation_of(torch.ones(16, 64) * 3).item() == pytest.approx(0, abs=1e-7)
