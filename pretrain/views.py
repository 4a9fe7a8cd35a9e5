"""Views: uint8 tiles in, augmented and normalised float images out, on the device, each with its own parameters."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from simtriplet.pretrain.colour import jitter, jitter_mixed, luminance, write_plane
from simtriplet.pretrain.compiled_part import begin_graphs, compile_part
from simtriplet.pretrain.resampling import (
    blur,
    blur_mixed,
    blur_radius,
    blur_weights,
    crop_and_resize,
    crop_matrix,
    resample,
)
from simtriplet.pretrain.settings import ViewSettings
from simtriplet.pretrain.stain import jitter_stain
from simtriplet.pretrain.view_parameters import ViewNumbers, ViewParameters, draw_view_parameters

__all__ = ["ViewMaker", "normalise"]

_PIECE_BYTES = 1 << 29
"""Float pixels of the tiles that a GPU works on at once: what it can spare."""
_KEPT_BYTES = 1 << 24
"""More than a view takes at once while it is made."""
_LEAST_WEIGHT = 1e-5
"""Less of a neighbouring pixel no blur adds where each sample has its own width."""


def normalise(images: Tensor, settings: ViewSettings, *, out: Tensor | None = None) -> Tensor:
    """Subtract the mean and divide by the deviation of each channel of (n, 3, h, w) images in [0, 1].

    Args:
        images: (n, 3, h, w).
        settings: mean and deviation.
        out: where to write, of the same shape.
    """
    out = torch.empty(images.shape, device=images.device) if out is None else out
    # Plain numbers: a tensor of them would have to be copied to the device, which makes the host wait.
    channels = zip(images.unbind(dim=1), out.unbind(dim=1), settings.mean, settings.std, strict=True)
    for channel, of_out, mean, std in channels:
        write_plane(of_out, torch.sub, channel, mean).div_(std)
    return out


class ViewMaker:
    """Draw one view of every tile of a batch, each with its own random parameters.

    A CPU makes one view after the other, so that the pixels stay in its cache and only what was drawn is done. A GPU
    makes many at once and does to all what is done to any, for to pick some out the host would have to wait for it. The
    views are the same up to rounding: a CPU rounds to 8 bits after the crop.

    Args:
        settings: the distributions.
        image_size_px: side of a view.
    """

    def __init__(self, settings: ViewSettings, *, image_size_px: int) -> None:
        self.settings = settings
        self.image_size_px = image_size_px
        self._radius = blur_radius(settings.blur_sigma_px[1], image_size_px)
        self._compiled: Callable[[Tensor, ViewParameters], Tensor] | None = None
        self._mode: str | None = None
        _keep_freed_memory(_KEPT_BYTES)

    def compile(self, *, mode: str | None = None) -> None:
        """Compile when it is first called, for batches of one size, what a GPU does; a CPU then does that too.

        Args:
            mode: of torch.compile.
        """
        self._compiled = compile_part(self.apply_at_once, mode=mode)
        self._mode = mode

    def __call__(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Return (n, 3, s, s) float32 views of (n, h, w, 3) uint8 tiles.

        Args:
            tiles: on any device.
            generator: on the same device.
        """
        return self.apply(tiles, self.draw(tiles, generator))

    def draw(self, tiles: Tensor, generator: torch.Generator) -> ViewParameters:
        """Draw parameters for (n, h, w, 3) tiles."""
        n, height, width, _ = tiles.shape
        return draw_view_parameters(
            n, tile_height=height, tile_width=width, settings=self.settings, generator=generator
        )

    def apply(self, tiles: Tensor, parameters: ViewParameters) -> Tensor:
        """Make views with given parameters."""
        if self._compiled is not None:
            begin_graphs(self._mode)
            with torch.no_grad():
                return self._compiled(tiles, parameters).clone()  # a CUDA graph's memory is that of the next step too
        way = self.apply_one_by_one if tiles.device.type == "cpu" else self.apply_at_once
        return way(tiles, parameters)

    def apply_one_by_one(self, tiles: Tensor, parameters: ViewParameters) -> Tensor:
        """Make views as a CPU does."""
        # numpy asks for huge pages: to touch torch's small ones first costs 77 us a view of 128 px, these cost 12 us.
        views = torch.from_numpy(np.empty((len(tiles), 3, self.image_size_px, self.image_size_px), np.float32))
        weights = blur_weights(parameters.blur_sigma, self._radius).tolist()
        # Nothing is recorded for a backward pass, not even versions: 5 % of the time of such small operations.
        with torch.inference_mode():
            for tile, numbers, of_blur, view in zip(
                tiles, parameters.rows(), weights, torch.split(views, 1), strict=True
            ):
                images = self._make_one(tile, numbers)
                if numbers.blur_sigma:
                    images = blur(images, [weight for weight in of_blur if weight > _LEAST_WEIGHT])
                normalise(images.expand(view.shape), self.settings, out=view)
        return views

    def _make_one(self, tile: Tensor, numbers: ViewNumbers) -> Tensor:
        """Return (1, 3, s, s), or (1, 1, s, s) where it is grey."""
        images = self._place_one(tile, numbers)
        if numbers.stained:
            images = jitter_stain(images, numbers.stain_scale, numbers.stain_shift)
        images = jitter(images, factors=numbers.factors, order=numbers.order, hue_gap=numbers.hue_gap, hue=numbers.hue)
        return luminance(images) if numbers.grey else images

    def _place_one(self, tile: Tensor, numbers: ViewNumbers) -> Tensor:
        """Crop, resize, flip and turn; to [0, 1]."""
        top, left, height, width = numbers[:4]
        view = crop_and_resize(tile, top=top, left=left, height=height, width=width, size_px=self.image_size_px)
        mirrored = [axis for axis, flip in ((2, numbers.flip_y), (3, numbers.flip_x)) if flip]
        if mirrored:
            view = view.flip(mirrored)
        if numbers.quarter_turns:
            view = view.rot90(numbers.quarter_turns, (2, 3))
        return view.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)

    def apply_at_once(self, tiles: Tensor, parameters: ViewParameters) -> Tensor:
        """Make views as a GPU does, in pieces that bound the memory for float pixels."""
        views = torch.empty((len(tiles), 3, self.image_size_px, self.image_size_px), device=tiles.device)
        piece = max(1, _PIECE_BYTES // (4 * tiles[0].numel()))
        rows = zip(*(torch.split(values, piece) for values in parameters), strict=True)
        for part, of_part, out in zip(torch.split(tiles, piece), rows, torch.split(views, piece), strict=True):
            normalise(self._make_many(part, ViewParameters(*of_part)), self.settings, out=out)
        return views

    def _make_many(self, tiles: Tensor, parameters: ViewParameters) -> Tensor:
        images = self._place_many(tiles, parameters)
        if self.settings.stain_p:
            scale, shift = parameters.stain_scale.unbind(dim=1), parameters.stain_shift.unbind(dim=1)
            images = _where(parameters.stained, jitter_stain(images, scale, shift), images)
        images = jitter_mixed(
            images,
            factors=parameters.factors,
            order=parameters.order,
            hue_gap=parameters.hue_gap,
            hue=parameters.hue,
        )
        images = _where(parameters.grey, luminance(images), images)
        return blur_mixed(images, blur_weights(parameters.blur_sigma, self._radius))

    def _place_many(self, tiles: Tensor, parameters: ViewParameters) -> Tensor:
        """Crop, resize, flip and turn; a quarter turn is a transposition of a mirror image (rot90 = flipud(T))."""
        turns = parameters.quarter_turns
        flip_x = parameters.flip_x ^ ((turns == 1) | (turns == 2))
        flip_y = parameters.flip_y ^ ((turns == 2) | (turns == 3))
        _, height, width, _ = tiles.shape
        size = self.image_size_px
        rows = crop_matrix(parameters.top, parameters.height, flip_y, in_px=height, out_px=size)
        columns = crop_matrix(parameters.left, parameters.width, flip_x, in_px=width, out_px=size)
        images = resample(tiles.float() / 255, rows, columns)
        return _where(turns % 2 == 1, images.transpose(2, 3), images) if self.settings.rotations90 else images


def _where(chosen: Tensor, these: Tensor, those: Tensor) -> Tensor:
    """Take these images where (n,) bool says so, else those."""
    return torch.where(chosen[:, None, None, None], these, those)


def _keep_freed_memory(n_bytes: int) -> None:
    """Make glibc serve blocks of up to so many bytes from memory it keeps, for the rest of the process.

    At first it maps every block above 128 KB, which zeroes it, and unmaps it when freed; freeing a larger block lifts
    that bound (mallopt(3), M_MMAP_THRESHOLD). The hue of a view of 224 px takes 209 us so, else 923.
    """
    torch.empty(n_bytes, dtype=torch.uint8)
