"""What ends a run before its time: numbers that are not finite, steps that only get skipped, a collapse that lasts."""

import logging
import math
from pathlib import Path
from typing import Any

from simtriplet.pretrain.best import BestSoFar
from simtriplet.pretrain.collapse import CollapseWatch, RankWatch
from simtriplet.pretrain.monitor import MonitorReport
from simtriplet.pretrain.run_folder import RunFolder
from simtriplet.pretrain.schedule import Schedule
from simtriplet.pretrain.settings import PrecisionName, PretrainSettings
from simtriplet.pretrain.step_log import BadStep, StepReport
from simtriplet.wsi.errors import TrainingError

__all__ = ["Safeguards"]

logger = logging.getLogger(__name__)

_SKIPS_OF_SCALING = 20
"""A loss scaler that starts too high is right after so many."""
_SKIPS_IN_A_ROW = 50
_SKIPS_AT_THE_END = 10
"""A scaler that has just grown too far is right after one or two."""


class Safeguards:
    """Look at every report, and raise where going on makes no sense, with what to try and what there is to go back to.

    Args:
        settings: of the run; run.on_nan and run.on_collapse say how strict to be.
        folder: where its checkpoints are.
        schedule: of the run.
        best: the best checkpoint so far, as the run goes on.
        precision: the arithmetic of the run.
        warning_level: of what is only warned of; of several processes one warns.

    Attributes:
        watch: for a collapse to one point.
        rank_watch: for a collapse to a line.
        last_saved: step of the last checkpoint, None while there is none.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        folder: RunFolder,
        *,
        schedule: Schedule,
        best: BestSoFar,
        precision: PrecisionName,
        warning_level: int = logging.WARNING,
    ) -> None:
        self.run, self.folder, self.best, self.warning_level = settings.run, folder, best, warning_level
        self.dim = settings.model.projector_dim
        self._allowed = _SKIPS_OF_SCALING if precision == "fp16" else 0
        steadier = ["lower optimiser.base_lr", "lengthen optimiser.warmup_epochs"]
        steadier += [] if precision == "fp32" else ["use run.precision=fp32"]
        self._steadier = f"{', '.join(steadier[:-1])} or {steadier[-1]} in another folder"
        self.watch = CollapseWatch(
            dim=self.dim,
            warmup_steps=schedule.warmup_steps,
            total_steps=schedule.total_steps,
            report_every=settings.run.log_every_steps,
        )
        self.rank_watch = RankWatch(dim=self.dim, warmup_steps=schedule.warmup_steps)
        self.last_saved: int | None = None

    @property
    def is_healthy(self) -> bool:
        """Whether neither watch saw a collapse when it looked last."""
        return self.watch.since is None and self.rank_watch.since is None

    def check_losses(self, step: int, *, bad: BadStep | None, skipped_in_a_row: int) -> None:
        """Look at the steps of a report, before it is written.

        Args:
            step: steps done.
            bad: the first whose loss or gradient is not finite, None where all are.
            skipped_in_a_row: how many of the last steps changed nothing.

        Raises:
            TrainingError: if a loss or gradient is not finite and steps are not to be skipped, or none but skipped ones came
                of late.
        """
        if skipped_in_a_row >= _SKIPS_IN_A_ROW:
            what = f"steps up to {step}: {skipped_in_a_row} in a row had a loss or gradient that is not finite"
            raise TrainingError(f"{what}; {self._steadier} (last good checkpoint: {self._good_checkpoint(step)})")
        if bad is not None and self.run.on_nan == "stop":
            what = f"{bad.what} of step {bad.step}: is not finite"
            cure = f"{self._steadier}, or go on with --resume --on-nan skip"
            raise TrainingError(f"{what}; {cure} (last good checkpoint: {self._good_checkpoint(bad.step)})")

    def check_end(self, step: int, *, skipped: int, skipped_in_a_row: int) -> None:
        """Look at a run that has come to its end: of one that hardly learnt there is no encoder.

        Args:
            step: steps done.
            skipped: how many of them changed nothing.
            skipped_in_a_row: how many of the last ones.

        Raises:
            TrainingError: if most, but for what fp16 scaling needs to begin with, or the last ones changed nothing.
        """
        if 2 * (skipped - self._allowed) <= step and skipped_in_a_row < _SKIPS_AT_THE_END:
            return
        last = f", the last {skipped_in_a_row} among them" if skipped_in_a_row else ""
        raise TrainingError(
            f"{skipped} of {step} steps had a loss or gradient that is not finite and changed nothing{last}: this is no encoder; "
            f"{self._steadier} (last good checkpoint: {self._good_checkpoint(step)})"
        )

    def check_weights(self, step: int, *, finite: bool) -> None:
        """Look at what is about to be written.

        Raises:
            TrainingError: if it is not finite.
        """
        if not finite:
            raise TrainingError(
                f"weights after step {step}: are not finite, and are not saved; {self._steadier} "
                f"(last good checkpoint: {self._good_checkpoint(step)})"
            )

    def check_spread(self, report: StepReport) -> None:
        """Look at the deviation of z.

        Raises:
            TrainingError: if it has collapsed for long, unless run.on_collapse is "warn".
        """
        if not self.watch.see(report) or self.run.on_collapse == "warn":
            return
        found = (
            f"its deviation is {report.z_std:.2g} after step {report.step}, {1 / math.sqrt(self.dim):.2g} is healthy"
        )
        raise self._collapse("z has collapsed", found, self.watch.since or report.step)

    def check_rank(self, report: MonitorReport) -> None:
        """Look at the effective rank of z about its mean, and warn of one that is too low.

        Raises:
            TrainingError: if it is too low for the second time in a row, unless run.on_collapse is "warn".
        """
        if self.watch.since is not None:
            return  # all of z is nearly one point, which is the other watch's
        rank = report.features.z_spread_rank
        lasts = self.rank_watch.see(report.step, spread_rank=rank, n_tiles=report.features.n_tiles)
        if self.rank_watch.since is None:
            return
        if lasts and self.run.on_collapse == "stop":
            found = f"its effective rank is {rank:.2f} of {self.dim} after step {report.step}"
            raise self._collapse("z has collapsed to a line", found, self.rank_watch.since)
        logger.log(
            self.warning_level,
            "epoch %d: z lies on a line (effective rank %.2f of %d); lower optimiser.base_lr or use vicreg",
            report.epoch,
            rank,
            self.dim,
        )

    def _collapse(self, what: str, found: str, since: int) -> TrainingError:
        return TrainingError(
            f"{what} since step {since}: {found}; try a lower optimiser.base_lr, a longer optimiser.warmup_epochs or "
            "objective.name=vicreg in another folder, or go on with --resume and run.on_collapse=warn "
            f"(last good checkpoint: {self._good_checkpoint(since)})"
        )

    def _good_checkpoint(self, before: int) -> str:
        """Name the later of the last and the best checkpoint, if it is of a step before `before`."""
        known: dict[Path, int | None] = {self.folder.checkpoint: self.last_saved}
        known[self.folder.best_checkpoint] = self.best.step or None
        good = {path: step for path, step in known.items() if step is not None and step < before}
        if not good:
            return "none yet"
        path = max(good, key=lambda each: good[each])
        return f"'{path}' of step {good[path]}"

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on."""
        return {"collapse": self.watch.state(), "line": self.rank_watch.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's `state()`; an older version's has no "line"."""
        self.watch.restore(state["collapse"])
        self.rank_watch.restore(state.get("line"))
