"""What every backbone is, wherever it comes from."""

from typing import NamedTuple

from torch import nn

__all__ = ["Backbone"]


class Backbone(NamedTuple):
    """An image network without its head.

    Attributes:
        module: maps (n, 3, s, s) float to (n, feature_dim).
        feature_dim: length of a feature vector.
    """

    module: nn.Module
    feature_dim: int
