"""Tile stores in, encoder out. Importing this package loads no torch; its names do, when they are first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simtriplet.pretrain.encoder import Encoder, EncoderInfo, load_encoder
    from simtriplet.pretrain.result import PretrainResult
    from simtriplet.pretrain.settings import PretrainSettings, load_settings
    from simtriplet.pretrain.step_log import StepReport
    from simtriplet.pretrain.trainer import pretrain
    from simtriplet.pretrain.triplet_dataset import Triplet, TripletDataset

__all__ = [
    "Encoder",
    "EncoderInfo",
    "PretrainResult",
    "PretrainSettings",
    "StepReport",
    "Triplet",
    "TripletDataset",
    "load_encoder",
    "load_settings",
    "pretrain",
]

_HOMES = {
    "Encoder": "encoder",
    "EncoderInfo": "encoder",
    "PretrainResult": "result",
    "PretrainSettings": "settings",
    "StepReport": "step_log",
    "Triplet": "triplet_dataset",
    "TripletDataset": "triplet_dataset",
    "load_encoder": "encoder",
    "load_settings": "settings",
    "pretrain": "trainer",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
