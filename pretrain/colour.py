"""Brightness, contrast, saturation, hue and grey as torchvision's v2 functions define them, for many samples at once.

Images are (n, 3, h, w) float32 RGB in [0, 1]; torchvision quantises uint8 images after every step, here they stay float.
A factor is one number for all images or (n,) numbers, one each. There are two ways through the four changes of a colour
jitter: `jitter_mixed` for samples that each have their own parameters, which picks none out and so never makes the host
wait for a GPU, and `jitter` for samples that share them, which does nothing needless.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = [
    "Number",
    "blend",
    "jitter",
    "jitter_mixed",
    "luminance",
    "mean_grey",
    "per_pixel",
    "shift_hue",
    "write_plane",
]

Number = Tensor | float
"""One for all images, or (n,): one for each."""

_LUMINANCE = (0.2989, 0.587, 0.114)
"""ITU-R 601-2, with torchvision's digits."""
_TINY = 1e-12
"""A chroma below this is none: it only keeps grey pixels from dividing 0 by 0."""


def per_pixel(number: Number, n_axes: int = 3) -> Number:
    """Return (n,) numbers as (n, 1, ...), with `n_axes` ones, to meet images or planes; one number stays what it is."""
    return number.view(-1, *[1] * n_axes) if isinstance(number, Tensor) else number


def write_plane(plane: Tensor, operation: Callable[..., Tensor], *inputs: Tensor | float) -> Tensor:
    """Write operation(*inputs) into a plane of an image, and return that plane.

    Compiled code has no `out` for a part of a tensor, and needs none: it writes the result where it is copied to.
    """
    return plane.copy_(operation(*inputs)) if torch.compiler.is_compiling() else operation(*inputs, out=plane)


def luminance(images: Tensor) -> Tensor:
    """Return (n, 1, h, w) grey values."""
    red, green, blue = images.unbind(dim=1)
    grey = (red * _LUMINANCE[0]).add_(green, alpha=_LUMINANCE[1]).add_(blue, alpha=_LUMINANCE[2])
    return grey.unsqueeze(1)


def mean_grey(images: Tensor) -> Tensor:
    """Return (n, 1, 1, 1), the mean of the grey values: the grey of the mean colour, for grey is linear."""
    return luminance(images.mean(dim=(2, 3), keepdim=True))


def blend(images: Tensor, other: Tensor | None, factor: Number) -> Tensor:
    """Mix images with something else; what leaves [0, 1] is clamped.

    Args:
        images: (n, 3, h, w).
        other: broadcastable to them: the mean grey changes the contrast, the grey the saturation; None is black and
            changes the brightness.
        factor: share of the images, may exceed 1; at 1 nothing changes.
    """
    share = per_pixel(factor)
    mixed = images * share if other is None else torch.lerp(other, images, share)
    return mixed.clamp_(0, 1)


def shift_hue(images: Tensor, turns: Number) -> Tensor:
    """Turn the hue by a number of turns of the colour circle in HSV space, keeping saturation and value."""
    sixths, lowest, chroma = _hue_lowest_chroma(images)
    sixths.add_(per_pixel(turns, 2) * 6)
    sixths.sub_((sixths / 6).floor_(), alpha=6)  # into [0, 6]
    turned = torch.empty_like(images)
    # A channel is full within one sixth of its own hue and empty from two sixths on; red lies at both ends.
    for channel, hue in zip(turned.unbind(dim=1), (0, 2, 4), strict=True):
        nearness = (sixths - 3).abs_().sub_(1) if hue == 0 else (sixths - hue).abs_().neg_().add_(2)
        write_plane(channel, torch.addcmul, lowest, chroma, nearness.clamp_(0, 1))
    return turned


def _hue_lowest_chroma(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (n, h, w) each: hue in sixths of the circle, 0..6, the lowest channel, and highest minus lowest.

    The channels are sorted by two exchanges, and the hue at which their sector begins is kept with them. That is plain
    arithmetic; the usual `where` for each sector costs 16 us a plane of 128 px on a CPU, a maximum 2.
    """
    red, green, blue = images.unbind(dim=1)
    second, third = torch.maximum(green, blue), torch.minimum(green, blue)
    first_swap = write_plane(torch.empty_like(red), torch.lt, green, blue)  # 0 or 1, as a float
    second_swap = write_plane(torch.empty_like(red), torch.lt, red, second)
    highest, middle = torch.maximum(red, second), torch.minimum(red, second)
    lowest = torch.minimum(middle, third)
    chroma = highest.sub_(lowest)
    # The sector begins at -6 after the first exchange alone, at -2 after the second alone, at 4 after both.
    start = (first_swap * 12).sub_(2).mul_(second_swap).sub_(first_swap, alpha=6)
    within = middle.sub_(third).div_(chroma.clamp_min(_TINY))
    return start.add_(within).abs_(), lowest, chroma


def jitter(images: Tensor, *, factors: Sequence[float], order: Sequence[int], hue_gap: int, hue: float) -> Tensor:
    """Apply the four changes to samples that share them, leaving out those that would change nothing.

    Args:
        images: (n, 3, h, w).
        factors: of brightness, contrast and saturation.
        order: of those three, as a permutation of 0, 1, 2.
        hue_gap: how many of them come before the hue, 0..3.
        hue: turns of the colour circle.
    """
    for rank, change in enumerate((*order, None)):
        if rank == hue_gap and hue != 0:
            images = shift_hue(images, hue)
        if change is not None and factors[change] != 1:
            images = blend(images, _other(images, change), factors[change])
    return images


def _other(images: Tensor, change: int) -> Tensor | None:
    return None if change == 0 else mean_grey(images) if change == 1 else luminance(images)


def jitter_mixed(images: Tensor, *, factors: Tensor, order: Tensor, hue_gap: Tensor, hue: Tensor) -> Tensor:
    """Apply to each sample its own four changes in its own order.

    The costly hue is computed once, between two rounds of the three blends; in each round the blends of the other
    side have factor 1. So all 24 orders are possible and no sample is picked out, which would need a synchronisation.

    Args:
        images: (n, 3, h, w).
        factors: (n, 3), see `jitter`; likewise the others.
        order: (n, 3).
        hue_gap: (n,).
        hue: (n,).
    """
    sorted_factors = factors.gather(1, order)
    for rank in range(3):
        factor = torch.where(hue_gap > rank, sorted_factors[:, rank], 1.0)
        images = blend(images, _other_mixed(images, order[:, rank]), factor)
    images = shift_hue(images, hue)
    for rank in range(3):
        factor = torch.where(hue_gap > rank, 1.0, sorted_factors[:, rank])
        images = blend(images, _other_mixed(images, order[:, rank]), factor)
    return images


def _other_mixed(images: Tensor, change: Tensor) -> Tensor:
    """Return what to blend with by (n,) changes, black as zeros."""
    kind = change[:, None, None, None]
    grey = luminance(images)
    return torch.where(kind == 2, grey, grey.mean(dim=(2, 3), keepdim=True) * (kind == 1))
