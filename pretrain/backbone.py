"""The image networks: torchvision's ResNets without their classification layer, and timm's where it is installed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
import torchvision.models
from torch import Tensor, nn

from simtriplet.pretrain.backbone_type import Backbone
from simtriplet.pretrain.settings import ModelSettings
from simtriplet.pretrain.timm_backbone import fit_timm_weights, make_timm_backbone
from simtriplet.pretrain.torch_archive import load_pickle
from simtriplet.wsi.errors import CheckpointError, SettingsError
from simtriplet.wsi.registry import Registry

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneFactory",
    "check_backbone",
    "load_backbone_weights",
    "make_backbone",
    "read_state_dict",
]


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


def make_backbone(
    name: str,
    *,
    zero_init_residual: bool = False,
    weights: Path | None = None,
    image_size_px: int | None = None,
) -> Backbone:
    """Make a backbone with random weights, or with those of a local file; nothing is ever downloaded.

    Args:
        name: of the registry, or `timm:NAME` for one of timm's, where the package timm is installed.
        zero_init_residual: start residual branches at zero; timm's networks start as timm has it.
        weights: a file, see read_state_dict.
        image_size_px: side of the images it will see, for those of timm's networks that are made for one size; None:
            of those that timm made it for.

    Raises:
        UnknownNameError: if no backbone has that name.
        MissingDependencyError: if timm is asked for and not installed.
        CheckpointError: if the file is damaged or of another network.
        SettingsError: if the network cannot be made for images of that size.
    """
    library, colon, model = name.partition(":")
    from_timm = colon and library == "timm"
    of_timm = make_timm_backbone(model, image_size_px=image_size_px) if from_timm else None
    backbone = of_timm or BACKBONES.get(name)(zero_init_residual)
    if weights is not None:
        load_backbone_weights(backbone.module, read_state_dict(weights), source=str(weights))
    return backbone


def check_backbone(settings: ModelSettings, *, image_size_px: int) -> None:
    """Make sure, before a run begins rather than in its first step, that its backbone can be made.

    The random state stays as it is. One of timm's networks is shown an image too.

    Raises:
        UnknownNameError: if no backbone has that name.
        MissingDependencyError: if timm is asked for and not installed.
        CheckpointError: if the file it starts from is damaged or of another network.
        SettingsError: if the network takes no images of that size.
    """
    name = settings.backbone
    with torch.random.fork_rng(devices=[]):
        backbone = make_backbone(name, weights=settings.weights, image_size_px=image_size_px)
        if not name.startswith("timm:"):
            return
        try:
            with torch.inference_mode():
                backbone.module.eval()(torch.zeros(1, 3, image_size_px, image_size_px))
        # each of a thousand networks has its own way to refuse a size, AssertionError among them
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise SettingsError(
                f"data.image_size_px {image_size_px}: backbone {name!r} takes no such images ({reason}); choose another size"
            ) from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read weights from a .safetensors file, or from a state dict that torch saved; pickled objects are refused.

    Raises:
        CheckpointError: if it cannot be read as either.
    """
    try:
        if path.suffix == ".safetensors" and not path.is_fifo():
            return safetensors.torch.load_file(path)
        loaded = load_pickle(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"weights '{path}': do not exist; give a file of weights") from error
    # torch.load reports damage as any of several builtin errors, UnpicklingError among them
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"weights '{path}': cannot be read ({reason}); give a state dict of tensors") from error
    whole = isinstance(loaded, Mapping) and all(isinstance(key, str) for key in loaded)
    if not whole or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"weights '{path}': hold more than tensors; give a state dict of tensors")
    return cast("dict[str, Tensor]", dict(loaded))


def load_backbone_weights(module: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Load weights of torchvision's or timm's names into a backbone, leaving out the classification layer.

    What one of timm's networks keeps for images of one size is resampled where the file's size is another.

    Raises:
        CheckpointError: if they belong to another network.
    """
    own, heads = module.state_dict().keys(), _head_prefixes(module)
    kept = {key: value for key, value in weights.items() if key in own or not key.startswith(heads)}
    try:
        module.load_state_dict(fit_timm_weights(module, kept))
    # timm's resampling stumbles over the weights of another network in many ways
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"weights '{source}': are of another network ({reason}); name its backbone") from error


def _head_prefixes(module: nn.Module) -> tuple[str, ...]:
    """How the keys of a classification layer begin: torchvision's ResNets call it fc, timm's networks by many names."""
    named: Any = getattr(module, "pretrained_cfg", {}).get("classifier") or "fc"
    return tuple(f"{name}." for name in ([named] if isinstance(named, str) else named))
