"""A network that was trained with labels, and what it says of tiles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from simtriplet.evaluate.chosen_tiles import ChosenTiles
from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.pretrain.encoder import Encoder
from simtriplet.pretrain.settings import PrecisionName
from simtriplet.pretrain.tiles import open_tiles
from simtriplet.wsi.store import TileStore

__all__ = ["Classifier"]


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """A trained network.

    Attributes:
        encoder: the backbone after training; `save_encoder` can keep it.
        head: the linear layer, (n, d) to (n, k).
        known: (k,) bool, classes that were in training; others have probability 0.
        precision: of the backbone.
        batch_size: tiles at once.
        steps: optimiser steps taken.
    """

    encoder: Encoder
    head: nn.Linear
    known: Tensor
    precision: PrecisionName
    batch_size: int
    steps: int

    def probabilities(
        self, stores: Sequence[TileStore], tiles: LabelledTiles, places: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return (n, k) class probabilities of tiles, each seen whole and once.

        Args:
            stores: that hold the tiles.
            tiles: the labelled tiles; their labels are not looked at.
            places: (n,) int64 into `tiles`.

        Raises:
            StoreError: if a store is damaged.
            TrainingError: if the stores differ in tile size or resolution.
        """
        found = np.zeros((len(places), len(self.known)))
        numbering = ChosenTiles(stores, tiles, places)
        parts = torch.split(torch.arange(len(places)), self.batch_size) if len(places) else ()
        with open_tiles(numbering, device=self.encoder.device, tier="stream") as source:
            for number, ids in enumerate(parts):
                pixels = source.gather(ids)
                if number + 1 < len(parts):
                    source.prefetch(parts[number + 1])
                found[ids.numpy()] = self._look(pixels).cpu().numpy()
        return found

    def _look(self, pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = self.head(self.encoder.embed(pixels, precision=self.precision)).double()
            return torch.softmax(torch.where(self.known, logits, -math.inf), dim=1)
