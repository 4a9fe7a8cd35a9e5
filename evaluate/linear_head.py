"""A linear classifier on frozen features: standardised on its training tiles, multinomial logistic regression."""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import ThreadpoolController

from simtriplet.wsi.errors import EvaluationError

__all__ = ["FeatureScale", "LinearHead", "fit_heads", "fit_scale"]

_MAX_ITERATIONS = 1000

_SMALL_VALUES = 1 << 24
"""Up to so many feature values one BLAS thread fits: the products are short, and threads that wait for each other cost
more than they bring. 1,084 x 512 values on two busy cores: 0.9 s with one thread, 50 s with two.
"""

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FeatureScale:
    """How features are standardised.

    Attributes:
        mean: (d,).
        scale: (d,) standard deviation; 1 where constant.
    """

    mean: _Floats
    scale: _Floats

    def apply(self, features: npt.NDArray[np.floating[Any]]) -> _Floats:
        """Return (m, d) features with mean 0 and standard deviation 1 over the tiles of the scale."""
        return (features.astype(np.float64) - self.mean) / self.scale


def fit_scale(features: npt.NDArray[np.float32]) -> FeatureScale:
    """Return the mean and spread of (m, d) features; labels are not needed."""
    scaler: Any = StandardScaler().fit(features.astype(np.float64))
    return FeatureScale(scaler.mean_, scaler.scale_)


@dataclass(frozen=True, slots=True)
class LinearHead:
    """A fitted head over k classes.

    Attributes:
        mean: (d,) of the training features.
        scale: (d,) standard deviation of the training features; 1 where constant.
        weight: (k, d).
        bias: (k,); minus infinity for a class that was not in training.
        strength: the C it was fitted with: the inverse of the L2 penalty.
        converged: the optimiser reached its tolerance.
    """

    mean: _Floats
    scale: _Floats
    weight: _Floats
    bias: _Floats
    strength: float
    converged: bool

    def logits(self, features: npt.NDArray[np.floating[Any]]) -> _Floats:
        """Return (m, k) logits of (m, d) features."""
        return ((features - self.mean) / self.scale) @ self.weight.T + self.bias


@functools.cache
def _thread_pools() -> ThreadpoolController:
    """Find the BLAS libraries once: it takes 19 ms, more than a head of a few labels."""
    return ThreadpoolController()


def fit_heads(
    features: npt.NDArray[np.float32],
    codes: npt.NDArray[np.int64],
    *,
    n_classes: int,
    strengths: Sequence[float],
    scale: FeatureScale | None = None,
) -> list[LinearHead]:
    """Fit one head per C, each started from the one before.

    Classes weigh the same however many tiles they have, as balanced accuracy counts them. An optimiser that stops
    early is recorded in the head, not warned of.

    Args:
        features: (m, d) float32.
        codes: (m,) class codes.
        n_classes: how many logits a head gives.
        strengths: values of C, ascending.
        scale: to standardise with; without it that of these tiles.

    Raises:
        EvaluationError: if the tiles are all of one class.
    """
    if len(np.unique(codes)) < 2:
        raise EvaluationError(f"training tiles {len(codes)}: hold fewer than two classes; use more training patients")
    used = fit_scale(features) if scale is None else scale
    scaled = used.apply(features)
    model: Any = LogisticRegression(max_iter=_MAX_ITERATIONS, class_weight="balanced", warm_start=True)
    heads = []
    threads = 1 if scaled.size <= _SMALL_VALUES else None
    with warnings.catch_warnings(), _thread_pools().limit(limits=threads, user_api="blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in strengths:
            model.set_params(C=strength).fit(scaled, codes)
            converged = int(model.n_iter_.max()) < _MAX_ITERATIONS
            heads.append(LinearHead(used.mean, used.scale, *_all_classes(model, n_classes), strength, converged))
    return heads


def _all_classes(model: Any, n_classes: int) -> tuple[_Floats, _Floats]:
    """Give every class its row; of two classes the regression keeps one row, the difference of their logits."""
    rows, offsets = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        rows, offsets = np.concatenate([-rows, rows]) / 2, np.concatenate([-offsets, offsets]) / 2
    weight = np.zeros((n_classes, rows.shape[1]))
    bias = np.full(n_classes, -np.inf)
    weight[model.classes_], bias[model.classes_] = rows, offsets
    return weight, bias
