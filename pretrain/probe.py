"""The tiles that features are measured on while a run goes on: a fixed sample, with what is known of each tile."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simtriplet.pretrain.sampler import seed_of
from simtriplet.pretrain.tiles import TileNumbering

__all__ = ["ProbeTiles"]


class ProbeTiles:
    """A sample of the tiles, the same for a seed; pixels are read when they are first asked for, and then held.

    Args:
        numbering: of all tiles.
        n_tiles: to take, at most.
        seed: of the sample.

    Attributes:
        ids: (m,) int64 global numbers, rising.
        slides: (m,) int64 number of each tile's slide.
        patients: (m,) int64 number of each tile's patient.
        labels: (m,) int64 class, -1 where a tile has none.
    """

    def __init__(self, numbering: TileNumbering, *, n_tiles: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed_of(seed, 0, 7))
        drawn = torch.randperm(len(numbering), generator=generator)[:n_tiles]
        ids: npt.NDArray[np.int64] = drawn.sort().values.numpy()
        owners = np.searchsorted(numbering.offsets, ids, side="right") - 1
        self._numbering = numbering
        self._pixels: Tensor | None = None
        self.ids = ids
        self.slides = torch.from_numpy(owners)
        self.patients = torch.from_numpy(_number([store.patient_id for store in numbering.stores])[owners])
        self.labels = torch.from_numpy(_labels_of(numbering, ids, owners))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def pixels(self) -> Tensor:
        """(m, s, s, 3) uint8, in host memory."""
        if self._pixels is None:
            size = self._numbering.size_px
            read = np.empty((len(self.ids), size, size, 3), np.uint8)
            self._numbering.read(self.ids, out=read)
            self._pixels = torch.from_numpy(read)
        return self._pixels


def _number(names: Sequence[str]) -> npt.NDArray[np.int64]:
    known = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([known[name] for name in names], dtype=np.int64)


def _labels_of(
    numbering: TileNumbering, ids: npt.NDArray[np.int64], owners: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Number classes by name over all stores, as each store numbers its own."""
    columns = [store.labels() for store in numbering.stores]
    names = sorted({name for column in columns if column is not None for name in column.categories})
    labels = np.full(len(ids), -1, np.int64)
    for owner, column in enumerate(columns):
        places = np.flatnonzero(owners == owner)
        if column is None or not len(places):
            continue
        joint = np.array([*(names.index(name) for name in column.categories), -1], np.int64)
        labels[places] = joint[np.asarray(column.codes, np.int64)[ids[places] - numbering.offsets[owner]]]
    return labels
