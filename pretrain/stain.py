"""Stain jitter: vary how much haematoxylin, eosin and residue each sample shows (Tellez et al. 2018, arXiv 1808.05896).

By colour deconvolution (Ruifrok & Johnston, Anal Quant Cytol Histol 2001;23:291-299): optical density is additive in the
stains, so pixels become densities, densities become concentrations, and these are scaled, shifted and turned back.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from simtriplet.pretrain.colour import Number, per_pixel, write_plane

__all__ = ["STAIN_VECTORS", "jitter_stain"]

STAIN_VECTORS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Densities in red, green and blue of one unit of haematoxylin, eosin and DAB, as published."""
_TO_STAINS: list[list[float]] = torch.linalg.inv(torch.tensor(STAIN_VECTORS, dtype=torch.float64)).T.tolist()
"""Of each stain, what a unit of density in red, green and blue says about it."""
_LOG2_OF_10 = math.log2(10)
_DARKEST = 1 / 255
"""Below this a pixel counts as this dark: what 8 bits tell apart, and a finite density."""


def jitter_stain(images: Tensor, scale: Sequence[Number], shift: Sequence[Number]) -> Tensor:
    """Turn the concentration c of each stain into scale * c + shift.

    Args:
        images: (n, 3, h, w) RGB in [0, 1].
        scale: of haematoxylin, eosin and DAB, each one number for all images or (n,).
        shift: likewise, in units of optical density to base 10.

    Returns:
        (n, 3, h, w) in [0, 1].
    """
    densities = images.clamp_min(_DARKEST).log10_().neg_().unbind(dim=1)
    concentrations = [
        _mix(densities, weights).mul_(per_pixel(scale[stain], 2)).add_(per_pixel(shift[stain], 2))
        for stain, weights in enumerate(_TO_STAINS)
    ]
    changed = torch.empty_like(images)
    for channel, weights in zip(changed.unbind(dim=1), zip(*STAIN_VECTORS, strict=True), strict=True):
        write_plane(channel, torch.exp2, _mix(concentrations, [-_LOG2_OF_10 * weight for weight in weights]))
    return changed.clamp_max_(1)


def _mix(planes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum; the weights are plain numbers, which no device has to wait for."""
    mixed = planes[0] * weights[0]
    for plane, weight in zip(planes[1:], weights[1:], strict=True):
        mixed.add_(plane, alpha=weight)
    return mixed
