"""The gate of similar features: of the pairs that lie near each other, those that also look alike."""

from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.wsi.adjacency import Adjacency, row_blocks
from simtriplet.wsi.errors import NeighbourError

__all__ = ["SimilarityGate"]

_BLOCK_NUMBERS = 1 << 22
_DECIMALS = 5  # what float32 sums over thousands of numbers agree in, whatever their order


class SimilarityGate:
    """Keep the pairs whose features are at least as similar as a quantile of the slide's candidate pairs.

    Similarity is the cosine, 0 where a feature vector is zero, rounded to 5 decimals. The candidates are the pairs that the
    rule and all other gates leave, each counted once; a quantile of 0.3 drops the 30 % that are least alike.

    Args:
        features: (n, d) of each tile.
        candidates: the pairs that the quantile is of.
        quantile: in [0, 1).

    Raises:
        NeighbourError: if the features are not finite or not one a tile.
    """

    def __init__(
        self,
        features: npt.NDArray[np.float32],
        candidates: Adjacency,
        quantile: float,
    ) -> None:
        if len(features) != len(candidates.indptr) - 1 or not np.isfinite(features).all():
            raise NeighbourError(
                f"features of shape {features.shape}: must be finite, one row a tile; run simtriplet embed, or import, again"
            )
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        self._unit = features / np.where(norms > 0, norms, 1)
        self._record = {"min_similarity": quantile}
        self.threshold = self._quantile(candidates, quantile)

    def record(self) -> dict[str, Any]:
        """See PairGate."""
        return self._record

    def keep(self, anchors: npt.NDArray[np.int32], others: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """See PairGate."""
        return np.greater_equal(self.similarity(anchors, others), self.threshold)

    def similarity(
        self, anchors: npt.NDArray[np.integer[Any]], others: npt.NDArray[np.integer[Any]]
    ) -> npt.NDArray[np.float32]:
        """Return (m,) the cosine of each pair, in [-1, 1]."""
        found = np.empty(len(anchors), np.float32)
        step = max(1, _BLOCK_NUMBERS // max(1, self._unit.shape[1]))
        for start in range(0, len(anchors), step):
            part = slice(start, start + step)
            found[part] = np.einsum("ij,ij->i", self._unit[anchors[part]], self._unit[others[part]])
        return np.round(found, _DECIMALS)

    def _quantile(self, candidates: Adjacency, quantile: float) -> float:
        """Return the similarity at the quantile, -1 where there are no pairs."""
        found = [np.zeros(0, np.float32)]
        for start, stop in row_blocks(candidates.indptr):
            anchors = candidates.anchors(start, stop)
            others = candidates.indices[candidates.indptr[start] : candidates.indptr[stop]]
            once = anchors < others
            found.append(self.similarity(anchors[once], others[once]))
        similarities = np.concatenate(found)
        return float(np.quantile(similarities, quantile)) if len(similarities) else -1.0
