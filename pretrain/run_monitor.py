"""When a run looks at its features, and everything that is said of it then."""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from simtriplet.pretrain.encoder import EncoderInfo
from simtriplet.pretrain.model import TripletModel
from simtriplet.pretrain.monitor import MonitorReport, measure_features
from simtriplet.pretrain.probe import ProbeTiles
from simtriplet.pretrain.regate import RunPlace
from simtriplet.pretrain.settings import PretrainSettings
from simtriplet.pretrain.step_log import StepReport
from simtriplet.pretrain.tiles import TileNumbering

__all__ = ["RunMonitor"]


class RunMonitor:
    """Measure the features every few epochs, and the loss between two such times.

    Args:
        settings: of the run.
        numbering: the tiles, of which some are measured.
        place: where and how the network computes.
        isolated_share: of the tiles without a neighbour; None where the objective uses none.
    """

    def __init__(
        self, settings: PretrainSettings, numbering: TileNumbering, place: RunPlace, *, isolated_share: float | None
    ) -> None:
        self.every_epochs = settings.run.monitor_every_epochs
        self.dim = settings.model.projector_dim
        self.place = place
        self.isolated_share = isolated_share
        self.probe = ProbeTiles(numbering, n_tiles=settings.run.monitor_tiles, seed=settings.run.seed)
        self._sum, self._count = 0.0, 0

    def is_due(self, epochs_done: int, steps_into_epoch: int, *, is_last: bool) -> bool:
        """Tell whether to measure now: after every k epochs, and after the last step."""
        if not self.every_epochs:
            return False
        return is_last or (steps_into_epoch == 0 and epochs_done % self.every_epochs == 0)

    def add_losses(self, losses: Sequence[float]) -> None:
        """Note the losses of steps one by one: the order of a sum decides its last bits, and reports may be cut anew."""
        for loss in losses:
            if math.isfinite(loss):
                self._sum += loss
                self._count += 1

    def begin_anew(self) -> None:
        """Forget the losses."""
        self._sum, self._count = 0.0, 0

    def measure(self, model: TripletModel, info: EncoderInfo, report: StepReport) -> MonitorReport:
        """Measure, and add to it what the last step report says (a CPU-GPU sync point)."""
        start = time.perf_counter()
        features = measure_features(model, info, self.probe, precision=self.place.precision)
        device = self.place.device
        return MonitorReport(
            step=report.step,
            epoch=report.epoch,
            loss=self._sum / self._count if self._count else float("nan"),
            terms=report.terms,
            lr=report.lr,
            z_std=report.z_std,
            z_std_healthy=self.dim**-0.5,
            grad_norm=report.grad_norm,
            features=features,
            isolated_share=self.isolated_share,
            skipped_steps=report.skipped_steps,
            data_wait_share=report.data_wait_share,
            gpu_memory_max_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            seconds=time.perf_counter() - start,
        )

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on."""
        return {"sum": self._sum, "count": self._count}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state()`."""
        self._sum, self._count = state["sum"], state["count"]
