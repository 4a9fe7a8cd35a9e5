"""Settings and a small backbone that let real training runs take a fraction of a second."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from simtriplet.pretrain.backbone import BACKBONES, Backbone
from simtriplet.pretrain.settings import PretrainSettings, load_settings


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Two busy threads on a shared core wait for each other more than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def small_backbone() -> None:
    """Register `small`, two convolutions with batch normalisation, through the extension point."""

    def make(zero_init_residual: bool) -> Backbone:
        layers = [nn.Conv2d(3, 16, 5, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        layers += [nn.Conv2d(16, 32, 3, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        return Backbone(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 32)

    if "small" not in BACKBONES:
        BACKBONES.add("small", make)


SettingsMaker = Callable[..., PretrainSettings]


@pytest.fixture
def make_settings() -> SettingsMaker:
    """Return a maker of settings: two epochs of three steps on 24 tiles, changed by `section.key=value` strings."""

    def make(*overrides: str) -> PretrainSettings:
        small = [
            "data.image_size_px=32",
            "model.backbone=small",
            "model.projector_dim=16",
            "model.predictor_dim=8",
            "optimiser.warmup_epochs=0.5",
            "run.epochs=2",
            "run.batch_size=8",
            "run.device=cpu",
            "run.log_every_steps=1",
            "run.checkpoint_every_epochs=1",
        ]
        return load_settings(overrides=[*small, *overrides])

    return make


class _Timid(nn.Module):
    """Draws a random number in every pass, evaluation included, as no well-behaved layer would."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 5, 4, bias=False), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layers(images).mean(dim=(2, 3))
        return features + 0.01 * torch.randn_like(features)


@pytest.fixture(scope="session")
def timid_backbone() -> None:
    """Register `timid`."""
    if "timid" not in BACKBONES:
        BACKBONES.add("timid", lambda zero_init_residual: Backbone(_Timid(), 8))


@pytest.fixture(scope="session")
def assert_same() -> Callable[..., None]:
    """Return a comparison of nested states, tensors bit for bit, that names the first difference."""
    return _assert_same


def _assert_same(one: Any, other: Any, path: str = "state") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            _assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            _assert_same(a, b, f"{path}[{i}]")
    else:
        assert one == other, path
