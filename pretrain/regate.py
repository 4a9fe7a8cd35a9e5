"""Choose the pairs to draw from anew by the features being learnt: neighbours that look unlike wait until the next time."""

import itertools
import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from simtriplet.pretrain.neighbours import NeighbourDraw
from simtriplet.pretrain.precision import autocast
from simtriplet.pretrain.settings import PrecisionName, PretrainSettings
from simtriplet.pretrain.tiles import TileSource
from simtriplet.pretrain.views import normalise

__all__ = ["NeighbourRegate", "RunPlace", "edge_similarity", "kept_edges"]

logger = logging.getLogger(__name__)

_BLOCK_NUMBERS = 1 << 24
"""Feature values gathered at once, 64 MB of float32."""


class RunPlace(NamedTuple):
    """Where and how a run computes.

    Attributes:
        device: of the network.
        precision: of the network.
        layout: of the images in memory.
    """

    device: torch.device
    precision: PrecisionName
    layout: torch.memory_format


class NeighbourRegate:
    """Every k epochs, let the backbone that is being trained say which neighbours are alike enough to be drawn.

    All tiles are embedded without augmentation, slide after slide, so that the features of one slide are all that is held.
    Of all pairs of the cohort those below a quantile of cosine similarity are dropped, but each tile keeps its most
    similar neighbour. Weights, batch statistics and random numbers stay as they are.

    Args:
        settings: of the run; `data.regate_every_epochs` is k, at least 1.
        neighbours: the draw to act on.
        source: the pixels.
        offsets: first tile of each slide, and the number of tiles.
        steps_per_epoch: of the run.
        place: where and how to compute.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        *,
        neighbours: NeighbourDraw,
        source: TileSource,
        offsets: Sequence[int],
        steps_per_epoch: int,
        place: RunPlace,
    ) -> None:
        self.settings, self.neighbours, self.source, self.place = settings, neighbours, source, place
        self.slides = list(itertools.pairwise(offsets))
        self.every_steps = settings.data.regate_every_epochs * steps_per_epoch

    def is_due(self, step: int) -> bool:
        """Tell whether to choose before step number `step`, counted from 0: after every k epochs, never before the first."""
        return step > 0 and step % self.every_steps == 0

    def choose(self, backbone: nn.Module) -> None:
        """Embed, compare and tell the draw what to keep (a CPU-GPU sync point)."""
        similarity, best = self._compare(backbone)
        quantile = self.settings.data.regate_quantile
        kept = kept_edges(similarity, best, quantile)
        self.neighbours.keep(kept)
        logger.info("neighbours chosen anew: %d of %d edges are drawn along", int(kept.sum()), len(kept))

    @torch.no_grad()
    def _compare(self, backbone: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the similarity of every edge, and whether no edge of its anchor has a greater one."""
        devices = [self.place.device] if self.place.device.type == "cuda" else []
        modes = [(module, module.training) for module in backbone.modules()]
        parts = []
        with torch.random.fork_rng(devices=devices):  # a backbone might draw even where it only evaluates
            backbone.eval()
            try:
                for start, stop in self.slides:
                    features = self._embed(backbone, start, stop)
                    anchors, others = (ids.to(features.device) - start for ids in self.neighbours.edges(start, stop))
                    similarity = edge_similarity(features, anchors, others)
                    parts.append((similarity, _is_best(similarity, anchors, stop - start)))
            finally:
                for module, training in modes:
                    module.training = training
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _embed(self, backbone: nn.Module, start: int, stop: int) -> Tensor:
        """Return (stop - start, d) float32 features of length 1."""
        size, id_device = self.settings.run.batch_size, self.source.id_device
        batches = torch.split(torch.arange(start, stop, device=id_device), size) if stop > start else ()
        features = []
        for number, ids in enumerate(batches):
            tiles = self.source.gather(ids)
            if number + 1 < len(batches):
                self.source.prefetch(batches[number + 1])
            images = self._images(tiles)
            with autocast(self.place.device, self.place.precision):
                found: Tensor = backbone(images)
            features.append(F.normalize(found.float(), dim=1))
        return torch.cat(features) if features else torch.zeros(0, 1, device=self.place.device)

    def _images(self, tiles: Tensor) -> Tensor:
        """(n, 3, s, s) of the views' size, normalised as views are, without any augmentation."""
        images = tiles.permute(0, 3, 1, 2).float() / 255
        size = self.settings.data.image_size_px
        if images.shape[2:] != (size, size):
            images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        return normalise(images, self.settings.views).contiguous(memory_format=self.place.layout)


def edge_similarity(features: Tensor, anchors: Tensor, others: Tensor) -> Tensor:
    """Return (k,) float32 cosines between tiles, in blocks.

    Args:
        features: (n, d) float32 of length 1 or 0; where one is not finite the cosine is 0.
        anchors: (k,) int64 rows.
        others: (k,) int64 rows.
    """
    step = max(1, _BLOCK_NUMBERS // features.shape[1])
    blocks = zip(torch.split(anchors, step), torch.split(others, step), strict=True)
    similarity = [(features[one] * features[other]).sum(dim=1) for one, other in blocks]
    return torch.cat(similarity).nan_to_num(0.0, 0.0, 0.0)


def kept_edges(similarity: Tensor, best: Tensor, quantile: float) -> Tensor:
    """Return (m,) bool: edges whose similarity no share of `quantile` of all edges lies below, and the best of each tile.

    Args:
        similarity: (m,) float32.
        best: (m,) bool, edges to keep in any case.
        quantile: in [0, 1): 0.25 drops the fourth of the edges that are least similar, fewer where there are ties.
    """
    if not len(similarity):
        return best
    # torch.quantile takes 16 million values at most
    threshold = similarity.kthvalue(int(quantile * len(similarity)) + 1).values
    return (similarity >= threshold) | best


def _is_best(similarity: Tensor, anchors: Tensor, n_tiles: int) -> Tensor:
    best = similarity.new_full((n_tiles,), -torch.inf).scatter_reduce(0, anchors, similarity, "amax")
    return similarity == best[anchors]
