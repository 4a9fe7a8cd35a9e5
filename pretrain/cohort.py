"""The stores of one run: which are trained on, in which order, and what tells them from others."""

import dataclasses
import logging
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simtriplet.pretrain.neighbours import NeighbourDraw
from simtriplet.pretrain.pair_weights import weigh_pairs
from simtriplet.pretrain.tiles import TileNumbering
from simtriplet.wsi.errors import SettingsError, TrainingError
from simtriplet.wsi.neighbour_graph import NeighbourGraph
from simtriplet.wsi.store import TileStore

__all__ = ["Cohort"]

logger = logging.getLogger(__name__)


class _Pairs(NamedTuple):
    """What the draw needs of a store's index: who is whose neighbour, and how much each pair counts."""

    graph: NeighbourGraph
    weights: npt.NDArray[np.float32] | None
    pairs_id: str
    features_id: str | None


class Cohort:
    """The stores a run trains on, ordered by slide id so that the caller's order does not matter.

    Args:
        stores: of one tile size and resolution.
        exclude_patients: whose slides are left out.
        neighbours: name of the neighbour index, None where the objective uses none.
        pair_weights: names of the pair-weight registry, for the pairs of that index.
        similarity_features: name of the stored features that the pair weight "similarity" compares.

    Raises:
        TrainingError: if no store or no tile is left, none of the patients to exclude is there, or two stores differ in tile size
            or resolution.
        NeighbourError: if a store has no such index, or a stale one, or its pairs cannot be weighed.
        UnknownNameError: if there is no such pair weight.
        StoreError: if a store lacks what a pair weight needs.
        SettingsError: if `exclude_patients` is one text.
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
        if isinstance(exclude_patients, str):  # whose letters are a collection too, and would leave out nobody
            raise SettingsError(
                f"exclude_patients {exclude_patients!r}: must be several patients; pass [{exclude_patients!r}]"
            )
        excluded = set(exclude_patients)
        kept = [store for store in stores if store.patient_id not in excluded]
        unknown = sorted(excluded - {store.patient_id for store in stores})
        if unknown and len(unknown) == len(excluded):  # of several cohorts' lists some may have no slide here
            named = ", ".join(unknown[:3]) + (", ..." if unknown[3:] else "")
            raise TrainingError(
                f"patients to exclude ({named}): none is in the stores; correct the names, or exclude nobody"
            )
        if unknown:
            logger.warning("patients to exclude that are in no store: %s", ", ".join(unknown))
        if not kept:
            raise TrainingError(f"{len(stores)} tile stores: none is left to train on; exclude fewer patients")
        self.stores = sorted(kept, key=lambda store: store.slide_id)
        self.numbering = TileNumbering(self.stores)
        self._index, self._weighed = neighbours, tuple(pair_weights)
        self._features = similarity_features if "similarity" in pair_weights and neighbours is not None else None
        self._pairs = None if neighbours is None else self._read_pairs(neighbours)
        # kept for the checkpoints, each of which describes the stores: features of no known encoder are hashed for it
        self._ids: list[tuple[str | None, str | None]] = [(None, None)] * len(self.stores)
        if self._pairs is not None:
            self._ids = [(pairs.pairs_id, pairs.features_id) for pairs in self._pairs]

    def _read_pairs(self, neighbours: str) -> list[_Pairs]:
        return [self._pairs_of(store, neighbours) for store in self.stores]

    def _pairs_of(self, store: TileStore, neighbours: str) -> _Pairs:
        graph = store.neighbours(neighbours)
        weights = None
        if self._weighed:
            weights = weigh_pairs(store, graph, self._weighed, features=self._features)
        # distances are needed for weights only, and are most of an index
        bare = dataclasses.replace(graph, distances_um=np.zeros(0))
        # an index of an earlier version has no id of its pairs, only that of its build
        pairs_id = str(graph.rule.get("pairs_id", graph.rule.get("build_id")))
        features_id = None if self._features is None else store.features_id(self._features.removeprefix("X_"))
        return _Pairs(bare, weights, pairs_id, features_id)

    def neighbour_draw(self, device: torch.device) -> NeighbourDraw | None:
        """Return the draw of neighbours, None where the objective uses none; the cohort lets go of what it has read for it."""
        if self._index is None:
            return None
        pairs = self._pairs or self._read_pairs(self._index)
        self._pairs = None
        weights = [one.weights for one in pairs if one.weights is not None]
        return NeighbourDraw([one.graph for one in pairs], device=device, weights=weights if self._weighed else None)

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
        return [
            {
                "slide": store.slide_id,
                "patient": store.patient_id,
                "n_tiles": len(store),
                "tiles_id": str(store.attributes["tiles_id"]),
                "index": pairs_id,
                "features": features_id,
            }
            for store, (pairs_id, features_id) in zip(self.stores, self._ids, strict=True)
        ]
