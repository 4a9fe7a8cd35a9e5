"""Barlow Twins on the views of a triplet: the cross-correlation of two views is driven to the identity."""

from collections.abc import Sequence

import torch
from torch import Tensor

from simtriplet.pretrain.embedding_objective import EmbeddingObjective
from simtriplet.pretrain.loss_terms import LossTerms

__all__ = ["BarlowTwinsObjective", "cross_correlation"]

_EPSILON = 1e-5  # that of the authors' batch normalisation
_LEAST_MASS = 1e-12


class BarlowTwinsObjective(EmbeddingObjective):
    """Redundancy reduction (Barlow Twins, arXiv 2103.03230, equation 1) on the views of a triplet, without a predictor.

    For a pair of views B = 1/d x (sum_j (1 - C_jj)^2 + lambda x sum_j sum_(k != j) C_jk^2), C their (d, d)
    cross-correlation over the batch. The factor 1/d is not in the paper, whose optimiser does not care about the scale of
    a loss; for SGD it makes one learning rate fit every length of z, and that of the other objectives fit this one.
    With a neighbour the loss is the weighted mean of both pairs,

        (B(z1, z2) + a x m x B_w(z2, z3)) / (1 + a x m),

    a the inter weight times its warm-in, m the mean of the pair weights w, and B_w of the correlation in which sample i
    counts w_i: mean, variance and covariance are sums over w_i / sum(w). At inter weight 0 this is Barlow Twins itself.

    Args:
        settings: `redundancy_weight` is lambda.
    """

    def _losses(self, z: Sequence[Tensor], warm_in: Tensor | float, pair_weights: Tensor | None) -> LossTerms:
        invariance, redundancy = self._penalties(z, warm_in, pair_weights).unbind()
        loss = invariance + self.settings.redundancy_weight * redundancy
        return LossTerms(loss, {"invariance": invariance.detach(), "redundancy": redundancy.detach()})

    def _penalties(self, z: Sequence[Tensor], warm_in: Tensor | float, pair_weights: Tensor | None) -> Tensor:
        """(2,): on and off the diagonal, the weighted mean of both pairs."""
        intra = _penalties_of(cross_correlation(z[0], z[1]))
        if not self.uses_neighbour:
            return intra
        mass = 1.0 if pair_weights is None else pair_weights.mean()
        weight = self.settings.inter_weight * warm_in * mass
        inter = _penalties_of(cross_correlation(z[1], z[2], pair_weights))
        return (intra + weight * inter) / (1 + weight)


def cross_correlation(one: Tensor, other: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the (d, d) correlation between the dimensions of two views over the batch.

    Args:
        one: (n, d) float32; its dimensions are the rows.
        other: (n, d) float32.
        weights: (n,) how much each sample counts, None for all alike; where all are 0 the correlation is 0.
    """
    counts = one.new_ones(len(one)) if weights is None else weights
    share = counts / counts.sum().clamp_min(_LEAST_MASS)
    return (share[:, None] * _standardise(one, share)).T @ _standardise(other, share)


def _standardise(z: Tensor, share: Tensor) -> Tensor:
    """Batch-normalise without scale and shift, sample i counting `share_i`."""
    centred = z - share @ z
    return centred * torch.rsqrt(share @ centred.square() + _EPSILON)


def _penalties_of(correlation: Tensor) -> Tensor:
    diagonal = correlation.diagonal()
    off = correlation.square().sum() - diagonal.square().sum()
    return torch.stack([(1 - diagonal).square().sum(), off]) / len(diagonal)
