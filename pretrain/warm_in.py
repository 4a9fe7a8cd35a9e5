"""The neighbour's weight rises from 0, so that an encoder first learns what one tile looks like."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["WarmIn"]


@dataclass(frozen=True, slots=True)
class WarmIn:
    """Share of the inter weight by step; a function of the step alone, so that there is nothing to resume.

    Attributes:
        steps: of the linear rise; at 0 the neighbour has its full weight from the first step on.
    """

    steps: int

    def share(self, step: int) -> float:
        """Return the share in step number `step`, counted from 0: 0 in the first, 1 from number `steps` on."""
        return 1.0 if step >= self.steps else step / self.steps

    def on(self, device: torch.device, step: int) -> Tensor | float:
        """Return the share as an objective takes it: a scalar filled in on the device, plain 1 where there is no rise."""
        return torch.full((), self.share(step), device=device) if self.steps else 1.0
