"""What training reports: losses gathered on the device and fetched now and then, and the watch for a collapse."""

import logging
import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from simtriplet.pretrain.objective import LossTerms

__all__ = ["StepLog", "StepReport", "deviation_of", "warn_of_collapse"]

logger = logging.getLogger(__name__)

_COLLAPSED_SHARE = 0.1
"""Of the healthy deviation; SimSiam's figure 2 shows collapsed runs at 0 and healthy ones at 1."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One line of metrics.jsonl.

    Attributes:
        step: steps done.
        total_steps: of the run.
        epoch: epochs begun, counted from 1.
        loss: mean since the last report.
        terms: the loss's parts, likewise.
        lr: the encoder's learning rate in the last step.
        z_std: deviation of normalised z in the last step; 1 / sqrt(d) is healthy, 0 is collapse.
        triplets_per_s: since the last report.
    """

    step: int
    total_steps: int
    epoch: int
    loss: float
    terms: dict[str, float]
    lr: float
    z_std: float
    triplets_per_s: float


def deviation_of(z: Tensor) -> Tensor:
    """Return the deviation of each dimension of the l2-normalised (n, d) z, averaged (SimSiam section 4.1)."""
    return F.normalize(z.detach().float(), dim=1).std(dim=0, correction=0).mean()


def warn_of_collapse(report: StepReport, dim: int) -> None:
    """Log a warning where z, of `dim` dimensions, hardly varies any more."""
    healthy = 1 / math.sqrt(dim)
    if report.z_std < _COLLAPSED_SHARE * healthy:
        logger.warning(
            "epoch %d: z has collapsed (deviation %.2g, healthy is %.2g); lower optimiser.base_lr or use vicreg",
            report.epoch,
            report.z_std,
            healthy,
        )


class StepLog:
    """Keep the losses of the steps since the last report on the device, so that no step waits for it.

    Args:
        total_steps: of the run.
        batch_size: triplets a step.
    """

    def __init__(self, *, total_steps: int, batch_size: int) -> None:
        self.total_steps = total_steps
        self.batch_size = batch_size
        self._pending: list[LossTerms] = []
        self._z: Tensor | None = None
        self._lr = 0.0
        self._since = time.perf_counter()

    def __len__(self) -> int:
        """Return how many steps wait to be reported."""
        return len(self._pending)

    def add(self, losses: LossTerms, *, lr: float, z: Tensor) -> None:
        """Note a step: its loss, the encoder's learning rate and (n, d) z of one view."""
        self._pending.append(LossTerms(losses.loss.detach(), losses.terms))
        self._z, self._lr = z.detach(), lr

    def report(self, *, step: int, epoch: int) -> tuple[StepReport, int | None]:
        """Fetch what waits, at least one step (a CPU-GPU sync point), and start anew.

        Returns:
            The report, and the number of the first step whose loss is not finite (counted from 1), None if there is
            none.
        """
        assert self._z is not None
        losses = torch.stack([each.loss for each in self._pending])
        names = list(self._pending[0].terms)
        means = [torch.stack([each.terms[name] for each in self._pending]).mean() for name in names]
        finite = losses.isfinite().tolist()
        bad = None if all(finite) else step - len(finite) + finite.index(False) + 1
        now = time.perf_counter()
        report = StepReport(
            step=step,
            total_steps=self.total_steps,
            epoch=epoch,
            loss=float(losses.mean()),
            terms={name: float(mean) for name, mean in zip(names, means, strict=True)},
            lr=self._lr,
            z_std=float(deviation_of(self._z)),
            triplets_per_s=len(self._pending) * self.batch_size / max(now - self._since, 1e-9),
        )
        self._pending.clear()
        self._since = now
        return report, bad
