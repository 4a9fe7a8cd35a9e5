"""Crops, flips and blurs with parameters per sample.

A crop resized to another shape is separable: out = rows @ tile @ columns^T, with one small matrix per sample and axis,
so that a batch is a few matrix products. Each row of such a matrix holds the weights of one output pixel, with the same
triangle filter that PIL and torchvision (antialias=True) use, so that a crop scaled down is area-averaged with its own
factor; grid_sample would alias there, and one pre-averaged copy of the tile would fit only one of the factors. Flips
reverse the order of the rows. A single tile on a CPU goes through torch's own filter for bytes: 40 us a view of 128 px
where the matrices take 170, 120 us where they take 860 at 224 px.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

__all__ = ["blur", "blur_mixed", "blur_radius", "blur_weights", "crop_and_resize", "crop_matrix", "resample"]

_SHARPEST_SIGMA = 0.01
"""Below this a Gaussian on whole pixels is 1 at its centre and exactly 0 beside it in float32."""


def crop_and_resize(tile: Tensor, *, top: int, left: int, height: int, width: int, size_px: int) -> Tensor:
    """Cut a box out of a tile and resize it, rounding to whole levels as torchvision does with uint8 images.

    Args:
        tile: (h, w, 3) uint8.
        top: first row of the box; likewise the others.
        left: first column.
        height: rows.
        width: columns.
        size_px: side of the result.

    Returns:
        (1, 3, s, s) uint8.
    """
    box = tile[top : top + height, left : left + width].permute(2, 0, 1).unsqueeze(0)
    return interpolate(box, size=(size_px, size_px), mode="bilinear", antialias=True)


def crop_matrix(start: Tensor, length: Tensor, flip: Tensor, *, in_px: int, out_px: int) -> Tensor:
    """Return the matrices that cut [start, start + length) out of one axis and resample it to `out_px`.

    Args:
        start: (n,) first pixel of the crop.
        length: (n,) pixels of the crop.
        flip: (n,) bool, reverse the output.
        in_px: pixels of the axis.
        out_px: pixels wanted.

    Returns:
        (n, out_px, in_px) float32; every row sums to 1.
    """
    place = torch.arange(out_px, device=start.device, dtype=torch.float32)
    place = torch.where(flip[:, None], out_px - 1 - place, place)
    step = length[:, None].float() / out_px
    centre = (start[:, None] + (place + 0.5) * step)[:, :, None]
    pixel = torch.arange(in_px, device=start.device)
    support = step.clamp_min(1.0)[:, :, None]  # scaled up it is bilinear, scaled down as wide as a new pixel
    weights = (1 - (pixel + 0.5 - centre).abs() / support).clamp_min(0)
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
    weights = weights * inside[:, None, :]
    return weights / weights.sum(dim=2, keepdim=True)


def resample(tiles: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply one matrix to the rows and one to the columns of each tile.

    Args:
        tiles: (n, h, w, 3) float32.
        rows: (n, s, h).
        columns: (n, s, w).

    Returns:
        (n, 3, s, s) float32.
    """
    n, height, width, channels = tiles.shape
    size = rows.shape[1]
    shrunk = torch.bmm(rows, tiles.reshape(n, height, width * channels)).view(n, size, width, channels)
    flat = shrunk.permute(0, 3, 1, 2).reshape(n, channels * size, width)
    return torch.bmm(flat, columns.transpose(1, 2)).view(n, channels, size, size)


def blur_radius(largest_sigma: float, size_px: int) -> int:
    """Return how many pixels to each side a Gaussian reaches: three sigma, and less than the image."""
    return min(math.ceil(3 * largest_sigma), size_px - 1)


def blur_weights(sigma: Tensor, radius: int) -> Tensor:
    """Return (n, radius + 1) weights of a Gaussian of (n,) sigma pixels, from its centre to one side; 1, 0, ... for 0."""
    distance = torch.arange(radius + 1, device=sigma.device)
    weights = torch.exp(-0.5 * (distance / sigma.clamp_min(_SHARPEST_SIGMA)[:, None]).square())
    return weights / (2 * weights.sum(dim=1, keepdim=True) - 1)


def blur(views: Tensor, weights: Sequence[float]) -> Tensor:
    """Blur images alike along both axes, reflecting at the border, as a sum of shifted images.

    Args:
        views: (n, c, s, s) float32.
        weights: of the pixel itself, of those beside it, and so on; at most s of them.
    """
    radius = len(weights) - 1
    around = pad(views, (radius, radius, radius, radius), mode="reflect")
    return _add_shifted(_add_shifted(around, weights, dim=2), weights, dim=3)


def _add_shifted(images: Tensor, weights: Sequence[float], *, dim: int) -> Tensor:
    """Add up weighted shifts along one axis; what is missing at the ends is cut off."""
    radius = len(weights) - 1
    size = images.shape[dim] - 2 * radius
    total = images.narrow(dim, radius, size) * weights[0]
    for distance in range(1, radius + 1):
        for start in (radius - distance, radius + distance):
            total.add_(images.narrow(dim, start, size), alpha=weights[distance])
    return total


def blur_mixed(views: Tensor, weights: Tensor) -> Tensor:
    """Blur each image with its own weights, reflecting at the border, as products with banded matrices.

    Args:
        views: (n, c, s, s) float32.
        weights: (n, radius + 1), see blur_weights; the radius is below s.
    """
    n, channels, size, _ = views.shape
    kernel = _blur_matrix(weights, size).transpose(1, 2)
    along_x = torch.bmm(views.reshape(n, channels * size, size), kernel).view(n, channels, size, size)
    turned = along_x.transpose(2, 3).reshape(n, channels * size, size)
    return torch.bmm(turned, kernel).view(n, channels, size, size).transpose(2, 3)


def _blur_matrix(weights: Tensor, size: int) -> Tensor:
    """(n, size, size): what each pixel takes of each, and of their mirror images beyond the two borders."""
    pixel = torch.arange(size, device=weights.device)
    last, never = size - 1, weights.shape[1]
    here, there = pixel[:, None], pixel[None, :]
    beyond_start = torch.where(there == 0, never, there + here)  # border pixels are not mirrored a second time
    beyond_end = torch.where(there == last, never, 2 * last - there - here)
    ending_in_zero = pad(weights, (0, 1))
    distances = torch.stack([(there - here).abs(), beyond_start, beyond_end]).clamp_max(never)
    return ending_in_zero[:, distances].sum(dim=1)
