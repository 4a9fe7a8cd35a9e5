"""The product of pretraining: a frozen backbone, what it was made from, and features for tiles."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from simtriplet.pretrain.backbone import load_backbone_weights, make_backbone, read_state_dict
from simtriplet.pretrain.checkpoint import read_checkpoint
from simtriplet.pretrain.precision import autocast, pick_precision
from simtriplet.pretrain.settings import PrecisionName, ViewSettings
from simtriplet.wsi.errors import CheckpointError, SettingsError
from simtriplet.wsi.registry import Registry
from simtriplet.wsi.settings import build

__all__ = ["ENCODER_SOURCES", "Encoder", "EncoderInfo", "load_encoder", "package_versions", "save_encoder"]

_IMAGENET = ViewSettings()
_PACKAGES = ("simtriplet", "torch", "torchvision", "numpy", "zarr")


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """What an encoder is and where it comes from; encoder.json.

    Attributes:
        backbone: a name of the backbone registry.
        feature_dim: length of a feature vector.
        image_size_px: side of the images it was trained on.
        mpp: micrometres per pixel of the tiles it was trained on, None where it saw no slides.
        mean: per channel, subtracted from values in [0, 1].
        std: per channel, divided by.
        checkpoint_hash: SHA-256 of the weights file, hexadecimal.
        patients: whose tiles it was trained on.
        slides: likewise.
        objective: what it was trained with; "random", or "torchvision" for a file of the user's.
        steps: training steps.
        versions: of the packages that made it.
    """

    backbone: str
    feature_dim: int
    image_size_px: int
    mpp: float | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    checkpoint_hash: str
    patients: tuple[str, ...]
    slides: tuple[str, ...]
    objective: str
    steps: int
    versions: tuple[tuple[str, str], ...]

    def to_values(self) -> dict[str, Any]:
        """Return plain values; the opposite of `from_values`."""
        return {**dataclasses.asdict(self), "versions": dict(self.versions)}

    def to_json(self) -> str:
        """Return the text of encoder.json."""
        return json.dumps(self.to_values(), indent=2) + "\n"

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "EncoderInfo":
        """Read plain values.

        Raises:
            SettingsError: if they are not those of an encoder.
        """
        try:
            versions = list(values["versions"].items())
        except (TypeError, KeyError, AttributeError) as error:
            raise SettingsError("encoder: has no mapping of versions; copy it again") from error
        return build(cls, {**values, "versions": versions}, source="encoder.json")


class Encoder(nn.Module):
    """A backbone in evaluation mode.

    Args:
        backbone: (n, 3, s, s) float to (n, feature_dim).
        info: what it is.
    """

    def __init__(self, backbone: nn.Module, info: EncoderInfo) -> None:
        super().__init__()
        self.backbone = backbone
        self.info = info
        self.register_buffer("mean", torch.tensor(info.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(info.std)[:, None, None], persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, feature_dim) of (n, 3, s, s) normalised images."""
        features: Tensor = self.backbone(images)
        return features

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def embed(self, tiles: npt.NDArray[np.uint8] | Tensor, *, precision: PrecisionName = "fp32") -> Tensor:
        """Return features of tiles, resized with antialiasing where they are not of the trained size.

        Args:
            tiles: (n, s, s, 3) uint8 RGB, on any device.
            precision: of the network.

        Returns:
            (n, feature_dim) float32, on the encoder's device.

        Raises:
            ValueError: if the tiles are of another shape or type.
        """
        pixels = torch.as_tensor(tiles)
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise ValueError(f"tiles {tuple(pixels.shape)} {pixels.dtype}: must be (n, s, s, 3) uint8; pass RGB tiles")
        if self.training:  # batch statistics of the tiles themselves would leak from one tile into another
            self.eval()
        picked = pick_precision(precision, self.device)
        with torch.inference_mode(), autocast(self.device, picked):
            features: Tensor = self.backbone(self._prepare(pixels))
            return features.float()

    def _prepare(self, pixels: Tensor) -> Tensor:
        images = pixels.to(self.device).permute(0, 3, 1, 2).float() / 255
        size = self.info.image_size_px
        if images.shape[2:] != (size, size) and len(images):
            images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        return (images - self.get_buffer("mean")) / self.get_buffer("std")


def package_versions() -> tuple[tuple[str, str], ...]:
    """Return (package, version) of what shapes an encoder; a package run from a plain folder has no version."""
    versions = []
    for name in _PACKAGES:
        try:
            versions.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(versions)


