"""What the objectives on z alone share: no predictor, float32, a neighbour where it has a weight."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from simtriplet.pretrain.loss_terms import LossTerms
from simtriplet.pretrain.model import ViewOutputs
from simtriplet.pretrain.settings import ObjectiveSettings

__all__ = ["EmbeddingObjective"]


class EmbeddingObjective(ABC):
    """An objective on the projections z of the views, see Objective.

    Args:
        settings: the weights; at inter weight 0 the neighbour is not used.
    """

    uses_predictor = False

    def __init__(self, settings: ObjectiveSettings) -> None:
        self.settings = settings
        self.uses_neighbour = settings.inter_weight > 0

    def __call__(
        self, outputs: ViewOutputs, *, warm_in: Tensor | float = 1.0, pair_weights: Tensor | None = None
    ) -> LossTerms:
        """See Objective."""
        with torch.autocast(outputs.z[0].device.type, enabled=False):
            return self._losses([each.float() for each in outputs.z], warm_in, pair_weights)

    @abstractmethod
    def _losses(self, z: Sequence[Tensor], warm_in: Tensor | float, pair_weights: Tensor | None) -> LossTerms:
        """Return the loss and its terms, detached, of the views' (n, d) float32 projections."""
