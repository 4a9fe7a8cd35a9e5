"""What ends a run before its time: a loss that is not finite, steps that only get skipped, a collapse that lasts."""

import math
from pathlib import Path

from simtriplet.pretrain.best import BestSoFar
from simtriplet.pretrain.collapse import CollapseWatch
from simtriplet.pretrain.run_folder import RunFolder
from simtriplet.pretrain.settings import PretrainSettings
from simtriplet.pretrain.step_log import StepReport
from simtriplet.wsi.errors import TrainingError

__all__ = ["Safeguards"]

_SKIPS_IN_A_ROW = 50
"""A loss scaler that starts too high is right after twenty."""


class Safeguards:
    """Look at every report, and raise where going on makes no sense, with what to try and what there is to go back to.

    Args:
        settings: of the run; run.on_nan and run.on_collapse say how strict to be.
        folder: where its checkpoints are.
        warmup_steps: of the learning rate.
        best: the best checkpoint so far, as the run goes on.

    Attributes:
        watch: for a collapse.
        last_saved: step of the last checkpoint, None while there is none.
    """

    def __init__(self, settings: PretrainSettings, folder: RunFolder, *, warmup_steps: int, best: BestSoFar) -> None:
        self.run, self.folder, self.best = settings.run, folder, best
        self.dim = settings.model.projector_dim
        self.watch = CollapseWatch(dim=self.dim, warmup_steps=warmup_steps)
        self.last_saved: int | None = None

    def check_losses(self, step: int, *, bad_step: int | None, skipped_in_a_row: int) -> None:
        """Look at the steps of a report, before it is written.

        Args:
            step: steps done.
            bad_step: the first whose loss is not finite, None where all are.
            skipped_in_a_row: how many of the last steps changed nothing.

        Raises:
            TrainingError: if a loss is not finite and steps are not to be skipped, or none but skipped ones came of late.
        """
        what = f"loss of step {bad_step}: is not finite" if bad_step is not None and self.run.on_nan == "stop" else ""
        if skipped_in_a_row >= _SKIPS_IN_A_ROW:
            what = f"steps up to {step}: {skipped_in_a_row} in a row had a loss or gradient that is not finite"
        if what:
            cure = "lower optimiser.base_lr or use run.precision=fp32"
            raise TrainingError(f"{what}; {cure} (last good checkpoint: {self._good_checkpoint(step)})")

    def check_spread(self, report: StepReport) -> None:
        """Look at the deviation of z.

        Raises:
            TrainingError: if it has collapsed for long, unless run.on_collapse is "warn".
        """
        if not self.watch.see(report) or self.run.on_collapse == "warn":
            return
        since = self.watch.since or report.step
        raise TrainingError(
            f"z has collapsed since step {since}: its deviation is {report.z_std:.2g} after step {report.step}, "
            f"{1 / math.sqrt(self.dim):.2g} is healthy; try a lower optimiser.base_lr, a longer optimiser.warmup_epochs or "
            "objective.name=vicreg, or go on with --resume and run.on_collapse=warn "
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
