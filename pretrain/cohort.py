"""The stores of one run: which are trained on, in which order, and what tells them from others."""

import logging
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from simtriplet.pretrain.neighbours import NeighbourDraw
from simtriplet.pretrain.pair_weights import weigh_pairs
from simtriplet.pretrain.tiles import TileNumbering
from simtriplet.wsi.errors import TrainingError
from simtriplet.wsi.store import NeighbourGraph, TileStore

__all__ = ["Cohort"]

logger = logging.getLogger(__name__)


class Cohort:
    """The stores a run trains on, ordered by slide id so that the caller's order does not matter.

    Args:
        stores: of one tile size and resolution.
        exclude_patients: whose slides are left out.
        neighbours: name of the neighbour index, None where the objective uses none.
        pair_weights: names of the pair-weight registry, for the pairs of that index.
        similarity_features: name of the stored features that the pair weight "similarity" compares.

    Raises:
        TrainingError: if no store or no tile is left, or two stores differ in tile size or resolution.
        NeighbourError: if a store has no such index, or a stale one, or its pairs cannot be weighed.
        UnknownNameError: if there is no such pair weight.
        StoreError: if a store lacks what a pair weight needs.
    """

    def __init__(
        self,
        stores: Sequence[TileStore],
        *,
        exclude_patients: Collection[str] = (),
        neighbours: str | None,
        pair_weights: Sequence[str] = (),
        similarity_features: str | None = None,
    ) -> None:
        kept = [store for store in stores if store.patient_id not in exclude_patients]
        unknown = sorted(set(exclude_patients) - {store.patient_id for store in stores})
        if unknown:
            logger.warning("patients to exclude that are in no store: %s", ", ".join(unknown))
        if not kept:
            raise TrainingError(f"{len(stores)} tile stores: none is left to train on; exclude fewer patients")
        self.stores = sorted(kept, key=lambda store: store.slide_id)
        self.numbering = TileNumbering(self.stores)
        self._graphs: list[NeighbourGraph] | None = None
        if neighbours is not None:
            self._graphs = [store.neighbours(neighbours) for store in self.stores]
        self._pair_weights = None
        self._features = similarity_features if "similarity" in pair_weights and self._graphs else None
        if pair_weights and self._graphs is not None:
            self._pair_weights = [
                weigh_pairs(store, graph, pair_weights, features=similarity_features)
                for store, graph in zip(self.stores, self._graphs, strict=True)
            ]

    def neighbour_draw(self, device: torch.device) -> NeighbourDraw | None:
        """Return the draw of neighbours, None where the objective uses none."""
        return None if self._graphs is None else NeighbourDraw(self._graphs, device=device, weights=self._pair_weights)

    @property
    def patients(self) -> tuple[str, ...]:
        """Whose tiles these are."""
        return tuple(sorted({store.patient_id for store in self.stores}))

    @property
    def slides(self) -> tuple[str, ...]:
        """Slide ids in training order."""
        return tuple(store.slide_id for store in self.stores)

    def slide_of(self, ids: Tensor) -> Tensor:
        """Return (n,) int64, the place in `stores` of the slide of each of (n,) tile numbers."""
        return torch.searchsorted(torch.from_numpy(self.numbering.offsets), ids, right=True) - 1

    def describe(self) -> list[dict[str, Any]]:
        """Return plain values that tell these stores from others: slide, patient, tiles, index and features compared."""
        graphs: Sequence[NeighbourGraph | None] = self._graphs or [None] * len(self.stores)
        return [
            {
                "slide": store.slide_id,
                "patient": store.patient_id,
                "n_tiles": len(store),
                "tiles_id": str(store.attributes["tiles_id"]),
                "index": None if graph is None else str(graph.rule.get("build_id")),
                "features": None if self._features is None else _encoder_of(store, self._features),
            }
            for store, graph in zip(self.stores, graphs, strict=True)
        ]


def _encoder_of(store: TileStore, features: str) -> str:
    """Return what tells features of this name from later ones of the same name."""
    return str(store.feature_attributes(features.removeprefix("X_")).get("encoder_hash"))
