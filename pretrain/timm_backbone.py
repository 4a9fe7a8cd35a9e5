"""The image networks of timm, where that package is installed."""

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from simtriplet.pretrain.backbone_type import Backbone
from simtriplet.wsi.errors import MissingDependencyError, SettingsError, UnknownNameError
from simtriplet.wsi.registry import nearest_name

__all__ = ["fit_timm_weights", "has_fixed_size", "make_timm_backbone", "timm_arguments"]


def make_timm_backbone(name: str, *, image_size_px: int | None = None) -> Backbone:
    """Make a network of timm with random weights and without its head; nothing is downloaded.

    Args:
        name: as timm.list_models() gives it.
        image_size_px: side of the images it will see; None: of those that timm made it for.

    Raises:
        MissingDependencyError: if timm is not installed.
        UnknownNameError: if timm has no network of that name.
        SettingsError: if it is made for images of one size, which cannot be this one.
    """
    timm = _import_timm(name)
    if not timm.is_model(name):
        hint = nearest_name(name, timm.list_models())
        raise UnknownNameError(f"backbone 'timm:{name}': is not known to timm {timm.__version__}{hint}")
    arguments = timm_arguments(name, image_size_px)
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    # each of a thousand networks has its own way to refuse a size; without one, an error is timm's
    except Exception as error:
        if not arguments:
            raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SettingsError(
            f"image size {image_size_px} px: timm:{name} cannot be made for it ({reason}); choose another data.image_size_px"
        ) from error
    return Backbone(network, int(getattr(network, "head_hidden_size", None) or network.num_features))


def _import_timm(name: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise MissingDependencyError(
            f"backbone 'timm:{name}': needs the package timm, which is not installed; install it, or use a ResNet"
        ) from error


def timm_arguments(name: str, image_size_px: int | None) -> dict[str, int]:
    """Return what timm.create_model has to be told for images of that side; nothing where a network takes any size.

    Raises:
        MissingDependencyError: if timm is not installed.
    """
    native = _fixed_size(name)
    return {} if image_size_px is None or native in (None, image_size_px) else {"img_size": image_size_px}


def has_fixed_size(name: str) -> bool:
    """Tell whether a network of timm takes images of the size only that it is made for, as most transformers do.

    Raises:
        MissingDependencyError: if timm is not installed.
    """
    return _fixed_size(name) is not None


def _fixed_size(name: str) -> int | None:
    """Return the side of the images that timm makes a network for, None where it takes others."""
    config = _import_timm(name).get_pretrained_cfg(name)
    return int(config.input_size[-1]) if getattr(config, "fixed_input_size", False) else None


def fit_timm_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return weights of a network of timm for images of another size, such as resampled position embeddings.

    Weights that fit already, and those of any other network, come back as they are.
    """
    kind = type(module).__module__
    own = module.state_dict()
    others = [key for key, value in weights.items() if key in own and own[key].shape != value.shape]
    adapt = getattr(sys.modules[kind], "checkpoint_filter_fn", None) if kind.startswith("timm.") else None
    if not others or adapt is None:
        return weights
    adapted: Mapping[str, Tensor] = adapt(dict(weights), module)
    return adapted
