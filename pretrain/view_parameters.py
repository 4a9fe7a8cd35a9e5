"""The random numbers behind a batch of views: one set for every sample, drawn on the device."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from simtriplet.pretrain.settings import ViewSettings

__all__ = ["ViewNumbers", "ViewParameters", "draw_view_parameters"]

_CROP_TRIES = 10
"""As torchvision's RandomResizedCrop: the first crop of ten that fits, else the whole tile."""


class ViewNumbers(NamedTuple):
    """What is done to one tile: a row of ViewParameters as plain numbers."""

    top: int
    left: int
    height: int
    width: int
    flip_x: bool
    flip_y: bool
    quarter_turns: int
    factors: list[float]
    order: list[int]
    hue_gap: int
    hue: float
    grey: bool
    blur_sigma: float
    stained: bool
    stain_scale: list[float]
    stain_shift: list[float]


class ViewParameters(NamedTuple):
    """What is done to each of n tiles.

    Attributes:
        top: (n,) int64, first row of the crop, tile pixels.
        left: (n,) int64, first column of the crop.
        height: (n,) int64, rows of the crop.
        width: (n,) int64, columns of the crop.
        flip_x: (n,) bool, mirror left and right.
        flip_y: (n,) bool, mirror top and bottom.
        quarter_turns: (n,) int64 in 0..3, counter-clockwise, after the mirrors.
        factors: (n, 3) float, of brightness, contrast and saturation; 1 changes nothing.
        order: (n, 3) int64, the order of those three, as a permutation of 0, 1, 2.
        hue_gap: (n,) int64 in 0..3, how many of them come before the hue.
        hue: (n,) float, turns of the colour circle; 0 changes nothing.
        grey: (n,) bool.
        blur_sigma: (n,) float, pixels of the view; 0 where the view stays sharp.
        stained: (n,) bool, jitter the stains.
        stain_scale: (n, 3) float, of the concentrations of haematoxylin, eosin and DAB.
        stain_shift: (n, 3) float, added to them, in optical density to base 10.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip_x: Tensor
    flip_y: Tensor
    quarter_turns: Tensor
    factors: Tensor
    order: Tensor
    hue_gap: Tensor
    hue: Tensor
    grey: Tensor
    blur_sigma: Tensor
    stained: Tensor
    stain_scale: Tensor
    stain_shift: Tensor

    def rows(self) -> list[ViewNumbers]:
        """Return the parameters sample by sample; a CPU-GPU sync point where they lie on a GPU."""
        return [ViewNumbers(*row) for row in zip(*(values.tolist() for values in self), strict=True)]


class _Dice:
    """Draw (n, ...) numbers on the generator's device, without ever waiting for it."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.n = n
        self.generator = generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        unit = torch.rand((self.n, *shape), generator=self.generator, device=self.generator.device)
        return low + (high - low) * unit

    def chance(self, probability: float) -> Tensor:
        return self.uniform(0, 1) < probability

    def integer(self, below: Tensor | int) -> Tensor:
        """Draw from 0..below-1."""
        return (self.uniform(0, 1) * below).long().clamp(max=below - 1)  # the product may round up to `below`


def draw_view_parameters(
    n: int, *, tile_height: int, tile_width: int, settings: ViewSettings, generator: torch.Generator
) -> ViewParameters:
    """Draw the parameters of n views from the settings' distributions."""
    dice = _Dice(n, generator)
    height, width = _draw_crop_size(dice, tile_height, tile_width, settings)
    jittered = dice.chance(settings.jitter_p)
    strengths = (settings.brightness, settings.contrast, settings.saturation)
    factors = torch.stack([dice.uniform(max(0.0, 1 - each), 1 + each) for each in strengths], dim=1)
    hue = dice.uniform(-settings.hue, settings.hue)
    sigma = dice.uniform(*settings.blur_sigma_px)
    return ViewParameters(
        top=dice.integer(tile_height - height + 1),
        left=dice.integer(tile_width - width + 1),
        height=height,
        width=width,
        flip_x=dice.chance(settings.horizontal_flip_p),
        flip_y=dice.chance(settings.vertical_flip_p),
        quarter_turns=dice.integer(4 if settings.rotations90 else 1),
        factors=torch.where(jittered[:, None], factors, 1.0),
        order=dice.uniform(0, 1, 3).argsort(dim=1),
        hue_gap=dice.integer(4),
        hue=torch.where(jittered, hue, 0.0),
        grey=dice.chance(settings.grey_p),
        blur_sigma=torch.where(dice.chance(settings.blur_p), sigma, 0.0),
        **_draw_stain(dice, settings),
    )


def _draw_stain(dice: _Dice, settings: ViewSettings) -> dict[str, Tensor]:
    """Draw last, and only where it is wanted: without it a generator gives the numbers it gave before there was it."""
    if settings.stain_p == 0:
        device = dice.generator.device
        none = torch.zeros((dice.n, 3), device=device)
        return {"stained": none[:, 0] > 0, "stain_scale": none + 1, "stain_shift": none}
    return {
        "stained": dice.chance(settings.stain_p),
        "stain_scale": dice.uniform(1 - settings.stain, 1 + settings.stain, 3),
        "stain_shift": dice.uniform(-settings.stain, settings.stain, 3),
    }


def _draw_crop_size(dice: _Dice, tile_height: int, tile_width: int, settings: ViewSettings) -> tuple[Tensor, Tensor]:
    """Draw area and log aspect ratio uniformly; rejected crops are drawn again, all ten tries at once."""
    area = dice.uniform(*settings.crop_scale, _CROP_TRIES) * (tile_height * tile_width)
    low, high = (math.log(bound) for bound in settings.crop_ratio)
    ratio = dice.uniform(low, high, _CROP_TRIES).exp()
    widths = (area * ratio).sqrt().round().long()
    heights = (area / ratio).sqrt().round().long()
    fits = (widths >= 1) & (widths <= tile_width) & (heights >= 1) & (heights <= tile_height)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    width = torch.where(found, widths.gather(1, first)[:, 0], tile_width)
    height = torch.where(found, heights.gather(1, first)[:, 0], tile_height)
    return height, width
