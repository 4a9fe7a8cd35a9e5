"""Brightness, contrast, saturation, hue and grey with one factor per sample, as torchvision's v2 functions define them.

Images are (n, 3, h, w) float32 RGB in [0, 1]. torchvision quantises uint8 images after every step; here they stay float.
"""

import torch
from torch import Tensor

__all__ = ["blend", "jitter", "luminance", "shift_hue", "to_grey"]

_LUMINANCE = (0.2989, 0.587, 0.114)
"""ITU-R 601-2, with torchvision's digits."""


def luminance(images: Tensor) -> Tensor:
    """Return (n, 1, h, w) grey values."""
    red, green, blue = images.unbind(dim=1)
    grey = red * _LUMINANCE[0] + green * _LUMINANCE[1] + blue * _LUMINANCE[2]
    return grey.unsqueeze(1)


def blend(images: Tensor, change: Tensor, factor: Tensor) -> Tensor:
    """Change brightness (0), contrast (1) or saturation (2): each is a blend with black, the mean grey or the grey.

    Args:
        images: (n, 3, h, w).
        change: (n,) int64 in 0..2.
        factor: (n,) share of the image in the blend, may exceed 1; at 1 nothing changes.
    """
    kind = change[:, None, None, None]
    grey = luminance(images)
    mean = grey.mean(dim=(2, 3), keepdim=True) * (kind == 1)
    other = torch.where(kind == 2, grey, mean)
    return torch.lerp(other, images, factor[:, None, None, None]).clamp_(0, 1)


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue by (n,) turns of the colour circle in HSV space, keeping saturation and value."""
    highest, where_highest = images.max(dim=1)
    chroma = highest - images.amin(dim=1)
    red, green, blue = images.unbind(dim=1)
    safe = torch.where(chroma == 0, 1.0, chroma)
    sixths = torch.where(where_highest == 0, (green - blue) / safe, (blue - red) / safe + 2)
    sixths = torch.where(where_highest == 2, (red - green) / safe + 4, sixths)
    sixths = sixths + 6 * turns[:, None, None]
    # Channel n of HSV -> RGB is v - c * clamp(min(k, 4 - k), 0, 1), k = (n + 6 h) mod 6, n = 5, 3, 1.
    channels = []
    for offset in (5, 3, 1):
        k = torch.remainder(sixths + offset, 6)
        channels.append(highest - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, dim=1)


def jitter(images: Tensor, *, factors: Tensor, order: Tensor, hue_gap: Tensor, hue: Tensor) -> Tensor:
    """Apply the four changes in each sample's own order.

    The costly hue is computed once, between two rounds of the three blends; in each round the blends of the other
    side have factor 1. So all 24 orders are possible and no sample is picked out, which would need a synchronisation.

    Args:
        images: (n, 3, h, w).
        factors: (n, 3), see ViewParameters; likewise the others.
        order: (n, 3).
        hue_gap: (n,).
        hue: (n,).
    """
    sorted_factors = factors.gather(1, order)
    for rank in range(3):
        images = blend(images, order[:, rank], torch.where(hue_gap > rank, sorted_factors[:, rank], 1.0))
    images = shift_hue(images, hue)
    for rank in range(3):
        images = blend(images, order[:, rank], torch.where(hue_gap > rank, 1.0, sorted_factors[:, rank]))
    return images


def to_grey(images: Tensor, grey: Tensor) -> Tensor:
    """Turn the images marked in (n,) bool grey."""
    return torch.where(grey[:, None, None, None], luminance(images), images)
