"""What a run came to."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["PretrainResult"]


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """What a run came to.

    Attributes:
        out: the run folder.
        encoder: the weights file in it.
        finished: False where run.max_minutes ended it early; resume to go on.
        steps: done.
        epochs: begun.
        loss: of the last report, NaN where there was none.
        z_std: likewise; 1 / sqrt(projector_dim) is healthy.
        batch_size: triplets a step; smaller than asked for where there are fewer tiles.
        n_tiles: tiles trained on.
        n_isolated: tiles without a neighbour, which were trained with themselves or left out.
        skipped_steps: steps that changed nothing, as their loss or gradient was not finite.
    """

    out: Path
    encoder: Path
    finished: bool
    steps: int
    epochs: int
    loss: float
    z_std: float
    batch_size: int
    n_tiles: int
    n_isolated: int
    skipped_steps: int = 0  # which the checkpoint of an older version's finished run does not tell
