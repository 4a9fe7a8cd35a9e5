"""k nearest neighbours by cosine: nothing is trained, so that it shows the features as they are."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.protocol import FoldPrediction
from simtriplet.evaluate.splits import Fold
from simtriplet.wsi.errors import SettingsError

__all__ = ["CosineNeighbours"]

_TIE_BREAK = 1e-9
"""Weight of the likeness beside a vote of 1: settles draws, which are one in ten, and nothing else."""


@dataclass(frozen=True, slots=True)
class CosineNeighbours:
    """A vote of the k most similar training tiles; a tile never votes on itself, as its patient is in the test set.

    A draw goes to the class whose voters are more alike, not to the one that comes first by name.

    Attributes:
        k: voters; all training tiles where there are fewer.
    """

    name: ClassVar[str] = "knn"
    k: int = 20

    def __post_init__(self) -> None:
        if self.k < 1:
            raise SettingsError(f"k {self.k}: must be at least 1; pass a larger number")

    def predict(self, tiles: LabelledTiles, fold: Fold, *, seed: int) -> FoldPrediction:
        """See EvaluationProtocol; nothing is drawn, so that `seed` has no effect."""
        k = min(self.k, len(fold.train))
        # Rows of length 1 have the same order by Euclid as by cosine, which scikit-learn's fast search lacks.
        search: Any = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(normalize(tiles.features[fold.train]))
        distances, nearest = search.kneighbors(normalize(tiles.features[fold.test]))
        votes = tiles.codes[fold.train][nearest]
        weights = 1 + _TIE_BREAK * (1 - distances.astype(np.float64) ** 2 / 2)
        shares = np.stack([(weights * (votes == code)).sum(axis=1) for code in range(len(tiles.classes))], axis=1)
        return FoldPrediction(shares / weights.sum(axis=1, keepdims=True), {"k": k})
