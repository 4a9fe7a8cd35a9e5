"""SimTriplet and, without the neighbour, SimSiam: similarity to a target whose gradient is stopped."""

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from simtriplet.pretrain.loss_terms import LossTerms, weighted_mean
from simtriplet.pretrain.model import ViewOutputs

__all__ = ["SimTripletObjective", "negative_cosine"]


def negative_cosine(p: Tensor, z: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return C(p, z), the negative cosine similarity averaged over the batch, in float32.

    In bf16 the steps near 1 are 0.004 wide and would hide a collapse.

    Args:
        p: (n, d).
        z: (n, d); the caller has stopped its gradient.
        weights: (n,) factor of each sample, None for 1.
    """
    return -weighted_mean(F.cosine_similarity(p.float(), z.float(), dim=1), weights)


class SimTripletObjective:
    """Intra- plus inter-sample similarity (SimTriplet, arXiv 2103.05585); SimSiam where the inter weight is 0.

    loss = intra + a x mean_i(w_i x inter_i), a the inter weight times its warm-in and w_i the pair's weight. Its minimum is
    -(1 + a x mean(w)): -2 for SimTriplet, -1 for SimSiam.

    Args:
        inter_weight: weight of the neighbour's term.
    """

    uses_predictor = True

    def __init__(self, inter_weight: float) -> None:
        self.inter_weight = inter_weight
        self.uses_neighbour = inter_weight > 0

    def __call__(
        self, outputs: ViewOutputs, *, warm_in: Tensor | float = 1.0, pair_weights: Tensor | None = None
    ) -> LossTerms:
        """See Objective."""
        with torch.autocast(outputs.z[0].device.type, enabled=False):
            z = [each.detach() for each in outputs.z]  # z = stop_gradient(f(x))
            p = outputs.p
            intra = negative_cosine(p[0], z[1]) / 2 + negative_cosine(p[1], z[0]) / 2
            if not self.uses_neighbour:
                return LossTerms(intra, {"intra": intra.detach()})
            # The anchor shares its second view with the neighbour; its first has no term with it.
            inter = negative_cosine(p[1], z[2], pair_weights) / 2 + negative_cosine(p[2], z[1], pair_weights) / 2
            loss = intra + self.inter_weight * warm_in * inter
            return LossTerms(loss, {"intra": intra.detach(), "inter": inter.detach()})
