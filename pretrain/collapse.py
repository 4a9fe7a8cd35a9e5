"""Collapse, SimSiam's failure: every tile gets the same z, or one of a line. It is recognised, named, and may end the run."""

import logging
import math

from simtriplet.pretrain.step_log import StepReport

__all__ = ["CollapseWatch", "RankWatch", "has_collapsed", "lies_on_a_line", "warn_of_collapse"]

logger = logging.getLogger(__name__)

_COLLAPSED_SHARE = 0.1
"""Of the healthy deviation; SimSiam's figure 2 shows collapsed runs at 0 and healthy ones at 1."""
_LINE_RANK = 1.5
"""Effective rank of normalised z about its mean: 1 on a line. On tiles of two drawn textures healthy runs came to 1.8 and
more, runs that nothing keeps off a line to 1.1..1.5; tiles of tissue have many times that. RankMe itself, which is not about
the mean, was below 2 in both."""
_REPORTS, _STEPS = 5, 200
"""How long a collapse lasts at least, in a long run."""


def has_collapsed(report: StepReport, dim: int) -> bool:
    """Tell whether z, of `dim` dimensions, hardly varies: below a tenth of 1 / sqrt(d). One report may be chance."""
    return report.z_std < _COLLAPSED_SHARE / math.sqrt(dim)


def warn_of_collapse(report: StepReport, dim: int, *, level: int = logging.WARNING) -> None:
    """Log a warning, or at another level, where z, of `dim` dimensions, hardly varies any more."""
    if has_collapsed(report, dim):
        logger.log(
            level,
            "epoch %d: z has collapsed (deviation %.2g, healthy is %.2g); lower optimiser.base_lr or use vicreg",
            report.epoch,
            report.z_std,
            1 / math.sqrt(dim),
        )


def lies_on_a_line(spread_rank: float, *, dim: int, n_tiles: int) -> bool:
    """Tell whether the effective rank of (n_tiles, dim) z is below 1.5; of less where there are too few of either for that."""
    return spread_rank < min(_LINE_RANK, 1 + min(dim, n_tiles) / 32)


class CollapseWatch:
    """Tell a collapse that lasts from one that passes.

    It lasts where every report says so, five of them at least and over 200 steps at least, all after the warm-up. In a short
    run a quarter of its steps is enough, and as many reports, two at least, as come in that time.

    Args:
        dim: length of z.
        warmup_steps: in which nothing is judged.
        total_steps: of the run.
        report_every: steps between two reports, at most.

    Attributes:
        since: the step of the first report of the present row of collapsed ones, None where the last was healthy.
    """

    def __init__(self, *, dim: int, warmup_steps: int, total_steps: int, report_every: int) -> None:
        self.dim, self.warmup_steps = dim, warmup_steps
        quarter = total_steps // 4
        self.steps = min(_STEPS, quarter)
        self.reports = min(_REPORTS, max(2, quarter // report_every))
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


class RankWatch:
    """Tell z that lies on a line, at two monitors in a row after the warm-up, from z that does so for once.

    The deviation does not show it: z may vary a lot along its line.

    Args:
        dim: length of z.
        warmup_steps: in which nothing is judged.

    Attributes:
        since: the step of the first of the present row of such monitors, None where the last was healthy.
    """

    def __init__(self, *, dim: int, warmup_steps: int) -> None:
        self.dim, self.warmup_steps = dim, warmup_steps
        self.since: int | None = None

    def see(self, step: int, *, spread_rank: float, n_tiles: int) -> bool:
        """Take what a monitor after `step` steps found; return whether it is the second in a row."""
        if step <= self.warmup_steps or not lies_on_a_line(spread_rank, dim=self.dim, n_tiles=n_tiles):
            self.since = None
            return False
        again = self.since is not None
        self.since = step if self.since is None else self.since
        return again

    def state(self) -> int | None:
        """Return what a resumed run needs to go on."""
        return self.since

    def restore(self, state: int | None) -> None:
        """Go on from a `state()`."""
        self.since = state
