"""The paper's protocol (Liu et al., MICCAI 2021, arXiv 2103.05585): a head per left-out training patient, combined."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.linear_head import LinearHead, fit_heads
from simtriplet.evaluate.linear_probe import STRENGTHS, head_score
from simtriplet.evaluate.protocol import FoldPrediction
from simtriplet.evaluate.splits import Fold, leave_one_patient_out
from simtriplet.wsi.errors import EvaluationError

__all__ = ["LeaveOneOutEnsemble", "combine_logits"]

_TIE_BREAK = 1e-6


def combine_logits(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum the L2-normalised logits of several heads.

    With two classes a normalised row only says which is larger, so that the sum is a vote; a draw is settled by the
    mean probability, which is added with a weight too small to matter otherwise.

    Args:
        logits: (h, m, k) of h heads; minus infinity for a class a head does not know, which counts as its lowest.

    Returns:
        (m, k); the prediction is the largest.
    """
    known = np.isfinite(logits)
    lowest = np.where(known, logits, np.inf).min(axis=2, keepdims=True)
    filled = np.where(known, logits, lowest)
    length = np.linalg.norm(filled, axis=2, keepdims=True)
    summed: npt.NDArray[np.float64] = (filled / np.where(length > 0, length, 1.0)).sum(axis=0)
    probabilities: npt.NDArray[np.float64] = softmax(logits, axis=2).mean(axis=0)
    return summed + _TIE_BREAK * probabilities


@dataclass(frozen=True, slots=True)
class LeaveOneOutEnsemble:
    """One linear head per training patient, learnt without that patient, who chooses its penalty.

    Attributes:
        strengths: values of C to choose from, ascending; the smallest of the best is taken.
    """

    name: ClassVar[str] = "paper"
    strengths: tuple[float, ...] = STRENGTHS

    def predict(self, tiles: LabelledTiles, fold: Fold, *, seed: int) -> FoldPrediction:
        """See EvaluationProtocol; nothing is drawn, so that `seed` has no effect.

        Raises:
            EvaluationError: if there are fewer than two training patients, or none can be left out.
        """
        heads = []
        for inner in leave_one_patient_out(tiles.patients[fold.train]):
            learnt, left_out = fold.train[inner.train], fold.train[inner.test]
            if len(np.unique(tiles.codes[learnt])) > 1:
                heads.append(self._fit(tiles, learnt, left_out))
        if not heads:
            raise EvaluationError(
                "protocol 'paper': no training patient can be left out without losing a class; label more patients"
            )
        logits = np.stack([head.logits(tiles.features[fold.test]) for head in heads])
        fitted = {
            "heads": len(heads),
            "C": [head.strength for head in heads],
            "converged": all(head.converged for head in heads),
        }
        # the mean has the same largest class as the sum, and folds of more heads are not surer for that
        return FoldPrediction(softmax(combine_logits(logits) / len(heads), axis=1), fitted)

    def _fit(self, tiles: LabelledTiles, learnt: npt.NDArray[np.int64], left_out: npt.NDArray[np.int64]) -> LinearHead:
        heads = fit_heads(
            tiles.features[learnt], tiles.codes[learnt], n_classes=len(tiles.classes), strengths=self.strengths
        )
        return heads[int(np.argmax([head_score(head, tiles, left_out) for head in heads]))]
