"""What is due after which step of a run: a report, the end of an epoch, a checkpoint."""

import math
from dataclasses import dataclass

from simtriplet.pretrain.settings import RunSettings

__all__ = ["Timetable"]


@dataclass(frozen=True, slots=True)
class Timetable:
    """A function of the settings and the step alone, so that a resumed run does as an uninterrupted one.

    Attributes:
        run: settings.
        steps_per_epoch: at least 1.
        total_steps: of the run.
    """

    run: RunSettings
    steps_per_epoch: int
    total_steps: int

    def epochs_begun(self, step: int) -> int:
        """Return how many epochs were begun after so many steps."""
        return math.ceil(step / self.steps_per_epoch)

    def ends_epoch(self, step: int) -> bool:
        """Tell whether an epoch, or the run, ends with this step."""
        return step % self.steps_per_epoch == 0 or step == self.total_steps

    def reports(self, step: int) -> bool:
        """Tell whether there is a report: after the very first step too, so that nobody waits for a sign of life."""
        return step == 1 or self.ends_epoch(step) or step % self.run.log_every_steps == 0

    def kept_epoch(self, step: int) -> int | None:
        """Return the epoch after which the state is kept for good, None where it is not."""
        every = self.run.keep_every_epochs
        epoch, place = divmod(step, self.steps_per_epoch)
        return epoch if every is not None and place == 0 and epoch % every == 0 else None

    def saves(self, step: int) -> bool:
        """Tell whether the last checkpoint is replaced; after the last step that is the end's business."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return place == 0 and epoch % self.run.checkpoint_every_epochs == 0 and step != self.total_steps
