"""The inter-sample positive: a neighbour of each tile, drawn anew every time."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from simtriplet.wsi.neighbour_graph import NeighbourGraph

__all__ = ["DrawnPairs", "NeighbourDraw"]

_BLOCK = 1 << 18
"""Tiles drawn for at a time on a CPU: the ten or so numbers a tile on the way to a neighbour are held of these only."""


class DrawnPairs(NamedTuple):
    """A neighbour for each of n tiles.

    Attributes:
        neighbours: (n,) int64 global numbers.
        weights: (n,) float32, how much each counts; None where all count 1.
    """

    neighbours: Tensor
    weights: Tensor | None


class NeighbourDraw:
    """Draw neighbours from the indices of all stores, merged under the global tile numbering.

    An edge is an entry of the merged index: one anchor and one neighbour, so that a pair of tiles has two edges.

    Args:
        graphs: one per store, in the order of the numbering.
        device: where draws happen.
        weights: per store (m,) float32, the weight of each entry of its graph; None where all are 1.
    """

    def __init__(
        self,
        graphs: Sequence[NeighbourGraph],
        *,
        device: torch.device,
        weights: Sequence[npt.NDArray[np.float32]] | None = None,
    ) -> None:
        rows, indices = _merge(graphs)
        self._indices = torch.from_numpy(indices).to(device)
        self._weights: Tensor | None = None
        if weights is not None:
            self._weights = torch.from_numpy(np.concatenate([*weights, np.ones(1, np.float32)])).to(device)
        self._all_rows = torch.from_numpy(rows).to(device)
        self.n_isolated = int((self.degrees == 0).sum())
        self.n_edges = len(indices) - 1
        self.generation = 0
        """Counts the changes of what is drawn from, so that who drew ahead knows to draw again."""
        self._rows = self._all_rows
        self._kept: Tensor | None = None  # numbers of the edges drawn along, None for all of them
        self._packed = torch.zeros(0, dtype=torch.uint8)

    @property
    def degrees(self) -> Tensor:
        """(n,) int64 on the device, neighbours of each tile in the index."""
        return self._all_rows.diff()

    @property
    def connected_ids(self) -> Tensor:
        """(m,) int64 on the CPU, the tiles that have a neighbour."""
        return self.degrees.cpu().nonzero()[:, 0]

    def draw(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Return one neighbour of each tile, uniformly over those that are kept; a tile without any is its own.

        Args:
            ids: (n,) int64 global numbers on the device.
            generator: on the device.

        Returns:
            (n,) int64 global numbers.
        """
        return self.draw_pairs(ids, generator).neighbours

    def draw_pairs(self, ids: Tensor, generator: torch.Generator) -> DrawnPairs:
        """Draw as `draw` does, and say how much each pair counts; a tile that is its own neighbour counts 1."""
        unit = torch.rand(len(ids), generator=generator, device=ids.device, dtype=torch.float64)
        if len(ids) <= _BLOCK or ids.device.type != "cpu":
            return self._pairs_at(ids, unit)
        found = DrawnPairs(torch.empty_like(ids), None if self._weights is None else torch.empty(len(ids)))
        for start in range(0, len(ids), _BLOCK):
            block = slice(start, start + _BLOCK)
            part = self._pairs_at(ids[block], unit[block])
            found.neighbours[block] = part.neighbours
            if found.weights is not None and part.weights is not None:
                found.weights[block] = part.weights
        return found

    def _pairs_at(self, ids: Tensor, unit: Tensor) -> DrawnPairs:
        """Return the neighbours that (n,) float64 numbers in [0, 1) stand for."""
        start = self._rows[ids]
        degree = self._rows[ids + 1] - start
        nth = torch.minimum((unit * degree).long(), (degree - 1).clamp_min(0))
        edge = start + nth if self._kept is None else self._kept[start + nth].long()
        alone = degree == 0
        neighbours = torch.where(alone, ids, self._indices[edge].long())
        weights = None if self._weights is None else torch.where(alone, 1.0, self._weights[edge])
        return DrawnPairs(neighbours, weights)

    def edges(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return the anchors and the neighbours, (k,) int64 each, of all edges of the tiles from `start` to before `stop`.

        In the order of the index, kept or not; asking is a CPU-GPU sync point.
        """
        tiles = torch.arange(start, stop, device=self._indices.device)
        low, high = int(self._all_rows[start]), int(self._all_rows[stop])
        degrees = self._all_rows[start : stop + 1].diff()
        anchors = tiles.repeat_interleave(degrees, output_size=high - low)
        return anchors, self._indices[low:high].long()

    def keep(self, kept: Tensor) -> None:
        """Draw along some of the edges only, from now on (a CPU-GPU sync point).

        Args:
            kept: (n_edges,) bool, in the order of the index.

        Raises:
            ValueError: if it is of another length.
        """
        if len(kept) != self.n_edges:
            raise ValueError(f"{len(kept)} edges: must be {self.n_edges}, one per entry of the index; pass them all")
        mask = kept.to(self._indices.device)
        self._packed = torch.from_numpy(np.packbits(mask.cpu().numpy()))
        before = F.pad(mask.cumsum(0), (1, 0))  # kept edges before each edge
        self._rows = before[self._all_rows]
        edges = mask.nonzero()[:, 0].to(torch.int32 if self.n_edges < 2**31 else torch.int64)
        self._kept = F.pad(edges, (0, 1), value=self.n_edges)
        self.generation += 1

    def state(self) -> Tensor:
        """Return what `keep` was told last, as bits of a uint8 tensor on the CPU; empty where it was told nothing."""
        return self._packed

    def restore(self, state: Tensor) -> None:
        """Go back to what `state` said.

        Raises:
            ValueError: if it is of another index.
        """
        if len(state):
            bits = np.unpackbits(state.numpy(), count=min(self.n_edges, 8 * len(state)))
            self.keep(torch.from_numpy(bits).bool())
            return
        self._packed, self._rows, self._kept = state, self._all_rows, None
        self.generation += 1


def _merge(graphs: Sequence[NeighbourGraph]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.integer[Any]]]:
    """Return the rows (n + 1,) and neighbours of all graphs as one, made in place: an index can be most of the memory."""
    n_tiles = sum(len(graph.indptr) - 1 for graph in graphs)
    n_entries = sum(len(graph.indices) for graph in graphs)
    # One entry more than there are neighbours: a tile without any, at the end, still has a place to look at.
    small: type[np.integer[Any]] = np.int32 if n_tiles <= np.iinfo(np.int32).max else np.int64
    indices: npt.NDArray[np.integer[Any]] = np.zeros(n_entries + 1, small)
    rows = np.zeros(n_tiles + 1, np.int64)
    tile = entry = 0
    for graph in graphs:
        n, m = len(graph.indptr) - 1, len(graph.indices)
        np.add(graph.indptr[1:], entry, out=rows[tile + 1 : tile + n + 1])
        np.add(graph.indices, tile, out=indices[entry : entry + m], dtype=small)
        tile, entry = tile + n, entry + m
    return rows, indices
