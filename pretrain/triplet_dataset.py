"""Triplets for someone else's training loop: a map-style dataset that a plain PyTorch DataLoader takes."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from simtriplet.pretrain.cohort import Cohort
from simtriplet.pretrain.setting_rules import require
from simtriplet.pretrain.settings import IsolatedRule
from simtriplet.wsi.errors import StoreError, TrainingError
from simtriplet.wsi.store import TileStore, open_stores

__all__ = ["Triplet", "TripletDataset"]


_READ = frozenset({"patients", "slides", "slide_patients", "slide_numbers", "_cohort", "_draw", "_anchors"})
"""What is read from the stores."""


class Triplet(NamedTuple):
    """One sample: (3, s, s) uint8 RGB tensors, or whatever the dataset's `transform` makes of them.

    Attributes:
        first: a view of the anchor tile.
        second: another view of the anchor tile; the same pixels where there is no `transform`.
        neighbour: a view of a tile beside it, drawn anew each time; of the anchor itself where it has no neighbour.
    """

    first: Any
    second: Any
    neighbour: Any


class TripletDataset(Dataset[Triplet]):
    """The triplets of tile stores, for Lightning, lightly, timm or a loop of one's own.

    `simtriplet.pretrain.pretrain` does not use it: its views are made on the device, a batch at a time. Workers may be forked
    or spawned; each opens the stores for itself, and finds the same tiles there or raises. Neighbours are drawn from torch's
    default generator, which DataLoader seeds in each worker, anew in each epoch unless the workers are persistent, so that
    `torch.manual_seed` repeats a run. Of several processes (DDP) each wants a seed of its own, such as `seed + rank`: with the
    same one they draw alike.

    Args:
        stores: stores or folders of stores, as paths or opened; they are ordered by slide id.
        transform: makes a view of one (3, s, s) uint8 RGB tensor, which it may change; called three times a sample. Transforms
            of torchvision v2 and kornia take such tensors; for those of PIL images put torchvision's `to_pil_image` before them.
        neighbours: name of the neighbour index in the stores.
        isolated: a tile without neighbours gives a third view of itself ("self"), or is left out ("drop").
        exclude_patients: whose slides are left out.

    Attributes:
        slides: slide ids, in the order of the samples.
        slide_patients: whose each of them is.
        slide_numbers: (n,) int64, the place in `slides` of each sample's anchor: for splits, and samplers that balance slides.
        patients: whose tiles these are, each once, sorted.

    Raises:
        StoreError: if there is no store, or one is damaged.
        NeighbourError: if a store has no such index; make it with `index_store` or `simtriplet index`.
        TrainingError: if no tile is left, or two stores differ in tile size or resolution.
        SettingsError: if `isolated` or `exclude_patients` is not understood.
    """

    def __init__(
        self,
        stores: str | Path | TileStore | Sequence[str | Path | TileStore],
        *,
        transform: Callable[[Tensor], Any] | None = None,
        neighbours: str = "spatial",
        isolated: IsolatedRule = "self",
        exclude_patients: Collection[str] = (),
    ) -> None:
        require(isolated in get_args(IsolatedRule), "isolated", isolated, "be 'self' or 'drop'")
        several = [stores] if isinstance(stores, str | Path | TileStore) else list(stores)
        self.transform = transform
        self._neighbours, self._isolated = neighbours, isolated
        named = [store.path if isinstance(store, TileStore) else store for store in several]
        cohort = Cohort(open_stores(named), exclude_patients=exclude_patients, neighbours=neighbours)
        self.paths = [store.path for store in cohort.stores]
        self._contents = cohort.describe()
        self._read_from(cohort)

    def _read_from(self, cohort: Cohort) -> None:
        """Take from the stores what depends on them."""
        draw = cohort.neighbour_draw(torch.device("cpu"))
        assert draw is not None  # the cohort was made with an index
        everything = torch.arange(len(cohort.numbering))
        self._cohort, self._draw = cohort, draw
        self._anchors = draw.connected_ids if self._isolated == "drop" else everything
        if not len(self._anchors):
            raise TrainingError(f"{len(everything)} tiles: none has a neighbour; index the stores by a wider rule")
        self.patients, self.slides = cohort.patients, cohort.slides
        self.slide_patients = tuple(store.patient_id for store in cohort.stores)
        self.slide_numbers = cohort.slide_of(self._anchors)

    def __repr__(self) -> str:
        tiles = f"{len(self)} tiles of {self.size_px} px at {self.mpp:.4g} um per pixel"
        return f"<{type(self).__name__}: {tiles}, {len(self.slides)} slides of {len(self.patients)} patients>"

    @property
    def size_px(self) -> int:
        """Side of a stored tile, pixels."""
        return self._cohort.numbering.size_px

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of a stored tile."""
        return self._cohort.numbering.mpp

    def __len__(self) -> int:
        return len(self._anchors)

    def __getitem__(self, item: int) -> Triplet:
        """Return one triplet; a batch through `__getitems__` reads each shard once and is faster.

        Raises:
            IndexError: if there is no such sample.
            StoreError: if a store is damaged.
        """
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[Triplet]:
        """Return several triplets; DataLoader calls this with the numbers of a batch.

        Raises:
            IndexError: if there is no such sample.
            StoreError: if a store is damaged.
        """
        anchors = self._anchors[torch.as_tensor(list(items), dtype=torch.int64)]
        neighbours = self._draw.draw(anchors, torch.default_generator)
        tiles = self._read(torch.cat([anchors, neighbours]))
        pairs = zip(tiles[: len(items)], tiles[len(items) :], strict=True)
        return [self._views(anchor, neighbour) for anchor, neighbour in pairs]

    def _read(self, ids: Tensor) -> Tensor:
        """Return (n, 3, s, s) uint8 of (n,) tile numbers; each image is contiguous as (s, s, 3)."""
        pixels = np.empty((len(ids), self.size_px, self.size_px, 3), np.uint8)
        self._cohort.numbering.read(ids.numpy(), out=pixels)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _views(self, anchor: Tensor, neighbour: Tensor) -> Triplet:
        if self.transform is None:
            return Triplet(anchor, anchor, neighbour)
        return Triplet(self.transform(anchor.clone()), self.transform(anchor), self.transform(neighbour))

    def __getstate__(self) -> dict[str, Any]:
        """Send a spawned worker the paths, which it opens for itself, and what a class made from this one adds."""
        return {name: value for name, value in self.__dict__.items() if name not in _READ}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        cohort = Cohort(open_stores(self.paths), neighbours=self._neighbours)
        changed = [was["slide"] for was, now in zip(self._contents, cohort.describe(), strict=True) if was != now]
        if changed:
            raise StoreError(
                f"store '{changed[0]}': was tiled or indexed anew since the dataset was made; make it again"
            )
        self._read_from(cohort)
