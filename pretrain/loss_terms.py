"""What every objective takes and gives: views in, a loss and its parts out; pairs may weigh less than 1."""

from typing import NamedTuple, Protocol

from torch import Tensor

from simtriplet.pretrain.model import ViewOutputs

__all__ = ["LossTerms", "Objective", "weighted_mean"]


class LossTerms(NamedTuple):
    """A loss and what it is made of.

    Attributes:
        loss: scalar, float32, to be minimised.
        terms: named detached scalars, for the log.
    """

    loss: Tensor
    terms: dict[str, Tensor]


class Objective(Protocol):
    """Turn p and z of each view into a loss.

    The neighbour's weight is inter_weight x warm_in x pair weight, whatever the objective; pair weights that all are c
    do what c times the inter weight would.
    """

    uses_neighbour: bool
    """Whether a third view, of a neighbour, is needed."""
    uses_predictor: bool
    """Whether p is needed."""

    def __call__(
        self, outputs: ViewOutputs, *, warm_in: Tensor | float = 1.0, pair_weights: Tensor | None = None
    ) -> LossTerms:
        """Return the loss over (n, d) outputs, in float32 whatever precision they come in.

        Args:
            outputs: of two views, and of the neighbour where it is used.
            warm_in: share of the inter weight that is in force, 0..1; a scalar on the device where it changes from step
                to step, as a number would be built into compiled code.
            pair_weights: (n,) float32, at least 0: how much each anchor's neighbour counts; None where all are 1.
        """


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return sum(w x v) / n: a pair of weight 0 still counts as one of the n. None weighs all 1."""
    return values.mean() if weights is None else (weights * values).mean()
