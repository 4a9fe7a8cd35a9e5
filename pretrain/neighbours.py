"""The inter-sample positive: a neighbour of each tile, drawn anew every time."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from simtriplet.wsi.store import NeighbourGraph

__all__ = ["NeighbourDraw"]


class NeighbourDraw:
    """Draw neighbours from the indices of all stores, merged under the global tile numbering.

    Args:
        graphs: one per store, in the order of the numbering.
        device: where draws happen.
    """

    def __init__(self, graphs: Sequence[NeighbourGraph], *, device: torch.device) -> None:
        degrees = np.concatenate([graph.degrees for graph in graphs])
        n_tiles = len(degrees)
        starts = np.cumsum([0, *(len(graph.degrees) for graph in graphs)])[:-1]
        small = np.int32 if n_tiles <= np.iinfo(np.int32).max else np.int64
        merged = [(graph.indices + start).astype(small) for graph, start in zip(graphs, starts.tolist(), strict=True)]
        # One entry more than there are neighbours: a tile without any, at the end, still has a place to look at.
        indices = np.concatenate([*merged, np.zeros(1, small)])
        self.degrees = torch.from_numpy(degrees).to(device)
        self._starts = torch.from_numpy(np.cumsum(degrees) - degrees).to(device)
        self._indices = torch.from_numpy(indices).to(device)
        self.connected_ids = torch.from_numpy(np.flatnonzero(degrees > 0))
        self.n_isolated = n_tiles - len(self.connected_ids)

    def draw(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Return one neighbour of each tile, uniformly over its neighbours; a tile without any is its own.

        Args:
            ids: (n,) int64 global numbers on the device.
            generator: on the device.

        Returns:
            (n,) int64 global numbers.
        """
        degree = self.degrees[ids]
        unit = torch.rand(len(ids), generator=generator, device=ids.device, dtype=torch.float64)
        nth = torch.minimum((unit * degree).long(), (degree - 1).clamp_min(0))
        neighbour = self._indices[self._starts[ids] + nth].long()
        return torch.where(degree > 0, neighbour, ids)
