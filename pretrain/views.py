"""Views: uint8 tiles in, augmented and normalised float images out, a whole batch at a time on the device."""

import torch
from torch import Tensor

from simtriplet.pretrain.colour import jitter, to_grey
from simtriplet.pretrain.resampling import blur, blur_radius, crop_matrix, resample
from simtriplet.pretrain.settings import ViewSettings
from simtriplet.pretrain.view_parameters import ViewParameters, draw_view_parameters

__all__ = ["ViewMaker", "normalise"]

_PIECE_BYTES = {"cpu": 1 << 21, "cuda": 1 << 29}
"""Float pixels of the tiles worked on at once: what a core's cache holds; what a GPU can spare."""


def normalise(images: Tensor, settings: ViewSettings) -> Tensor:
    """Subtract the mean and divide by the deviation of each channel of (n, 3, h, w) images in [0, 1]."""
    # Plain numbers: a tensor of them would have to be copied to the device, which makes the host wait.
    channels = zip(images.unbind(dim=1), settings.mean, settings.std, strict=True)
    return torch.stack([(channel - mean) / std for channel, mean, std in channels], dim=1)


class ViewMaker:
    """Draw one view of every tile of a batch, each with its own random parameters.

    Args:
        settings: the distributions.
        image_size_px: side of a view.
    """

    def __init__(self, settings: ViewSettings, *, image_size_px: int) -> None:
        self.settings = settings
        self.image_size_px = image_size_px
        self._radius = blur_radius(settings.blur_sigma_px[1], image_size_px)

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
        """Make views with given parameters, in pieces that bound the memory for float pixels."""
        tile_bytes = 4 * tiles[0].numel() if len(tiles) else 1
        piece = max(1, _PIECE_BYTES.get(tiles.device.type, 1 << 29) // tile_bytes)
        parts = [
            self._apply_piece(tiles[start : start + piece], _rows(parameters, start, start + piece))
            for start in range(0, len(tiles), piece)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _apply_piece(self, tiles: Tensor, parameters: ViewParameters) -> Tensor:
        images = self._place(tiles, parameters)
        images = jitter(
            images,
            factors=parameters.factors,
            order=parameters.order,
            hue_gap=parameters.hue_gap,
            hue=parameters.hue,
        )
        images = to_grey(images, parameters.grey)
        images = blur(images, parameters.blur_sigma, radius=self._radius)
        return normalise(images, self.settings)

    def _place(self, tiles: Tensor, parameters: ViewParameters) -> Tensor:
        """Crop, resize, flip and turn; a quarter turn is a transposition of a mirror image (rot90 = flipud(T))."""
        turns = parameters.quarter_turns
        flip_x = parameters.flip_x ^ ((turns == 1) | (turns == 2))
        flip_y = parameters.flip_y ^ ((turns == 2) | (turns == 3))
        _, height, width, _ = tiles.shape
        size = self.image_size_px
        rows = crop_matrix(parameters.top, parameters.height, flip_y, in_px=height, out_px=size)
        columns = crop_matrix(parameters.left, parameters.width, flip_x, in_px=width, out_px=size)
        images = resample(tiles.float() / 255, rows, columns)
        if not self.settings.rotations90:
            return images
        turned = (turns % 2 == 1)[:, None, None, None]
        return torch.where(turned, images.transpose(2, 3), images)


def _rows(parameters: ViewParameters, start: int, stop: int) -> ViewParameters:
    return ViewParameters(*(values[start:stop] for values in parameters))
