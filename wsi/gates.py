"""Gates that drop candidate pairs likely to be false positives: the two tiles must be of the same tissue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.adjacency import Adjacency, row_blocks

__all__ = ["MinTissueGate", "PairGate", "SameTissueGate", "apply_gates"]


class PairGate(Protocol):
    """Decide which pairs may stay."""

    def record(self) -> dict[str, Any]:
        """Return what was asked for; two gates with equal records on the same tiles decide alike."""

    def keep(self, anchors: npt.NDArray[np.int32], others: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Return (m,) whether each pair stays; the answer must not depend on the order of the two tiles."""


@dataclass(frozen=True, slots=True)
class SameTissueGate:
    """Both tiles lie in one tissue region.

    Args:
        tissue_id: (n,) region of each tile.
    """

    tissue_id: npt.NDArray[np.integer[Any]]

    def record(self) -> dict[str, Any]:
        """See PairGate."""
        return {"same_tissue": True}

    def keep(self, anchors: npt.NDArray[np.int32], others: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """See PairGate."""
        return np.asarray(self.tissue_id[anchors] == self.tissue_id[others])


class MinTissueGate:
    """Both tiles hold at least a share of tissue.

    Args:
        tissue_fraction: (n,) of each tile.
        min_tissue: in [0, 1].
    """

    def __init__(self, tissue_fraction: npt.NDArray[np.floating[Any]], min_tissue: float) -> None:
        self.min_tissue = min_tissue
        self._enough = np.greater_equal(tissue_fraction, min_tissue)

    def record(self) -> dict[str, Any]:
        """See PairGate."""
        return {"min_tissue": self.min_tissue}

    def keep(self, anchors: npt.NDArray[np.int32], others: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """See PairGate."""
        return np.asarray(self._enough[anchors] & self._enough[others])


def apply_gates(adjacency: Adjacency, gates: Sequence[PairGate]) -> Adjacency:
    """Drop the pairs that any gate refuses; order and symmetry stay."""
    if not gates:
        return adjacency
    counts = np.zeros_like(adjacency.indptr)
    # room for all; the system gives memory only to what is written
    indices, distances = np.empty_like(adjacency.indices), np.empty_like(adjacency.distances_um)
    filled = 0
    for start, stop in row_blocks(adjacency.indptr):
        entries = slice(adjacency.indptr[start], adjacency.indptr[stop])
        anchors, others = adjacency.anchors(start, stop), adjacency.indices[entries]
        kept = np.ones(len(others), np.bool_)
        for gate in gates:
            kept &= gate.keep(anchors, others)
        counts[start + 1 : stop + 1] = np.bincount(anchors[kept] - start, minlength=stop - start)
        here = slice(filled, filled + int(np.count_nonzero(kept)))
        indices[here], distances[here] = others[kept], adjacency.distances_um[entries][kept]
        filled = here.stop
    return Adjacency(np.cumsum(counts), indices[:filled], distances[:filled])
