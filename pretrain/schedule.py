"""The learning rate of every step: linear warm-up, then a cosine to zero."""

import math
from dataclasses import dataclass

from simtriplet.pretrain.settings import PretrainSettings
from simtriplet.wsi.errors import SettingsError

__all__ = ["Schedule", "peak_learning_rate", "plan_schedule"]


def peak_learning_rate(base_lr: float, batch_size: int) -> float:
    """Scale the learning rate with the batch: base_lr x batch / 256."""
    return base_lr * batch_size / 256


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rates by step.

    Attributes:
        peak: the highest learning rate, reached at the end of the warm-up.
        warmup_steps: steps of the linear rise; the first already learns, at peak / warmup_steps.
        total_steps: the cosine would reach 0 at this step, one after the last.
    """

    peak: float
    warmup_steps: int
    total_steps: int

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps < self.total_steps:
            raise SettingsError(
                f"warm-up of {self.warmup_steps} steps: must be shorter than the run of {self.total_steps} steps; "
                "lower optimiser.warmup_epochs"
            )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step number `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.peak * 0.5 * (1 + math.cos(math.pi * progress))


def plan_schedule(settings: PretrainSettings, *, steps_per_epoch: int, batch_size: int) -> Schedule:
    """Return the schedule of a run whose epochs have so many steps of so many triplets."""
    optimiser, run = settings.optimiser, settings.run
    total, warmup = run.epochs * steps_per_epoch, round(optimiser.warmup_epochs * steps_per_epoch)
    if run.max_steps is not None and run.max_steps < total:
        total = run.max_steps
        warmup = min(warmup, total // 10)  # counted in epochs it could outlast a run that is counted in steps
    peak = peak_learning_rate(optimiser.base_lr, batch_size)
    return Schedule(peak=peak, warmup_steps=warmup, total_steps=total)
