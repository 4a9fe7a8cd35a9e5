"""The losses on the views of a triplet: SimTriplet, SimSiam and a variance-covariance one on the same views."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from simtriplet.pretrain.model import ViewOutputs
from simtriplet.pretrain.settings import ObjectiveSettings
from simtriplet.wsi.registry import Registry

__all__ = [
    "OBJECTIVES",
    "LossTerms",
    "Objective",
    "SimTripletObjective",
    "VicRegObjective",
    "make_objective",
    "negative_cosine",
]


class LossTerms(NamedTuple):
    """A loss and what it is made of.

    Attributes:
        loss: scalar, float32, to be minimised.
        terms: named detached scalars, for the log.
    """

    loss: Tensor
    terms: dict[str, Tensor]


class Objective(Protocol):
    """Turn p and z of each view into a loss."""

    uses_neighbour: bool
    """Whether a third view, of a neighbour, is needed."""
    uses_predictor: bool
    """Whether p is needed."""

    def __call__(self, outputs: ViewOutputs) -> LossTerms:
        """Return the loss over (n, d) outputs, in float32 whatever precision they come in."""


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Return C(p, z), the negative cosine similarity averaged over the batch, in float32.

    In bf16 the steps near 1 are 0.004 wide and would hide a collapse.

    Args:
        p: (n, d).
        z: (n, d); the caller has stopped its gradient.
    """
    return -F.cosine_similarity(p.float(), z.float(), dim=1).mean()


class SimTripletObjective:
    """Intra- plus inter-sample similarity (SimTriplet, arXiv 2103.05585); SimSiam where the inter weight is 0.

    Minimum -(1 + inter_weight): -2 for SimTriplet, -1 for SimSiam.

    Args:
        inter_weight: weight of the neighbour's term.
    """

    uses_predictor = True

    def __init__(self, inter_weight: float) -> None:
        self.inter_weight = inter_weight
        self.uses_neighbour = inter_weight > 0

    def __call__(self, outputs: ViewOutputs) -> LossTerms:
        """See Objective."""
        with torch.autocast(outputs.z[0].device.type, enabled=False):
            z = [each.detach() for each in outputs.z]  # z = stop_gradient(f(x))
            p = outputs.p
            intra = negative_cosine(p[0], z[1]) / 2 + negative_cosine(p[1], z[0]) / 2
            if not self.uses_neighbour:
                return LossTerms(intra, {"intra": intra.detach()})
            # The anchor shares its second view with the neighbour; its first has no term with it.
            inter = negative_cosine(p[1], z[2]) / 2 + negative_cosine(p[2], z[1]) / 2
            loss = intra + self.inter_weight * inter
            return LossTerms(loss, {"intra": intra.detach(), "inter": inter.detach()})


class VicRegObjective:
    """Variance, invariance and covariance (VICReg, arXiv 2105.04906) on the views of a triplet, without a predictor.

    As the authors' code has it, for two views: invariance is the mean squared difference, variance the mean hinge
    max(0, 1 - std), covariance the summed squares off the diagonal over d, added over the views. With a neighbour
    the invariance is the weighted mean of both pairs and the other terms keep their size, so that at weight 0 this
    is VICReg itself.

    Args:
        settings: the weights.
    """

    uses_predictor = False

    def __init__(self, settings: ObjectiveSettings) -> None:
        self.settings = settings
        self.uses_neighbour = settings.inter_weight > 0

    def __call__(self, outputs: ViewOutputs) -> LossTerms:
        """See Objective."""
        with torch.autocast(outputs.z[0].device.type, enabled=False):
            z = [each.float() for each in outputs.z]
            terms = {
                "invariance": self._invariance(z),
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

    def _invariance(self, z: Sequence[Tensor]) -> Tensor:
        intra = F.mse_loss(z[0], z[1])
        if not self.uses_neighbour:
            return intra
        weight = self.settings.inter_weight
        return (intra + weight * F.mse_loss(z[1], z[2])) / (1 + weight)


def _variance_hinge(z: Tensor) -> Tensor:
    deviation = torch.sqrt(z.var(dim=0) + 1e-4)  # the authors' epsilon keeps the gradient finite at 0
    return F.relu(1 - deviation).mean()


def _covariance_penalty(z: Tensor) -> Tensor:
    n, d = z.shape
    centred = z - z.mean(dim=0)
    covariance = centred.T @ centred / (n - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / d


OBJECTIVES: Registry[Callable[[ObjectiveSettings], Objective]] = Registry("objective")
OBJECTIVES.add("simtriplet", lambda settings: SimTripletObjective(settings.inter_weight))
OBJECTIVES.add("simsiam", lambda settings: SimTripletObjective(0.0))
OBJECTIVES.add("vicreg", VicRegObjective)


def make_objective(settings: ObjectiveSettings) -> Objective:
    """Make the objective the settings name.

    Raises:
        UnknownNameError: if there is none of that name.
    """
    return OBJECTIVES.get(settings.name)(settings)
