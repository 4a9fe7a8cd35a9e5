"""Collapse, SimSiam's failure: every tile gets the same z. It is recognised, named, and may end the run."""

import logging
import math

from simtriplet.pretrain.step_log import StepReport

__all__ = ["CollapseWatch", "has_collapsed", "warn_of_collapse"]

logger = logging.getLogger(__name__)

_COLLAPSED_SHARE = 0.1
"""Of the healthy deviation; SimSiam's figure 2 shows collapsed runs at 0 and healthy ones at 1."""


def has_collapsed(report: StepReport, dim: int) -> bool:
    """Tell whether z, of `dim` dimensions, hardly varies: below a tenth of 1 / sqrt(d). One report may be chance."""
    return report.z_std < _COLLAPSED_SHARE / math.sqrt(dim)


def warn_of_collapse(report: StepReport, dim: int) -> None:
    """Log a warning where z, of `dim` dimensions, hardly varies any more."""
    if has_collapsed(report, dim):
        logger.warning(
            "epoch %d: z has collapsed (deviation %.2g, healthy is %.2g); lower optimiser.base_lr or use vicreg",
            report.epoch,
            report.z_std,
            1 / math.sqrt(dim),
        )


class CollapseWatch:
    """Tell a collapse that lasts from one that passes.

    It lasts where every report says so, five of them at least and over 200 steps at least, all after the warm-up.

    Args:
        dim: length of z.
        warmup_steps: in which nothing is judged.
        reports: at least so many.
        steps: over at least so many.

    Attributes:
        since: the step of the first report of the present row of collapsed ones, None where the last was healthy.
    """

    def __init__(self, *, dim: int, warmup_steps: int, reports: int = 5, steps: int = 200) -> None:
        self.dim, self.warmup_steps, self.reports, self.steps = dim, warmup_steps, reports, steps
        self.since: int | None = None
        self._in_a_row = 0

    def see(self, report: StepReport) -> bool:
        """Take a report; return whether the collapse lasts."""
        if report.step <= self.warmup_steps or not has_collapsed(report, self.dim):
            self.since, self._in_a_row = None, 0
            return False
        self.since = report.step if self.since is None else self.since
        self._in_a_row += 1
        return self._in_a_row >= self.reports and report.step - self.since >= self.steps

    def state(self) -> tuple[int | None, int]:
        """Return what a resumed run needs to go on counting."""
        return self.since, self._in_a_row

    def restore(self, state: tuple[int | None, int]) -> None:
        """Go on from a `state()`."""
        self.since, self._in_a_row = state
