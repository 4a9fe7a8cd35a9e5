"""A linear head that learns from few labels: what label curves are made with."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from simtriplet.evaluate.label_curve import CurveSettings
from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.linear_head import fit_heads, fit_scale
from simtriplet.evaluate.linear_probe import LinearProbe
from simtriplet.evaluate.splits import Fold

__all__ = ["ENOUGH_TO_CHOOSE", "FEW_LABELS_C", "learn_linearly"]

ENOUGH_TO_CHOOSE = 50
"""Labelled tiles of each class from which on C is chosen by inner folds of patients; with fewer the choice is a lottery."""

FEW_LABELS_C = 0.1
"""C for fewer labels. Measured on GlaS, gland against stroma, for two ResNet-18 (random weights; pretrained on other
tiles), 1 to 16 tiles a class and 1 % of the labels: of 1e-5 to 10 it lost the least to the best C of each, .008 of
balanced accuracy in the mean and .020 at most (0.01: .009 and .027; 1: .009 and .022).
"""


def learn_linearly(
    tiles: LabelledTiles, fold: Fold, settings: CurveSettings
) -> Callable[[npt.NDArray[np.int64], int], npt.NDArray[np.float64]]:
    """Return what fits a head of logistic regression to the labelled tiles of a fold; see curve_of_tiles.

    Features are standardised on all training tiles of the fold: that takes no label, and two tiles have no spread. With
    every label it is the `linear` protocol itself.
    """
    scale = fit_scale(tiles.features[fold.train])
    test = scale.apply(tiles.features[fold.test])
    probe = LinearProbe()

    def learn(labelled: npt.NDArray[np.int64], _seed: int) -> npt.NDArray[np.float64]:
        if len(labelled) == len(fold.train):
            return probe.predict(tiles, fold, seed=settings.seed).probabilities
        features, codes = tiles.features[labelled], tiles.codes[labelled]
        strength = FEW_LABELS_C
        if np.unique(codes, return_counts=True)[1].min() >= ENOUGH_TO_CHOOSE:
            strength, _ = probe.choose_strength(tiles, labelled, seed=settings.seed, scale=scale)
        (head,) = fit_heads(features, codes, n_classes=len(tiles.classes), strengths=[strength], scale=scale)
        return np.asarray(softmax(test @ head.weight.T + head.bias, axis=1))

    return learn
