"""Nearest neighbours on the device: what the tiles most like a tile say it is."""

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

__all__ = ["balanced_share", "neighbour_vote"]

_ROWS = 1024
"""Queries compared at once."""


def neighbour_vote(features: Tensor, codes: Tensor, groups: Tensor, *, k: int = 20) -> Tensor:
    """Return the class most frequent among the k most similar tiles (cosine), those of the tile's own group left out.

    Args:
        features: (n, d) float.
        codes: (n,) int64 classes, at least 0.
        groups: (n,) int64; numbers of their own forbid a tile itself only, patients forbid all tiles of its patient.
        k: voters; fewer where there are fewer.

    Returns:
        (n,) int64, -1 where no tile of another group exists.
    """
    unit = F.normalize(features.float(), dim=1)
    one_hot = F.one_hot(codes).float()
    k = min(k, len(unit))
    votes = []
    for start in range(0, len(unit), _ROWS):
        rows = slice(start, start + _ROWS)
        similarity = unit[rows] @ unit.T
        similarity.masked_fill_(groups[rows, None] == groups[None], -torch.inf)
        nearest = similarity.topk(k, dim=1)
        allowed = nearest.values > -torch.inf
        counts = (one_hot[nearest.indices] * allowed[:, :, None]).sum(dim=1)
        votes.append(torch.where(allowed.any(dim=1), counts.argmax(dim=1), -1))
    return torch.cat(votes)


def balanced_share(votes: Tensor, codes: Tensor) -> float:
    """Return the share of right votes, averaged over the classes that occur; tiles without a vote are left out.

    NaN where no tile has a vote.
    """
    voted = votes >= 0
    right, codes = (votes == codes)[voted].double(), codes[voted]
    shares = [float(right[codes == code].mean()) for code in sorted(set(codes.tolist()))]
    return sum(shares) / len(shares) if shares else float("nan")
