"""The image networks of timm, where that package is installed."""

import importlib
from typing import Any

from simtriplet.pretrain.backbone_type import Backbone
from simtriplet.wsi.errors import MissingDependencyError, UnknownNameError
from simtriplet.wsi.registry import nearest_name

__all__ = ["make_timm_backbone"]


def make_timm_backbone(name: str) -> Backbone:
    """Make a network of timm with random weights and without its head; nothing is downloaded.

    Args:
        name: as timm.list_models() gives it. A network for images of one size only, as most transformers are, needs
            data.image_size_px to be that size.

    Raises:
        MissingDependencyError: if timm is not installed.
        UnknownNameError: if timm has no network of that name.
    """
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError as error:
        raise MissingDependencyError(
            f"backbone 'timm:{name}': needs the package timm, which is not installed; install it, or use a ResNet"
        ) from error
    if not timm.is_model(name):
        hint = nearest_name(name, timm.list_models())
        raise UnknownNameError(f"backbone 'timm:{name}': is not known to timm {timm.__version__}{hint}")
    network = timm.create_model(name, pretrained=False, num_classes=0)
    return Backbone(network, int(getattr(network, "head_hidden_size", None) or network.num_features))
