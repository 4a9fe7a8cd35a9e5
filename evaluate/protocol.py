"""What an evaluation protocol does: learn from a fold's training tiles, give its test tiles class probabilities."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.splits import Fold

__all__ = ["EvaluationProtocol", "FoldPrediction"]


@dataclass(frozen=True, slots=True)
class FoldPrediction:
    """What a protocol says of a fold's test tiles.

    Attributes:
        probabilities: (l, k) float64, rows sum to 1; the prediction is the largest.
        fitted: what was chosen on the training tiles, for the record.
    """

    probabilities: npt.NDArray[np.float64]
    fitted: dict[str, Any]

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """(l,) predicted class codes."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)


class EvaluationProtocol(Protocol):
    """A way to turn frozen features into predictions; its settings are the fields of a frozen dataclass."""

    name: ClassVar[str]

    def predict(self, tiles: LabelledTiles, fold: Fold, *, seed: int) -> FoldPrediction:
        """Learn from `fold.train` alone and predict `fold.test`; labels of the test tiles are never looked at.

        Raises:
            EvaluationError: if the training tiles do not allow it.
        """
        ...
