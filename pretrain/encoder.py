"""The product of pretraining: a frozen backbone, what it was made from, and features for tiles."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from simtriplet.pretrain.backbone import load_backbone_weights, make_backbone
from simtriplet.pretrain.checkpoint import read_checkpoint
from simtriplet.pretrain.precision import autocast, pick_precision
from simtriplet.pretrain.setting_rules import require
from simtriplet.pretrain.settings import PrecisionName
from simtriplet.pretrain.torch_archive import understanding
from simtriplet.wsi.disk_room import why_not_written
from simtriplet.wsi.errors import CheckpointError, SettingsError
from simtriplet.wsi.metadata import check_signed_json, read_regular_file, signed_json
from simtriplet.wsi.reach import exists, is_file, is_folder, leads_to_folder
from simtriplet.wsi.settings import build

__all__ = ["Encoder", "EncoderInfo", "load_encoder", "package_versions", "save_encoder"]

_PACKAGES = ("simtriplet", "torch", "torchvision", "numpy", "zarr")


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """What an encoder is and where it comes from; encoder.json.

    Attributes:
        backbone: a name of the backbone registry.
        feature_dim: length of a feature vector.
        image_size_px: side of the images it was trained on, made from whole tiles or crops of them.
        mpp: micrometres per pixel of the stored tiles it was trained on, None where it saw no slides.
        mean: per channel, subtracted from values in [0, 1].
        std: per channel, divided by.
        checkpoint_hash: SHA-256 of the weights file, hexadecimal.
        patients: whose tiles it was trained on.
        slides: likewise.
        objective: what it was trained with; "random", or "torchvision" or "timm" for weights in that library's names.
        steps: training steps.
        versions: of the packages that made it.
        tile_size_px: side of the stored tiles it was trained on, None where it saw none or an older version made it.
        initial_weights: name of the file that training started from, None where it started from random weights.
        initial_weights_hash: SHA-256 of that file, hexadecimal.
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
    tile_size_px: int | None = None
    initial_weights: str | None = None
    initial_weights_hash: str | None = None

    def __post_init__(self) -> None:
        for name, least, most in (("feature_dim", 1, 1 << 20), ("image_size_px", 1, 1 << 24), ("steps", 0, 1 << 60)):
            value = getattr(self, name)
            require(least <= value <= most, name, value, f"lie in {least}..{most}")
        for name in ("mpp", "tile_size_px"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, value, "be a positive number")
        require(all(map(math.isfinite, self.mean)), "mean", self.mean, "be finite")
        require(all(0 < value < math.inf for value in self.std), "std", self.std, "be positive numbers")

    @property
    def image_mpp(self) -> float | None:
        """Micrometres per pixel of a whole tile resized to the encoder's images; None where that is not known."""
        if self.mpp is None or self.tile_size_px is None:
            return None
        return self.mpp * self.tile_size_px / self.image_size_px

    def to_values(self) -> dict[str, Any]:
        """Return plain values; the opposite of `from_values`."""
        return {**dataclasses.asdict(self), "versions": dict(self.versions)}

    def to_json(self) -> str:
        """Return the text of encoder.json, which ends with its own checksum."""
        return signed_json(self.to_values(), indent=2)

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
            features: Tensor = self.backbone(self._prepare(pixels)).float()
        return features.clone()  # outside of inference mode, so that a head can be trained on them

    def _prepare(self, pixels: Tensor) -> Tensor:
        images = pixels.to(self.device).permute(0, 3, 1, 2)
        size = self.info.image_size_px
        if images.shape[2:] != (size, size) and len(images):
            # plane by plane, which resizes 128 to 64 px on a CPU in 119 us a tile, not 142; the network then has them as before
            planes = images.to(torch.float32, memory_format=torch.contiguous_format)
            resized = F.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)
            images = resized.contiguous(memory_format=torch.channels_last)
        else:
            images = images.float()
        return images.sub_(255 * self.get_buffer("mean")).div_(255 * self.get_buffer("std"))


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
        _replace_together(folder, {"encoder.json": info.to_json().encode(), "encoder.safetensors": encoded})
    except OSError as error:
        why = why_not_written(error, folder, needed=len(encoded))
        raise CheckpointError(f"encoder '{folder}': cannot be written ({why}); free space and resume") from error
    return info


