"""The image networks: torchvision's ResNets without their classification layer, and timm's where it is installed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import safetensors
import safetensors.torch
import torch
import torchvision.models
from torch import Tensor, nn

from simtriplet.pretrain.backbone_type import Backbone
from simtriplet.pretrain.timm_backbone import make_timm_backbone
from simtriplet.wsi.errors import CheckpointError
from simtriplet.wsi.registry import Registry

__all__ = ["BACKBONES", "Backbone", "BackboneFactory", "load_backbone_weights", "make_backbone", "read_state_dict"]


BackboneFactory = Callable[[bool], Backbone]
"""Make a randomly initialised backbone; the argument asks for residual branches that start at zero."""

BACKBONES: Registry[BackboneFactory] = Registry("backbone")


def _resnet_factory(name: str) -> BackboneFactory:
    def make(zero_init_residual: bool) -> Backbone:
        network = getattr(torchvision.models, name)(weights=None, zero_init_residual=zero_init_residual)
        feature_dim = int(network.fc.in_features)
        network.fc = nn.Identity()  # keeps torchvision's key names for everything that is left
        return Backbone(network, feature_dim)

    return make


for _name in ("resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2"):
    BACKBONES.add(_name, _resnet_factory(_name))


def make_backbone(name: str, *, zero_init_residual: bool = False, weights: Path | None = None) -> Backbone:
    """Make a backbone with random weights, or with those of a local file; nothing is ever downloaded.

    Args:
        name: of the registry, or `timm:NAME` for one of timm's, where the package timm is installed.
        zero_init_residual: start residual branches at zero; timm's networks start as timm has it.
        weights: a file, see read_state_dict.

    Raises:
        UnknownNameError: if no backbone has that name.
        MissingDependencyError: if timm is asked for and not installed.
        CheckpointError: if the file is damaged or of another network.
    """
    library, colon, model = name.partition(":")
    from_timm = colon and library == "timm"
    backbone = make_timm_backbone(model) if from_timm else BACKBONES.get(name)(zero_init_residual)
    if weights is not None:
        load_backbone_weights(backbone.module, read_state_dict(weights), source=str(weights))
    return backbone


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read weights from a .safetensors file, or from a state dict that torch saved; pickled objects are refused.

    Raises:
        CheckpointError: if it cannot be read as either.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"weights '{path}': do not exist; give a file of weights") from error
    # torch.load reports damage as any of several builtin errors, UnpicklingError among them
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"weights '{path}': cannot be read ({reason}); give a state dict of tensors") from error
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"weights '{path}': hold more than tensors; give a state dict of tensors")
    return cast("dict[str, Tensor]", dict(loaded))


def load_backbone_weights(module: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Load torchvision-named weights into a backbone, leaving out the classification layer.

    Raises:
        CheckpointError: if they belong to another network.
    """
    kept = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    try:
        module.load_state_dict(kept)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"weights '{source}': are of another network ({reason}); name its backbone") from error
