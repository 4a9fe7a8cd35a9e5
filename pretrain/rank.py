"""RankMe: how many dimensions features really use."""

import torch
from torch import Tensor

__all__ = ["effective_rank"]

_EPSILON = 1e-7
"""Of the paper, for float32."""


def effective_rank(features: Tensor) -> float:
    """Return exp of the entropy of the normalised singular values (RankMe, arXiv 2210.02885, equation 1).

    A CPU-GPU sync point.

    Args:
        features: (n, d), any float type; not centred, as in the paper.

    Returns:
        Between 1, where all rows are multiples of one, and min(n, d); NaN where a feature is not finite.
    """
    values = features.detach().float()
    if not bool(values.isfinite().all()):
        return float("nan")
    singular = torch.linalg.svdvals(values)
    p = singular / singular.sum().clamp_min(_EPSILON) + _EPSILON
    return float(torch.exp(-(p * p.log()).sum()))
