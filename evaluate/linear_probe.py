"""The field's protocol: logistic regression on frozen features, its penalty chosen by inner folds of patients."""

import logging
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.linear_head import FeatureScale, LinearHead, fit_heads
from simtriplet.evaluate.metrics import balanced_accuracy, confusion_matrix
from simtriplet.evaluate.protocol import FoldPrediction
from simtriplet.evaluate.splits import Fold, patient_folds, patients_per_class

__all__ = ["STRENGTHS", "LinearProbe", "head_score"]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values of C tried, ascending; with standardised features the best one lay inside on every set so far."""

_logger = logging.getLogger(__name__)


def head_score(head: LinearHead, tiles: LabelledTiles, places: npt.NDArray[np.int64]) -> float:
    """Return a head's balanced accuracy on some tiles."""
    predicted = head.logits(tiles.features[places]).argmax(axis=1)
    return float(balanced_accuracy(confusion_matrix(tiles.codes[places], predicted, len(tiles.classes))))


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """A linear head per fold.

    Attributes:
        strengths: values of C to choose from, ascending; the smallest of the best is taken.
        inner_folds: folds of the training patients that choose it.
    """

    name: ClassVar[str] = "linear"
    strengths: tuple[float, ...] = STRENGTHS
    inner_folds: int = 3

    def predict(self, tiles: LabelledTiles, fold: Fold, *, seed: int) -> FoldPrediction:
        """See EvaluationProtocol."""
        strength, chosen_by = self.choose_strength(tiles, fold.train, seed=seed)
        features, codes = tiles.features[fold.train], tiles.codes[fold.train]
        (head,) = fit_heads(features, codes, n_classes=len(tiles.classes), strengths=[strength])
        fitted = {"C": strength, "C_chosen_by": chosen_by, "converged": head.converged}
        return FoldPrediction(softmax(head.logits(tiles.features[fold.test]), axis=1), fitted)

    def choose_strength(
        self, tiles: LabelledTiles, train: npt.NDArray[np.int64], *, seed: int, scale: FeatureScale | None = None
    ) -> tuple[float, str]:
        """Return C, the inverse of the L2 penalty, and how it was chosen.

        Args:
            tiles: the labelled tiles.
            train: (k,) places of the tiles whose labels may be looked at.
            seed: of the inner folds.
            scale: to standardise with; without it each inner fold's own.
        """
        codes, patients = tiles.codes[train], tiles.patients[train]
        present = np.unique(codes)
        if patients_per_class(codes, patients, len(tiles.classes))[present].min() < 2:
            _logger.warning("too few training patients to choose C: the middle of its range is used")
            return self.strengths[len(self.strengths) // 2], "default"
        compact = np.searchsorted(present, codes)
        names = [tiles.classes[code] for code in present]
        folds = min(self.inner_folds, int(patients_per_class(compact, patients, len(names)).min()))
        scores = np.zeros(len(self.strengths))
        for inner in patient_folds(compact, patients, classes=names, folds=folds, seed=seed):
            heads = fit_heads(
                tiles.features[train[inner.train]],
                codes[inner.train],
                n_classes=len(tiles.classes),
                strengths=self.strengths,
                scale=scale,
            )
            scores += [head_score(head, tiles, train[inner.test]) for head in heads]
        return self.strengths[int(scores.argmax())], "inner folds of patients"
