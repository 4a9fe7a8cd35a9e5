"""Encoders that no run of ours made: random weights, torchvision's networks and timm's, by name."""

import dataclasses
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import safetensors.torch
import torch
import torchvision.models

from simtriplet.pretrain.backbone import Backbone, load_backbone_weights, make_backbone, read_state_dict
from simtriplet.pretrain.encoder import Encoder, EncoderInfo, package_versions
from simtriplet.pretrain.settings import ViewSettings
from simtriplet.wsi.errors import CheckpointError
from simtriplet.wsi.registry import Registry

__all__ = ["ENCODER_SOURCES", "EncoderSource"]

EncoderSource = Callable[[str, bool], Encoder]
"""Make an encoder from what follows `kind:`; the flag allows to fetch published weights from the network."""

_IMAGENET = ViewSettings()
_RANDOM_SIZE_PX = 128
_LEAST_SIZE_PX = 16
_TORCHVISION_SIZE_PX = 224


def _random_encoder(name: str, allow_download: bool) -> Encoder:
    """Make a backbone from seed 0 without touching the caller's random state."""
    backbone_name, size_px = _split_size(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = make_backbone(backbone_name, image_size_px=size_px)
    encoded = safetensors.torch.save(_own_tensors(backbone))
    return Encoder(backbone.module, _describe(backbone_name, backbone, size_px, "random", encoded))


def _split_size(name: str) -> tuple[str, int]:
    """Part `BACKBONE:SIZE_PX`; the colon of `timm:NAME` belongs to the backbone."""
    backbone_name, colon, size = name.rpartition(":")
    if not colon or backbone_name == "timm":
        return name, _RANDOM_SIZE_PX
    if not size.isdecimal() or int(size) < _LEAST_SIZE_PX:
        raise CheckpointError(
            f"encoder 'random:{name}': size {size!r} is no number of pixels from {_LEAST_SIZE_PX} on; "
            "write random:BACKBONE:SIZE_PX"
        )
    return backbone_name, int(size)


def _torchvision_encoder(name: str, allow_download: bool) -> Encoder:
    backbone_name, _, file = name.partition(":")
    backbone = make_backbone(backbone_name)
    weights = Path(file) if file else _published_file(backbone_name, allow_download=allow_download)
    load_backbone_weights(backbone.module, read_state_dict(weights), source=str(weights))
    info = _describe(backbone_name, backbone, _TORCHVISION_SIZE_PX, "torchvision", weights.read_bytes())
    return Encoder(backbone.module, info)


def _published_file(name: str, *, allow_download: bool) -> Path:
    """Return torch hub's copy of torchvision's best weights of a network; only if allowed is it fetched."""
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if file.exists():
        return file
    if not allow_download:
        raise CheckpointError(
            f"encoder 'torchvision:{name}': names no file; write torchvision:{name}:FILE, or pass --allow-download"
        )
    try:
        torch.hub.load_state_dict_from_url(url, progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"encoder 'torchvision:{name}': cannot be fetched ({reason}); write torchvision:{name}:FILE"
        ) from error
    return file


def _timm_encoder(name: str, allow_download: bool) -> Encoder:
    """Make a network of timm with weights from a file, or with those that timm publishes under the name."""
    model, _, file = name.partition(":")
    if not file and not allow_download:
        raise CheckpointError(f"encoder 'timm:{name}': names no file; write timm:{name}:FILE, or pass --allow-download")
    backbone = make_backbone(f"timm:{model}")
    weights = read_state_dict(Path(file)) if file else _fetch_timm(model)
    load_backbone_weights(backbone.module, weights, source=file or f"timm:{model}")
    timm_data: Any = importlib.import_module("timm.data")
    config = timm_data.resolve_model_data_config(backbone.module)
    encoded = safetensors.torch.save(_own_tensors(backbone))
    info = _describe(f"timm:{model}", backbone, int(config["input_size"][-1]), "timm", encoded)
    channels: tuple[tuple[float, float, float], ...] = (tuple(config["mean"]), tuple(config["std"]))
    return Encoder(backbone.module, dataclasses.replace(info, mean=channels[0], std=channels[1]))


def _fetch_timm(model: str) -> dict[str, torch.Tensor]:
    timm: Any = importlib.import_module("timm")
    try:
        network = timm.create_model(model, pretrained=True, num_classes=0)
    # the hub's client reports a missing network, name or right as any of a dozen errors of its own
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"encoder 'timm:{model}': cannot be fetched ({reason}); write timm:{model}:FILE"
        ) from error
    weights: dict[str, torch.Tensor] = network.state_dict()
    return weights


def _own_tensors(backbone: Backbone) -> dict[str, torch.Tensor]:
    """Return the weights so that safetensors takes them: contiguous, none twice under two names."""
    return {key: value.detach().clone().contiguous() for key, value in backbone.module.state_dict().items()}


def _describe(name: str, backbone: Backbone, size_px: int, origin: str, encoded: bytes) -> EncoderInfo:
    return EncoderInfo(
        backbone=name,
        feature_dim=backbone.feature_dim,
        image_size_px=size_px,
        mpp=None,
        mean=_IMAGENET.mean,
        std=_IMAGENET.std,
        checkpoint_hash=hashlib.sha256(encoded).hexdigest(),
        patients=(),
        slides=(),
        objective=origin,
        steps=0,
        versions=package_versions(),
    )


ENCODER_SOURCES: Registry[EncoderSource] = Registry("encoder source")
ENCODER_SOURCES.add("random", _random_encoder)
ENCODER_SOURCES.add("torchvision", _torchvision_encoder)
ENCODER_SOURCES.add("timm", _timm_encoder)
