"""How a network is trained with labels; the defaults suit few labels as well as many."""

import math
from dataclasses import dataclass

from simtriplet.pretrain.settings import DeviceName, PrecisionName, ViewSettings
from simtriplet.wsi.errors import SettingsError

__all__ = ["SUPERVISED_VIEWS", "SupervisedSettings"]

SUPERVISED_VIEWS = ViewSettings(
    crop_scale=(0.6, 1.0),
    vertical_flip_p=0.5,
    rotations90=True,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    hue=0.05,
    grey_p=0.0,
    blur_p=0.0,
)
"""Flips, quarter turns, crops of at least 60 % of the tile, mild changes of colour: what leaves a tile's class as it is.
The views of pretraining do not: they crop down to 20 % and take the colour away.
"""


@dataclass(frozen=True, slots=True)
class SupervisedSettings:
    """How a network is trained with labels.

    The optimiser is AdamW with a linear warm-up over a twentieth of the steps and a cosine to zero. One learning rate then
    serves ResNets and transformers, from scratch and from an encoder, on ten tiles or 100,000, where that of SGD would have
    to be found anew for each. There is no early end: the weights of the last step are tested, so that neither
    test patients nor labels spent on validation choose them.

    Attributes:
        backbone: of a network from scratch, as in ModelSettings; an encoder brings its own.
        image_size_px: side of the images; an encoder brings its own, and its normalisation.
        epochs: passes over the training tiles.
        min_steps: as many steps at least, however few the labels: an epoch of ten tiles is a single step.
        batch_size: tiles a step; fewer tiles are repeated in a batch, each time in another view.
        lr: learning rate after the warm-up, of the linear layer and of a network from scratch.
        encoder_lr_share: learning rate of an encoder's weights as a share of `lr`.
        weight_decay: of AdamW, on weights of two dimensions or more.
        device: auto is cuda where there is one.
        precision: auto is bf16 on a GPU that has it and fp32 elsewhere.
        seed: of the weights, the order and the views.
        views: how training tiles are changed; mean and deviation are those of a network from scratch.
    """

    backbone: str = "resnet50"
    image_size_px: int = 128
    epochs: int = 30
    min_steps: int = 300
    batch_size: int = 64
    lr: float = 1e-3
    encoder_lr_share: float = 0.1
    weight_decay: float = 0.05
    device: DeviceName = "auto"
    precision: PrecisionName = "auto"
    seed: int = 0
    views: ViewSettings = SUPERVISED_VIEWS

    def __post_init__(self) -> None:
        least = {"image_size_px": 16, "epochs": 1, "min_steps": 1, "batch_size": 2, "seed": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise SettingsError(f"{name} {getattr(self, name)}: must be at least {lowest}; pass a larger number")
        for name in ("lr", "encoder_lr_share"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingsError(f"{name} {getattr(self, name)}: must be above 0 and finite; pass such a number")
        if not 0 <= self.weight_decay < math.inf:
            raise SettingsError(f"weight_decay {self.weight_decay}: must be at least 0; pass a larger number")

    def steps(self, n_tiles: int) -> int:
        """Return the number of steps on so many training tiles."""
        return max(self.min_steps, self.epochs * math.ceil(n_tiles / self.batch_size))
