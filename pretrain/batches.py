"""What a step trains on: the tiles of its triplets, this process's share of them, and their views."""

import logging
import time
from typing import NamedTuple

import torch
from torch import Tensor

from simtriplet.pretrain.cohort import Cohort
from simtriplet.pretrain.compiling import make_run_views
from simtriplet.pretrain.distributed import World
from simtriplet.pretrain.regate import NeighbourRegate, RunPlace
from simtriplet.pretrain.sampler import TripletSampler, seed_of
from simtriplet.pretrain.settings import PretrainSettings
from simtriplet.pretrain.tiles import TileSource
from simtriplet.pretrain.view_parameters import ViewParameters
from simtriplet.wsi.errors import TrainingError

__all__ = ["Batch", "BatchMaker"]

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """The input of one step.

    Attributes:
        views: (v, n / processes, 3, s, s) float32 on the device, this process's share.
        pair_weights: (n,) float32 on the device, of the joint batch; None where all are 1.
        waited_s: how long the host waited for the tiles.
    """

    views: Tensor
    pair_weights: Tensor | None
    waited_s: float


class BatchMaker:
    """Make the batch of any step, in order; the view generator is all there is to resume from.

    Args:
        settings: of the run.
        cohort: what it trains on.
        source: the cohort's pixels.
        place: where views are wanted, and how images lie in memory.
        world: the processes that share a batch.
    """

    def __init__(
        self, settings: PretrainSettings, cohort: Cohort, source: TileSource, place: RunPlace, world: World
    ) -> None:
        self.settings, self.source, self.place, self.world = settings, source, place, world
        self.n_tiles = len(cohort.numbering)
        self.neighbours = cohort.neighbour_draw(source.id_device)
        self.sampler = self._make_sampler(cohort)
        self.regate = self._make_regate(cohort)
        self.views = make_run_views(settings, place.device)
        self.view_generator = torch.Generator(place.device).manual_seed(seed_of(settings.run.seed, 0, 2))

    @property
    def n_isolated(self) -> int:
        """Tiles without a neighbour; 0 where the objective uses none."""
        return 0 if self.neighbours is None else self.neighbours.n_isolated

    def _make_sampler(self, cohort: Cohort) -> TripletSampler:
        """Decide which tiles are anchors: all, or those with a neighbour."""
        run, neighbours = self.settings.run, self.neighbours
        anchors = torch.arange(self.n_tiles)
        if neighbours is not None and neighbours.n_isolated:
            drops = self.settings.data.isolated == "drop"
            anchors = neighbours.connected_ids if drops else anchors
            what = "are left out" if drops else "use a third view of themselves"
            logger.info("%d of %d tiles have no neighbour and %s", neighbours.n_isolated, len(neighbours.degrees), what)
        return TripletSampler(
            anchors,
            batch_size=self._batch_size(len(anchors)),
            seed=run.seed,
            neighbours=neighbours,
            device=self.source.id_device,
            slides=cohort.slide_of(anchors) if self.settings.data.balance == "slide" else None,
        )

    def _batch_size(self, n_anchors: int) -> int:
        """The batch shrinks to the tiles there are, and then to equal parts for all processes and micro-batches."""
        run, size = self.settings.run, self.world.size
        parts = run.accumulate * size
        if run.batch_size % parts or run.batch_size < 2 * parts:
            raise TrainingError(
                f"run.batch_size {run.batch_size}: must give {size} processes x {run.accumulate} micro-batches (run.accumulate) "
                "equal parts of at least 2; correct it"
            )
        if n_anchors >= run.batch_size or parts == 1:
            return run.batch_size
        if n_anchors < 2 * parts:
            raise TrainingError(f"{n_anchors} tiles to train on: must be at least {2 * parts}, 2 a part; add stores")
        return n_anchors - n_anchors % parts

    def _make_regate(self, cohort: Cohort) -> NeighbourRegate | None:
        if self.neighbours is None or not self.settings.data.regate_every_epochs:
            return None
        return NeighbourRegate(
            self.settings,
            neighbours=self.neighbours,
            source=self.source,
            offsets=cohort.numbering.offsets.tolist(),
            steps_per_epoch=self.sampler.steps_per_epoch,
            place=self.place,
        )

    def choose_neighbours(self, step: int, backbone: torch.nn.Module) -> None:
        """Before step number `step`, let the backbone choose the pairs to draw from anew, where that is due."""
        if self.regate is None or self.neighbours is None or not self.regate.is_due(step):
            return
        self.regate.choose(backbone)
        if self.world.size > 1:  # a similarity rounded otherwise must not give two processes two batches
            self.neighbours.restore(self.world.tell(self.neighbours.state()))

    def make(self, step: int, *, is_last: bool) -> Batch:
        """Gather and augment the tiles of step number `step`; `is_last` says that none will follow."""
        ids = self.sampler.ids(step)  # (v, n)
        weights = self.sampler.weights(step)
        start = time.perf_counter()
        tiles = self.source.gather(self._own(ids.flatten(), len(ids)))  # (v * n / processes, s, s, 3) uint8
        waited_s = time.perf_counter() - start
        if not is_last:
            following = self.sampler.ids(step + 1)
            self.source.prefetch(self._own(following.flatten(), len(following)))
        with torch.no_grad():
            views = self._augment(tiles, len(ids)).contiguous(memory_format=self.place.layout)
        if weights is not None:
            weights = weights.to(self.place.device, non_blocking=True)
        return Batch(views.view(len(ids), -1, *views.shape[1:]), weights, waited_s)

    def _own(self, values: Tensor, n_views: int) -> Tensor:
        return self.world.own(values, n_views=n_views, accumulate=self.settings.run.accumulate)

    def _augment(self, tiles: Tensor, n_views: int) -> Tensor:
        """Draw for the joint batch, so that views do not depend on how many processes share it."""
        if self.world.size == 1:
            return self.views(tiles, self.view_generator)
        joint = tiles[:1].expand(len(tiles) * self.world.size, -1, -1, -1)  # only its shape is looked at
        drawn = self.views.draw(joint, self.view_generator)
        return self.views.apply(tiles, ViewParameters(*(self._own(values, n_views) for values in drawn)))