def _replace_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Give files their names when all of them are whole: the description of an encoder is of no use with older weights.

    The last one comes last: where there are weights, a run has an encoder.
    """
    partials = {folder / f"{name}.partial": folder / name for name in files}
    try:
        for partial, data in zip(partials, files.values(), strict=True):
            partial.write_bytes(data)
        for partial, final in partials.items():
            os.replace(partial, final)
    except OSError:
        for partial in partials:
            with contextlib.suppress(OSError):
                partial.unlink()
        raise


def load_encoder(source: str | Path, *, allow_download: bool = False) -> Encoder:
    """Load an encoder.

    Args:
        source: a run folder, an encoder.safetensors file beside its encoder.json, a checkpoint of a run (.pt), or one of
            `random:BACKBONE[:SIZE_PX]` (seeded random weights, 128 px unless said), `torchvision:BACKBONE[:FILE]` (224 px)
            and `timm:NAME[:FILE]` (size and normalisation as timm has them); a FILE holds a state dict in the names of
            that library. Without one, weights that torchvision fetched before are taken.
        allow_download: fetch published weights where no FILE is given.

    Raises:
        CheckpointError: if there is no encoder, it is damaged or of another network, or would have to be fetched.
        UnknownNameError: if there is no such backbone.
        MissingDependencyError: if timm is asked for and not installed.
        UnreachableError: if the path is out of reach.
    """
    from simtriplet.pretrain.encoder_sources import ENCODER_SOURCES  # it makes encoders, so it imports this module

    kind, colon, rest = str(source).partition(":")
    if colon and kind in ENCODER_SOURCES and not exists(Path(source)):
        return ENCODER_SOURCES.get(kind)(rest, allow_download)
    path = Path(source)
    if path.suffix == ".pt":
        return _load_from_checkpoint(path)
    return _load_saved(path / "encoder.safetensors" if is_folder(path) else path)


def _load_from_checkpoint(file: Path) -> Encoder:
    """Take the backbone out of what a run saved to be resumed from, such as the best or a kept checkpoint."""
    state = read_checkpoint(file)
    prefix = "backbone."
    with understanding(file):
        weights = {key.removeprefix(prefix): value for key, value in state["model"].items() if key.startswith(prefix)}
        encoded = safetensors.torch.save({key: value.contiguous() for key, value in weights.items()})
        info = EncoderInfo.from_values(state["encoder"])
        info = dataclasses.replace(info, checkpoint_hash=hashlib.sha256(encoded).hexdigest())
    return _make_encoder(info, weights, file)


def _load_saved(file: Path) -> Encoder:
    if not is_file(file):
        unfinished = leads_to_folder(file.parent / "checkpoints")
        cure = "finish the run with --resume" if unfinished else "give a run folder or an encoder.safetensors file"
        raise CheckpointError(f"encoder '{file}': does not exist; {cure}")
    try:
        info = EncoderInfo.from_values(check_signed_json(read_regular_file(file.with_suffix(".json"))))
        encoded = file.read_bytes()
        weights = safetensors.torch.load(encoded)
    except (OSError, ValueError, KeyError, TypeError, MemoryError, safetensors.SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"encoder '{file}': cannot be read ({reason}); train or copy it again") from error
    if hashlib.sha256(encoded).hexdigest() != info.checkpoint_hash:
        raise CheckpointError(f"encoder '{file}': is not the file encoder.json describes; copy both again")
    return _make_encoder(info, weights, file)


def _make_encoder(info: EncoderInfo, weights: Mapping[str, Tensor], file: Path) -> Encoder:
    backbone = make_backbone(info.backbone, image_size_px=info.image_size_px)
    if backbone.feature_dim != info.feature_dim:
        raise CheckpointError(
            f"encoder '{file}': tells of {info.feature_dim} features, a {info.backbone} has {backbone.feature_dim}; copy it again"
        )
    load_backbone_weights(backbone.module, weights, source=str(file))
    return Encoder(backbone.module, info)
