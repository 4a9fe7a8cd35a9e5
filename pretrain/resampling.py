"""Crops, flips and blurs as small matrices, one per sample and axis, so that a batch is two matrix products.

A crop resized to another shape is separable: out = rows @ tile @ columns^T. Each row of such a matrix holds the
weights of one output pixel, with the same triangle filter that PIL and torchvision (antialias=True) use, so that a
crop scaled down is area-averaged with its own factor; grid_sample would alias there, and one pre-averaged copy of the
tile would fit only one of the factors. Flips reverse the order of the rows.
"""

import math

import torch
from torch import Tensor

__all__ = ["blur", "blur_radius", "crop_matrix", "resample"]

_SHARPEST_SIGMA = 0.01
"""Below this a Gaussian on whole pixels is 1 at its centre and exactly 0 beside it in float32."""


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


def blur(views: Tensor, sigma: Tensor, *, radius: int) -> Tensor:
    """Blur each image with its own Gaussian, reflecting at the border; sigma 0 leaves it as it is.

    Multiplying by a banded matrix costs under 1 % of the encoder's work and needs no selection of the blurred half,
    which would make the host wait for the device.

    Args:
        views: (n, c, s, s) float32.
        sigma: (n,) pixels.
        radius: pixels on each side, below s.
    """
    n, channels, size, _ = views.shape
    kernel = _blur_matrix(sigma, size, radius).transpose(1, 2)
    along_x = torch.bmm(views.reshape(n, channels * size, size), kernel).view(n, channels, size, size)
    turned = along_x.transpose(2, 3).reshape(n, channels * size, size)
    return torch.bmm(turned, kernel).view(n, channels, size, size).transpose(2, 3)


def _blur_matrix(sigma: Tensor, size: int, radius: int) -> Tensor:
    """(n, size, size): the Gaussian between each pair of pixels, plus what their mirror images beyond the border add."""
    pixel = torch.arange(size, device=sigma.device)
    last = size - 1
    distance = pixel[None, :] - pixel[:, None]
    beyond_start = pixel[None, :] + pixel[:, None]
    beyond_end = 2 * last - beyond_start
    never = radius + 1  # border pixels are not mirrored a second time
    beyond_start = torch.where(pixel[None, :] == 0, never, beyond_start)
    beyond_end = torch.where(pixel[None, :] == last, never, beyond_end)
    scale = -0.5 / sigma.clamp_min(_SHARPEST_SIGMA).square()[:, None, None]
    weights = torch.zeros((), device=sigma.device)
    for each in (distance, beyond_start, beyond_end):
        near = (each.abs() <= radius).float()
        weights = weights + torch.exp(each.square() * scale) * near
    return weights / weights.sum(dim=2, keepdim=True)
