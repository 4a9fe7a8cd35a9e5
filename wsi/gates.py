"""Gates that drop candidate pairs likely to be false positives: the two tiles must be of the same tissue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.neighbours import Adjacency

__all__ = ["MinTissueGate", "PairGate", "SameTissueGate", "apply_gates"]


class PairGate(Protocol):
    """Decide which pairs may stay."""

    def record(self) -> dict[str, Any]:
        """Return what the index remembers of this gate."""

    def keep(self, anchors: npt.NDArray[np.int64], others: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
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

    def keep(self, anchors: npt.NDArray[np.int64], others: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """See PairGate."""
        return np.asarray(self.tissue_id[anchors] == self.tissue_id[others])


@dataclass(frozen=True, slots=True)
class MinTissueGate:
    """Both tiles hold at least a share of tissue.

    Args:
        tissue_fraction: (n,) of each tile.
        min_tissue: in [0, 1].
    """

    tissue_fraction: npt.NDArray[np.floating[Any]]
    min_tissue: float

    def record(self) -> dict[str, Any]:
        """See PairGate."""
        return {"min_tissue": self.min_tissue}

    def keep(self, anchors: npt.NDArray[np.int64], others: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """See PairGate."""
        enough = self.tissue_fraction >= self.min_tissue
        return np.asarray(enough[anchors] & enough[others])


def apply_gates(adjacency: Adjacency, gates: Sequence[PairGate]) -> Adjacency:
    """Drop the pairs that any gate refuses; order and symmetry stay."""
    for gate in gates:
        degrees = np.diff(adjacency.indptr)
        anchors = np.repeat(np.arange(len(degrees), dtype=np.int64), degrees)
        kept = gate.keep(anchors, adjacency.indices)
        counts = np.bincount(anchors[kept], minlength=len(degrees))
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        adjacency = Adjacency(indptr, adjacency.indices[kept], adjacency.distances_um[kept])
    return adjacency
