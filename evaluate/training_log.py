"""Read the loss curve of a pretraining run from its metrics.jsonl."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.errors import EvaluationError

__all__ = ["LossCurve", "read_loss_curve"]


class LossCurve(NamedTuple):
    """The logged losses of a run, in step order.

    Attributes:
        steps: (n,) optimiser steps.
        losses: (n,) finite losses.
    """

    steps: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]


def read_loss_curve(run: Path) -> LossCurve:
    """Read `run`/metrics.jsonl; lines without a loss are left out, and of a step logged twice (resume) the last counts.

    Raises:
        EvaluationError: if there is no such file.
    """
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise EvaluationError(
            f"run '{run}': has no readable metrics.jsonl; pass a folder that pretrain wrote"
        ) from error
    by_step = dict(point for line in lines if (point := _parse(line)) is not None)
    steps = sorted(by_step)
    return LossCurve(np.array(steps, dtype=np.float64), np.array([by_step[step] for step in steps], dtype=np.float64))


def _parse(line: str) -> tuple[float, float] | None:
    try:
        values = json.loads(line)
        step, loss = float(values["step"]), float(values["loss"])
    except (ValueError, KeyError, TypeError):
        return None  # a killed run leaves half a line; other records have no loss
    return (step, loss) if math.isfinite(loss) else None
