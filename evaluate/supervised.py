"""Train a whole network, backbone and linear layer, with labels: from scratch (the paper's baseline) or from an encoder."""

import copy
import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import nn

from simtriplet.evaluate.chosen_tiles import ChosenTiles
from simtriplet.evaluate.classifier import Classifier
from simtriplet.evaluate.label_trainer import LabelNetwork, LabelTrainer
from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.supervised_settings import SupervisedSettings
from simtriplet.pretrain.backbone import make_backbone
from simtriplet.pretrain.encoder import Encoder, EncoderInfo, package_versions
from simtriplet.pretrain.precision import pick_device
from simtriplet.pretrain.sampler import seed_of
from simtriplet.pretrain.tiles import open_tiles
from simtriplet.wsi.errors import EvaluationError
from simtriplet.wsi.store import TileStore

__all__ = ["is_pretrained", "train_classifier"]

_Ints = npt.NDArray[np.int64]


def train_classifier(
    stores: Sequence[TileStore],
    tiles: LabelledTiles,
    train: _Ints,
    settings: SupervisedSettings,
    *,
    encoder: Encoder | None = None,
) -> Classifier:
    """Train a network with the labels of some tiles; the same seed gives the same weights on a CPU, bit for bit.

    Classes weigh the same however many tiles they have, as balanced accuracy counts them. Batches are always full, so that
    batch normalisation works on ten labels too. A network from scratch ends with statistics of the training tiles as
    they are, not of their views; an encoder keeps the statistics it came with, as few tiles would only blur them.

    Args:
        stores: that hold the tiles.
        tiles: the labelled tiles.
        train: (n,) int64 places in `tiles`; no other tile is read and no other label looked at.
        settings: how to train.
        encoder: where to start from; it stays as it is. Random weights are trained as a network from scratch.

    Raises:
        EvaluationError: if the tiles are all of one class, or the weights do not stay finite.
        TrainingError: if the device or precision is not there, or the stores differ in tile size or resolution.
        StoreError: if a store is damaged.
    """
    codes = tiles.codes[train]
    if len(np.unique(codes)) < 2:
        raise EvaluationError(f"training tiles {len(codes)}: hold fewer than two classes; use more training patients")
    device = pick_device(settings.device)
    network, info = _start(settings, encoder, n_classes=len(tiles.classes), device=device)
    trainer = LabelTrainer(network, settings, codes, info=info, pretrained=is_pretrained(encoder))
    with open_tiles(ChosenTiles(stores, tiles, train), device=device) as source:
        steps = trainer.run(source)
    if not all(bool(value.isfinite().all()) for value in network.state_dict().values()):
        raise EvaluationError(f"network trained with labels: is not finite after {steps} steps; lower lr")
    info = _describe(info, network, tiles, train, steps, pretrained=is_pretrained(encoder))
    known = torch.as_tensor(np.bincount(codes, minlength=len(tiles.classes)) > 0, device=device)
    trained = Encoder(network.backbone, info).to(device)
    return Classifier(trained, network.head, known, trainer.precision, settings.batch_size, steps)


def is_pretrained(encoder: Encoder | None) -> bool:
    """Tell whether there is an encoder, and one that has learnt something."""
    return encoder is not None and encoder.info.objective != "random"


def _start(
    settings: SupervisedSettings, encoder: Encoder | None, *, n_classes: int, device: torch.device
) -> tuple[LabelNetwork, EncoderInfo]:
    """Make the network without touching the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(settings.seed, 0, 0))
        if encoder is None:
            backbone, feature_dim = make_backbone(settings.backbone, image_size_px=settings.image_size_px)
            info = _from_scratch(settings, feature_dim)
        else:
            backbone, info = copy.deepcopy(encoder.backbone), encoder.info
        head = nn.Linear(info.feature_dim, n_classes)
    return LabelNetwork(backbone, head).requires_grad_().to(device), info


def _from_scratch(settings: SupervisedSettings, feature_dim: int) -> EncoderInfo:
    return EncoderInfo(
        backbone=settings.backbone,
        feature_dim=feature_dim,
        image_size_px=settings.image_size_px,
        mpp=None,
        mean=settings.views.mean,
        std=settings.views.std,
        checkpoint_hash="",
        patients=(),
        slides=(),
        objective="supervised",
        steps=0,
        versions=package_versions(),
    )


def _describe(
    info: EncoderInfo, network: LabelNetwork, tiles: LabelledTiles, train: _Ints, steps: int, *, pretrained: bool
) -> EncoderInfo:
    """Say what the backbone has become, and add whom it has seen."""
    weights = {key: value.detach().cpu().contiguous() for key, value in network.backbone.state_dict().items()}
    return dataclasses.replace(
        info,
        checkpoint_hash=hashlib.sha256(safetensors.torch.save(weights)).hexdigest(),
        patients=tuple(sorted({*info.patients, *tiles.patients[train].tolist()})),
        slides=tuple(sorted({*info.slides, *tiles.slides[train].tolist()})),
        objective=f"{info.objective}, then supervised" if pretrained else "supervised",
        steps=info.steps + steps,
    )
