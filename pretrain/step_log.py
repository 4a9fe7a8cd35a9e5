"""What training reports: losses gathered on the device and fetched now and then."""

import math
import time
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from simtriplet.pretrain.loss_terms import LossTerms

__all__ = ["BadStep", "StepLog", "StepOutcome", "StepReport", "deviation_of"]


@dataclass(frozen=True, slots=True)
class StepReport:
    """One line of metrics.jsonl.

    Attributes:
        step: steps done.
        total_steps: of the run.
        epoch: epochs begun, counted from 1.
        loss: mean since the last report, over the steps whose loss is finite.
        terms: the loss's parts, likewise.
        lr: the encoder's learning rate in the last step.
        z_std: deviation of normalised z in the last step; 1 / sqrt(d) is healthy, 0 is collapse.
        triplets_per_s: since the last report.
        grad_norm: length of the gradient of the last step, before its update; None where it was not measured.
        skipped_steps: since the run began, steps that did not change the weights: a loss or gradient was not finite.
        data_wait_share: share of the time since the last report in which the step waited for tiles.
    """

    step: int
    total_steps: int
    epoch: int
    loss: float
    terms: dict[str, float]
    lr: float
    z_std: float
    triplets_per_s: float
    grad_norm: float | None = None
    skipped_steps: int = 0
    data_wait_share: float = 0.0


class StepOutcome(NamedTuple):
    """What a step leaves on the device.

    Attributes:
        losses: of the step; the mean of its micro-batches.
        z: (n, d) of one view.
        grad_norm: scalar, None where it was not asked for.
        skipped: bool scalar, whether the weights stayed as they were; None where no step is ever skipped.
    """

    losses: LossTerms
    z: Tensor
    grad_norm: Tensor | None = None
    skipped: Tensor | None = None


class BadStep(NamedTuple):
    """A step that went into the weights and must not have.

    Attributes:
        step: counted from 1.
        what: which of the two is not finite.
    """

    step: int
    what: Literal["loss", "gradient"]


def deviation_of(z: Tensor) -> Tensor:
    """Return the deviation of each dimension of the l2-normalised (n, d) z, averaged (SimSiam section 4.1)."""
    return F.normalize(z.detach().float(), dim=1).std(dim=0, correction=0).mean()


class StepLog:
    """Keep the losses of the steps since the last report on the device, so that no step waits for it.

    Args:
        total_steps: of the run.
        batch_size: triplets a step.

    Attributes:
        skipped: steps since the run began that did not change the weights.
        skipped_in_a_row: how many of the last ones.
    """

    def __init__(self, *, total_steps: int, batch_size: int) -> None:
        self.total_steps = total_steps
        self.batch_size = batch_size
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.losses: list[float] = []
        """Of the steps in the last report, finite or not."""
        self._pending: list[tuple[LossTerms, Tensor | None]] = []
        self._last: StepOutcome | None = None
        self._lr = 0.0
        self._waited_s = 0.0
        self._since = time.perf_counter()

    def __len__(self) -> int:
        """Return how many steps wait to be reported."""
        return len(self._pending)

    def add(self, outcome: StepOutcome, *, lr: float, waited_s: float = 0.0) -> None:
        """Note a step, the encoder's learning rate in it and how long it waited for its tiles."""
        self._pending.append((outcome.losses, outcome.skipped))
        self._last, self._lr = outcome, lr
        self._waited_s += waited_s

    def start_clock(self) -> None:
        """Count time from now on."""
        self._since = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Do not count time that went into something else than steps."""
        self._since += seconds

    def report(self, *, step: int, epoch: int) -> tuple[StepReport, BadStep | None]:
        """Fetch what waits, at least one step (a CPU-GPU sync point), and start anew.

        Returns:
            The report, and the first step whose loss is not finite, else the last one where its gradient was measured, is
            not finite and was not skipped; None if there is none.
        """
        last = self._last
        assert last is not None
        self.losses = torch.stack([losses.loss.detach() for losses, _ in self._pending]).tolist()
        finite = [math.isfinite(loss) for loss in self.losses]
        grad_norm = None if last.grad_norm is None else float(last.grad_norm)
        self._count_skipped()
        bad: BadStep | None = None
        if not all(finite):
            bad = BadStep(step - len(finite) + finite.index(False) + 1, "loss")
        elif grad_norm is not None and not math.isfinite(grad_norm) and not self.skipped_in_a_row:
            bad = BadStep(step, "gradient")
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        report = StepReport(
            step=step,
            total_steps=self.total_steps,
            epoch=epoch,
            loss=_mean(self.losses, finite),
            terms=self._mean_terms(finite),
            lr=self._lr,
            z_std=float(deviation_of(last.z)),
            triplets_per_s=len(self._pending) * self.batch_size / seconds,
            grad_norm=grad_norm,
            skipped_steps=self.skipped,
            data_wait_share=min(1.0, self._waited_s / seconds),
        )
        self._pending.clear()
        self._since, self._waited_s = now, 0.0
        return report, bad

    def _mean_terms(self, finite: list[bool]) -> dict[str, float]:
        names = list(self._pending[0][0].terms)
        rows = [torch.stack([losses.terms[name].float() for name in names]) for losses, _ in self._pending]
        columns = torch.stack(rows).T.tolist() if names else []
        return {name: _mean(column, finite) for name, column in zip(names, columns, strict=True)}

    def _count_skipped(self) -> None:
        flags = [skipped for _, skipped in self._pending if skipped is not None]
        for skipped in torch.stack(flags).tolist() if flags else []:
            self.skipped += int(skipped)
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0


def _mean(values: list[float], chosen: list[bool]) -> float:
    kept = [value for value, keep in zip(values, chosen, strict=True) if keep]
    return sum(kept) / len(kept) if kept else math.nan
