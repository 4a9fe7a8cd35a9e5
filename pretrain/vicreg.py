"""VICReg on the views of a triplet: alike where they should be, spread and decorrelated everywhere."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from simtriplet.pretrain.embedding_objective import EmbeddingObjective
from simtriplet.pretrain.loss_terms import LossTerms, weighted_mean

__all__ = ["VicRegObjective"]


class VicRegObjective(EmbeddingObjective):
    """Variance, invariance and covariance (VICReg, arXiv 2105.04906) on the views of a triplet, without a predictor.

    As the authors' code has it, for two views: invariance is the mean squared difference, variance the mean hinge
    max(0, 1 - std), covariance the summed squares off the diagonal over d, added over the views. With a neighbour
    the invariance is the weighted mean of both pairs,

        (mean_i s12_i + a x mean_i(w_i x s23_i)) / (1 + a x mean(w)),

    s the squared difference averaged over d, a the inter weight times its warm-in, w_i the pair's weight; the other terms
    are averaged over the views and keep their size, so that at inter weight 0 this is VICReg itself.

    Args:
        settings: the weights.
    """

    def _losses(self, z: Sequence[Tensor], warm_in: Tensor | float, pair_weights: Tensor | None) -> LossTerms:
        terms = {
            "invariance": self._invariance(z, warm_in, pair_weights),
            "variance": torch.stack([_variance_hinge(each) for each in z]).mean(),
            "covariance": 2 * torch.stack([_covariance_penalty(each) for each in z]).mean(),
        }
        weights = self.settings
        loss = (
            weights.invariance_weight * terms["invariance"]
            + weights.variance_weight * terms["variance"]
            + weights.covariance_weight * terms["covariance"]
        )
        return LossTerms(loss, {name: term.detach() for name, term in terms.items()})

    def _invariance(self, z: Sequence[Tensor], warm_in: Tensor | float, pair_weights: Tensor | None) -> Tensor:
        intra = F.mse_loss(z[0], z[1])
        if not self.uses_neighbour:
            return intra
        weight = self.settings.inter_weight * warm_in
        inter = weighted_mean((z[1] - z[2]).square().mean(dim=1), pair_weights)
        mass = 1.0 if pair_weights is None else pair_weights.mean()
        return (intra + weight * inter) / (1 + weight * mass)


def _variance_hinge(z: Tensor) -> Tensor:
    deviation = torch.sqrt(z.var(dim=0) + 1e-4)  # the authors' epsilon keeps the gradient finite at 0
    return F.relu(1 - deviation).mean()


def _covariance_penalty(z: Tensor) -> Tensor:
    n, d = z.shape
    centred = z - z.mean(dim=0)
    covariance = centred.T @ centred / (n - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / d