def save_encoder(folder: Path, backbone: nn.Module, info: EncoderInfo) -> EncoderInfo:
    """Write encoder.safetensors (torchvision's key names) and encoder.json into `folder`.

    Args:
        folder: exists.
        backbone: without a head.
        info: everything but the hash, which is computed here.

    Returns:
        The info with the hash of the file.

    Raises:
        CheckpointError: if the disk is full or fails.
    """
    weights = {key: value.detach().contiguous().cpu() for key, value in backbone.state_dict().items()}
    encoded = safetensors.torch.save(weights)
    info = dataclasses.replace(info, checkpoint_hash=hashlib.sha256(encoded).hexdigest())
    try:
        _replace(folder / "encoder.safetensors", encoded)
        _replace(folder / "encoder.json", info.to_json().encode())
    except OSError as error:
        raise CheckpointError(f"encoder '{folder}': cannot be written ({error.strerror}); free space") from error
    return info


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def load_encoder(source: str | Path) -> Encoder:
    """Load an encoder.

    Args:
        source: a run folder, an encoder.safetensors file beside its encoder.json, a checkpoint of a run (.pt),
            `random:BACKBONE[:SIZE_PX]` (seeded random weights, 128 px unless said), or `torchvision:BACKBONE:FILE` (a
            state dict in torchvision's names, 224 px).

    Raises:
        CheckpointError: if there is no encoder, or it is damaged or of another network.
        UnknownNameError: if there is no such backbone.
    """
    kind, colon, rest = str(source).partition(":")
    if colon and kind in ENCODER_SOURCES and not Path(source).exists():
        return ENCODER_SOURCES.get(kind)(rest)
    path = Path(source)
    if path.suffix == ".pt":
        return _load_from_checkpoint(path)
    return _load_saved(path / "encoder.safetensors" if path.is_dir() else path)


def _load_from_checkpoint(file: Path) -> Encoder:
    """Take the backbone out of what a run saved to be resumed from, such as the best or a kept checkpoint."""
    state = read_checkpoint(file)
    prefix = "backbone."
    weights = {key.removeprefix(prefix): value for key, value in state["model"].items() if key.startswith(prefix)}
    encoded = safetensors.torch.save({key: value.contiguous() for key, value in weights.items()})
    info = EncoderInfo.from_values(state["encoder"])
    info = dataclasses.replace(info, checkpoint_hash=hashlib.sha256(encoded).hexdigest())
    backbone = make_backbone(info.backbone)
    load_backbone_weights(backbone.module, weights, source=str(file))
    return Encoder(backbone.module, info)


def _load_saved(file: Path) -> Encoder:
    if not file.exists():
        unfinished = (file.parent / "checkpoints").is_dir()
        cure = "finish the run with --resume" if unfinished else "give a run folder or an encoder.safetensors file"
        raise CheckpointError(f"encoder '{file}': does not exist; {cure}")
    try:
        info = EncoderInfo.from_values(json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
        encoded = file.read_bytes()
        weights = safetensors.torch.load(encoded)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"encoder '{file}': cannot be read ({reason}); train or copy it again") from error
    if hashlib.sha256(encoded).hexdigest() != info.checkpoint_hash:
        raise CheckpointError(f"encoder '{file}': is not the file encoder.json describes; copy both again")
    backbone = make_backbone(info.backbone)
    load_backbone_weights(backbone.module, weights, source=str(file))
    return Encoder(backbone.module, info)


def _unpretrained_info(backbone: str, feature_dim: int, size_px: int, origin: str, encoded: bytes) -> EncoderInfo:
    return EncoderInfo(
        backbone=backbone,
        feature_dim=feature_dim,
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


def _random_encoder(name: str) -> Encoder:
    """Make a backbone from seed 0 without touching the caller's random state."""
    backbone_name, _, size = name.partition(":")
    if size and not size.isdecimal():
        raise CheckpointError(f"encoder 'random:{name}': size {size!r} is no number; write random:BACKBONE:SIZE_PX")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = make_backbone(backbone_name)
    encoded = safetensors.torch.save(dict(backbone.module.state_dict()))
    info = _unpretrained_info(backbone_name, backbone.feature_dim, int(size or 128), "random", encoded)
    return Encoder(backbone.module, info)


def _torchvision_encoder(name: str) -> Encoder:
    backbone_name, _, file = name.partition(":")
    if not file:
        raise CheckpointError(f"encoder 'torchvision:{name}': names no file; write torchvision:BACKBONE:FILE")
    backbone = make_backbone(backbone_name)
    load_backbone_weights(backbone.module, read_state_dict(Path(file)), source=file)
    info = _unpretrained_info(backbone_name, backbone.feature_dim, 224, "torchvision", Path(file).read_bytes())
    return Encoder(backbone.module, info)


ENCODER_SOURCES: Registry[Callable[[str], Encoder]] = Registry("encoder source")
ENCODER_SOURCES.add("random", _random_encoder)
ENCODER_SOURCES.add("torchvision", _torchvision_encoder)
