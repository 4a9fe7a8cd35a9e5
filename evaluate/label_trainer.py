"""The steps of training a network with labels."""

import dataclasses
import logging
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from simtriplet.evaluate.supervised_settings import SupervisedSettings
from simtriplet.pretrain.encoder import EncoderInfo
from simtriplet.pretrain.precision import autocast, make_scaler, pick_precision
from simtriplet.pretrain.sampler import seed_of
from simtriplet.pretrain.schedule import Schedule
from simtriplet.pretrain.settings import ViewSettings
from simtriplet.pretrain.tiles import TileSource
from simtriplet.pretrain.views import ViewMaker

__all__ = ["LabelNetwork", "LabelTrainer"]

_NORM_TILES = 4096
"""Training tiles that the statistics of batch normalisation are taken from at the end; more change nothing that counts."""

_logger = logging.getLogger(__name__)


class LabelNetwork(nn.Module):
    """A backbone and a linear layer."""

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


class LabelTrainer:
    """Train one network; what is drawn comes from generators of its own.

    Args:
        network: on the device it is to be trained on.
        settings: how.
        codes: (n,) class codes of the training tiles.
        info: image size and normalisation.
        pretrained: the backbone comes from an encoder: its statistics stay, and it learns more slowly.
    """

    def __init__(
        self,
        network: LabelNetwork,
        settings: SupervisedSettings,
        codes: npt.NDArray[np.int64],
        *,
        info: EncoderInfo,
        pretrained: bool,
    ) -> None:
        self.network, self.settings, self.pretrained = network, settings, pretrained
        self.device = network.head.weight.device
        self.precision = pick_precision(settings.precision, self.device)
        self.codes = torch.as_tensor(codes, device=self.device)
        counts = torch.bincount(self.codes, minlength=network.head.out_features)
        # the mean weight of a tile is 1, and every class that is there weighs the same in total
        self.weights = len(codes) / (int((counts > 0).sum()) * counts.clamp(min=1))
        self.known = counts > 0
        views = dataclasses.replace(settings.views, mean=info.mean, std=info.std)
        self.views = ViewMaker(views, image_size_px=info.image_size_px)
        self.plain = ViewMaker(_unchanged(views), image_size_px=info.image_size_px)
        self.view_generator = torch.Generator(self.device).manual_seed(seed_of(settings.seed, 0, 2))
        self.norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def run(self, source: TileSource) -> int:
        """Take all steps; returns their number."""
        total = self.settings.steps(len(self.codes))
        schedule = Schedule(self.settings.lr, total // 20, total)
        optimiser = self._make_optimiser()
        scaler = make_scaler(self.device, self.precision)
        self.network.train()
        if self.pretrained:
            for norm in self.norms:
                norm.eval()
        for step, (ids, following) in enumerate(_with_next(self._batches(total))):
            for group in optimiser.param_groups:
                group["lr"] = schedule.learning_rate(step) * group["share"]
            images = self._images(source, self.views, ids, following)
            loss = self._loss(images, self.codes[ids.to(self.device)])
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad(set_to_none=True)
        if self.norms and not self.pretrained:
            self._settle_norms(source)
        self.network.eval()
        _logger.info("trained with %d labels, %d steps, %s", len(self.codes), total, self.precision)
        return total

    def _make_optimiser(self) -> torch.optim.AdamW:
        share = self.settings.encoder_lr_share if self.pretrained else 1.0
        groups = []
        for module, lr_share in ((self.network.backbone, share), (self.network.head, 1.0)):
            for decays in (True, False):
                parameters = [value for value in module.parameters() if (value.ndim > 1) == decays]
                decay = self.settings.weight_decay if decays else 0.0
                groups.append({"params": parameters, "weight_decay": decay, "share": lr_share})
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=self.settings.lr)

    def _batches(self, total: int) -> Iterator[Tensor]:
        """Yield full batches out of passes over the tiles, each pass in its own random order."""
        order = torch.Generator().manual_seed(seed_of(self.settings.seed, 0, 1))
        waiting = torch.empty(0, dtype=torch.int64)
        for _ in range(total):
            while len(waiting) < self.settings.batch_size:
                waiting = torch.cat([waiting, torch.randperm(len(self.codes), generator=order)])
            yield waiting[: self.settings.batch_size]
            waiting = waiting[self.settings.batch_size :]

    def _images(self, source: TileSource, maker: ViewMaker, ids: Tensor, following: Tensor | None) -> Tensor:
        pixels = source.gather(ids.to(source.id_device))
        if following is not None:
            source.prefetch(following.to(source.id_device))
        with torch.no_grad():
            return maker(pixels, self.view_generator)

    def _loss(self, images: Tensor, codes: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            features = self.network.backbone(images)
        logits = self.network.head(features.float()).masked_fill(~self.known, -math.inf)
        # not cross_entropy's own mean, which divides by the weights that happen to be in the batch
        return (F.cross_entropy(logits, codes, reduction="none") * self.weights[codes]).mean()

    def _settle_norms(self, source: TileSource) -> None:
        """Take the statistics of batch normalisation from the training tiles as they are when tested: whole, in colour."""
        before = [norm.momentum for norm in self.norms]
        for norm in self.norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        with torch.no_grad(), autocast(self.device, self.precision):
            for ids in self._settling_batches():
                self.network.backbone(self._images(source, self.plain, ids, None))
        for norm, momentum in zip(self.norms, before, strict=True):
            norm.momentum = momentum

    def _settling_batches(self) -> tuple[Tensor, ...]:
        """Return full batches of all training tiles, or of a random choice where there are too many.

        Tiles lie slide after slide, so that the first so many would be those of a few patients.
        """
        size, generator = self.settings.batch_size, torch.Generator().manual_seed(seed_of(self.settings.seed, 0, 3))
        chosen = torch.randperm(len(self.codes), generator=generator)[:_NORM_TILES]
        n_batches = math.ceil(len(chosen) / size)
        return torch.split(chosen[torch.arange(n_batches * size) % len(chosen)], size)


def _unchanged(views: ViewSettings) -> ViewSettings:
    return ViewSettings(
        crop_scale=(1, 1), crop_ratio=(1, 1), horizontal_flip_p=0, jitter_p=0, grey_p=0, blur_p=0,
        mean=views.mean, std=views.std,
    )  # fmt: skip


def _with_next(batches: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
    present = next(batches)
    for following in batches:
        yield present, following
        present = following
    yield present, None
