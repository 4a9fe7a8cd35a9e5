"""What a saved head says of every tile of a slide."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from simtriplet.evaluate.saved_head import SavedHead
from simtriplet.wsi.errors import EvaluationError
from simtriplet.wsi.store import TileStore

__all__ = ["SlidePrediction", "predict_slide"]

_SAME = {"encoder_hash": "weights", "image_size_px": "image size"}
"""What must be alike in two records of an encoder for their features to mean the same, and how to call it."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SlidePrediction:
    """The predictions of one slide's tiles, in storage order.

    Attributes:
        slide_id: the slide.
        classes: names in code order.
        probabilities: (n, k) float64, rows sum to 1.
    """

    slide_id: str
    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float64]

    @property
    def codes(self) -> npt.NDArray[np.int64]:
        """(n,) class of each tile, the most probable."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @property
    def confidence(self) -> npt.NDArray[np.float64]:
        """(n,) probability of that class."""
        return np.asarray(self.probabilities.max(axis=1, initial=0.0), dtype=np.float64)


def predict_slide(store: TileStore, saved: SavedHead) -> SlidePrediction:
    """Apply a head to the features of a slide's tiles.

    Raises:
        StoreError: if the store has no features of the head's name.
        EvaluationError: if they are of another encoder than the head was fitted on, or not finite.
    """
    features = store.features(saved.features)
    _check_encoder(store, saved, store.feature_attributes(saved.features), features.shape[1])
    if not np.isfinite(features).all():
        raise EvaluationError(
            f"features {saved.features!r}: slide {store.slide_id!r} has values that are not finite; embed again"
        )
    if store.patient_id in saved.patients or store.slide_id in saved.slides:
        _logger.warning("slide %r: the head has learnt from this patient's labels", store.slide_id)
    probabilities = softmax(saved.head.logits(features), axis=1)
    return SlidePrediction(store.slide_id, saved.classes, probabilities)


def _check_encoder(store: TileStore, saved: SavedHead, found: dict[str, Any], width: int) -> None:
    other = [what for key, what in _SAME.items() if found.get(key) != saved.encoder.get(key)]
    if width != saved.head.weight.shape[1]:
        other.append("length")
    if other:
        raise EvaluationError(
            f"slide {store.slide_id!r}: its features {saved.features!r} are of another encoder than the head was fitted on "
            f"({' and '.join(other)} differ); embed it with that encoder"
        )
