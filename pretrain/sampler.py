"""Which tiles make up which step: a permutation per epoch, a function of the seed and the step alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from simtriplet.pretrain.neighbours import DrawnPairs, NeighbourDraw
from simtriplet.wsi.errors import TrainingError

__all__ = ["TripletSampler", "balanced_order", "seed_of"]


def seed_of(*parts: int) -> int:
    """Return one well-mixed 63-bit seed for several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


class TripletSampler:
    """Give the tile numbers of any step; the step is all there is to resume from.

    The last tiles of an epoch that do not fill a batch are left out, another few each epoch; where there are fewer
    tiles than a batch, the batch shrinks to them.

    Args:
        anchors: (n,) int64, global numbers of the tiles to train on.
        batch_size: triplets a step.
        seed: of the order and of the neighbours.
        neighbours: the draw of third views, or None where the objective uses two.
        device: where the numbers are wanted.
        slides: (n,) int64, the slide of each anchor, where every slide shall come as often as every other; None where every
            tile shall.

    Raises:
        TrainingError: if there are fewer than two anchors.
    """

    def __init__(
        self,
        anchors: Tensor,
        *,
        batch_size: int,
        seed: int,
        neighbours: NeighbourDraw | None,
        device: torch.device,
        slides: Tensor | None = None,
    ) -> None:
        if len(anchors) < 2:
            raise TrainingError(
                f"{len(anchors)} tiles to train on: must be at least 2 (batch normalisation); add stores"
            )
        self.anchors = anchors
        self.batch_size = min(batch_size, len(anchors))
        self.steps_per_epoch = len(anchors) // self.batch_size
        self.seed = seed
        self.neighbours = neighbours
        self.device = device
        self._tiles_of: list[Tensor] | None = None  # places of each slide's anchors
        if slides is not None:
            counts = torch.bincount(slides)
            self._tiles_of = list(torch.split(slides.argsort(stable=True), counts[counts > 0].tolist()))
        self._planned = (-1, -1)  # epoch, and generation of what its neighbours were drawn from
        self._planned_anchors = torch.empty(0, dtype=torch.int64)
        self._planned_pairs: DrawnPairs | None = None

    @property
    def n_views(self) -> int:
        """Views of a step: two of the anchor, and one of the neighbour where it is used."""
        return 2 if self.neighbours is None else 3

    def ids(self, step: int) -> Tensor:
        """Return (v, n) int64 tile numbers of a step: anchor, anchor and, where it is used, neighbour."""
        places = self._places(step)
        anchors, pairs = self._planned_anchors[places], self._planned_pairs
        return torch.stack([anchors, anchors] if pairs is None else [anchors, anchors, pairs.neighbours[places]])

    def weights(self, step: int) -> Tensor | None:
        """Return (n,) float32, how much the neighbour of each anchor of a step counts; None where all count 1."""
        places = self._places(step)
        pairs = self._planned_pairs
        return None if pairs is None or pairs.weights is None else pairs.weights[places]

    def _places(self, step: int) -> slice:
        """Plan the step's epoch where that is not done, or was done before the neighbours to draw from changed."""
        epoch, place = divmod(step, self.steps_per_epoch)
        wanted = (epoch, 0 if self.neighbours is None else self.neighbours.generation)
        if wanted != self._planned:
            self._plan(epoch)
            self._planned = wanted
        return slice(place * self.batch_size, (place + 1) * self.batch_size)

    def _plan(self, epoch: int) -> None:
        """Draw a whole epoch at once, so that a step in its middle can be found again without replaying the others."""
        self._planned_pairs = None  # the last epoch's, before there is memory for this one's
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        self._planned_anchors = self.anchors[self._order(generator)].to(self.device)
        if self.neighbours is None:
            return
        fresh = torch.Generator(self.device).manual_seed(seed_of(self.seed, epoch, 1))
        self._planned_pairs = self.neighbours.draw_pairs(self._planned_anchors, fresh)

    def _order(self, generator: torch.Generator) -> Tensor:
        if self._tiles_of is None:
            return torch.randperm(len(self.anchors), generator=generator)
        return balanced_order(self._tiles_of, len(self.anchors), generator)


def balanced_order(groups: Sequence[Tensor], length: int, generator: torch.Generator) -> Tensor:
    """Draw items so that each group comes as often as each other in any stretch of the order, up to two.

    The groups take turns, in another order each round; within a group all items come before one comes again.

    Args:
        groups: the items of each, (m,) int64, none of them empty.
        length: how many to draw.
        generator: on the CPU.

    Returns:
        (length,) int64.
    """
    rounds = -(-length // len(groups))
    turns = torch.rand(rounds, len(groups), generator=generator).argsort(dim=1).flatten()[:length]
    order = torch.empty(length, dtype=torch.int64)
    for number, items in enumerate(groups):
        places = (turns == number).nonzero()[:, 0]
        passes = -(-len(places) // len(items))
        shuffled = torch.rand(passes, len(items), generator=generator).argsort(dim=1).flatten()
        order[places] = items[shuffled[: len(places)]]
    return order
