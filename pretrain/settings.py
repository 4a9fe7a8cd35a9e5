"""Everything a pretraining run can be told, as frozen dataclasses; the defaults are the paper's recipe.

A run is a preset, then a TOML file laid over it, then `section.key=value` strings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from simtriplet.pretrain.run_settings import (
    CollapseRule,
    CompileChoice,
    CompiledPart,
    DeviceName,
    ExportFormat,
    NanRule,
    PrecisionName,
    RunSettings,
    Switch,
)
from simtriplet.pretrain.setting_rules import require, require_probability, require_range
from simtriplet.wsi.errors import UnknownNameError
from simtriplet.wsi.registry import nearest_name
from simtriplet.wsi.settings import build, merge, parse_assignments, read_toml

__all__ = [
    "Balance",
    "CollapseRule",
    "CompileChoice",
    "CompiledPart",
    "DataSettings",
    "DeviceName",
    "ExportFormat",
    "IsolatedRule",
    "LastNorm",
    "ModelSettings",
    "NanRule",
    "ObjectiveSettings",
    "OptimiserSettings",
    "PrecisionName",
    "PretrainSettings",
    "RunSettings",
    "StorageTier",
    "Switch",
    "ViewSettings",
    "load_settings",
    "preset_names",
]

IsolatedRule = Literal["self", "drop"]
StorageTier = Literal["auto", "device", "host", "stream"]
Balance = Literal["none", "slide"]
LastNorm = Literal["affine_free", "affine", "none"]


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Which pixels a triplet is made of.

    Attributes:
        image_size_px: side of a view, pixels; tiles of another stored size are resampled while the views are made.
        neighbours: name of the neighbour index in the stores.
        isolated: a tile without neighbours gives a third view of itself ("self"), or is left out ("drop").
        storage: where tiles wait: on the device, in host memory, in the stores, or picked by size.
        balance: "slide" lets each slide come as often as every other in each batch, whatever its size: small ones repeat.
        pair_weights: names of the pair-weight registry; a neighbour counts the product of them, 1 where there are none.
        similarity_features: name of the stored features that the pair weight "similarity" compares.
        regate_every_epochs: so often the pairs to draw from are chosen anew by the features being learnt; 0: never.
        regate_quantile: share of the pairs, the least similar ones, that such a choice leaves out until the next.
    """

    image_size_px: int = 128
    neighbours: str = "spatial"
    isolated: IsolatedRule = "self"
    storage: StorageTier = "auto"
    balance: Balance = "none"
    pair_weights: tuple[str, ...] = ()
    similarity_features: str | None = None
    regate_every_epochs: int = 0
    regate_quantile: float = 0.25

    def __post_init__(self) -> None:
        require(self.image_size_px >= 16, "data.image_size_px", self.image_size_px, "be at least 16")
        names, features = self.pair_weights, self.similarity_features
        require(len(set(names)) == len(names), "data.pair_weights", names, "name each weight once")
        known = bool(features) or "similarity" not in names
        require(known, "data.similarity_features", features, "name stored features for the pair weight 'similarity'")
        require(self.regate_every_epochs >= 0, "data.regate_every_epochs", self.regate_every_epochs, "be at least 0")
        require(0 <= self.regate_quantile < 1, "data.regate_quantile", self.regate_quantile, "lie in 0..1, below 1")


@dataclass(frozen=True, slots=True)
class ViewSettings:
    """How a view is drawn from a tile; every sample has its own parameters. The order is that of the fields.

    Attributes:
        crop_scale: area of the crop as a share of the tile, least and most.
        crop_ratio: width / height of the crop, least and most; must include 1.
        horizontal_flip_p: probability.
        vertical_flip_p: probability.
        rotations90: turn by 0, 90, 180 or 270 degrees, equally likely.
        stain_p: probability of a stain jitter: the concentrations of haematoxylin, eosin and residue are scaled, shifted.
        stain: s, the factors drawn from [1 - s, 1 + s] and the shifts from [-s, s], in optical density to base 10.
        jitter_p: probability of the four colour changes, made in random order.
        brightness: factor drawn from [max(0, 1 - b), 1 + b].
        contrast: likewise.
        saturation: likewise.
        hue: shift drawn from [-h, h], in turns of the colour circle (at most 0.5).
        grey_p: probability of grey.
        blur_p: probability of a Gaussian blur.
        blur_sigma_px: least and most, pixels of the view.
        mean: per channel, of values in [0, 1]; subtracted last.
        std: per channel; divided by last.
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    horizontal_flip_p: float = 0.5
    vertical_flip_p: float = 0.0
    rotations90: bool = False
    stain_p: float = 0.0
    stain: float = 0.05
    jitter_p: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        require_range("views.crop_scale", self.crop_scale, 0.01, 1)
        require_range("views.crop_ratio", self.crop_ratio, 0.1, 10)
        require(self.crop_ratio[0] <= 1 <= self.crop_ratio[1], "views.crop_ratio", self.crop_ratio, "include 1")
        for name in ("horizontal_flip_p", "vertical_flip_p", "stain_p", "jitter_p", "grey_p", "blur_p"):
            require_probability(f"views.{name}", getattr(self, name))
        for name in ("brightness", "contrast", "saturation"):
            require(getattr(self, name) >= 0, f"views.{name}", getattr(self, name), "be at least 0")
        require(0 <= self.stain <= 1, "views.stain", self.stain, "lie in 0..1")
        require(0 <= self.hue <= 0.5, "views.hue", self.hue, "lie in 0..0.5")
        require_range("views.blur_sigma_px", self.blur_sigma_px, 0.01, 20)
        require(min(self.std) > 0, "views.std", self.std, "be above 0")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The network.

    Attributes:
        backbone: a name of the backbone registry, or timm:NAME where the package timm is installed.
        weights: file of the weights to start from (torchvision key names), or None for random ones.
        projector_dim: width of the three projector layers and length of z.
        predictor_dim: width of the predictor's hidden layer.
        zero_init_residual: start every residual branch at zero, as the SimSiam authors do.
        last_norm: the projector's last batch normalisation: without learnt scale and shift, with, or none at all.
    """

    backbone: str = "resnet50"
    weights: Path | None = None
    projector_dim: int = 2048
    predictor_dim: int = 512
    zero_init_residual: bool = True
    last_norm: LastNorm = "affine_free"

    def __post_init__(self) -> None:
        for name in ("projector_dim", "predictor_dim"):
            require(getattr(self, name) >= 2, f"model.{name}", getattr(self, name), "be at least 2")


@dataclass(frozen=True, slots=True)
class ObjectiveSettings:
    """What is minimised.

    Attributes:
        name: a name of the objective registry.
        inter_weight: weight of the neighbour's term; at 0 the neighbour is neither read nor encoded.
        inter_warmup_epochs: linear rise of that weight from 0; may be a fraction; 0: none.
        invariance_weight: vicreg only, weight of the squared distance between views.
        variance_weight: vicreg only, weight of the hinge that keeps every dimension's deviation at 1.
        covariance_weight: vicreg only, weight of the squared covariance between dimensions.
        redundancy_weight: barlow only, weight of the squared correlation between dimensions (lambda).
    """

    name: str = "simtriplet"
    inter_weight: float = 1.0
    inter_warmup_epochs: float = 0.0
    invariance_weight: float = 25.0
    variance_weight: float = 25.0
    covariance_weight: float = 1.0
    redundancy_weight: float = 0.005

    def __post_init__(self) -> None:
        numbers = ["inter_weight", "inter_warmup_epochs"]
        numbers += ["invariance_weight", "variance_weight", "covariance_weight", "redundancy_weight"]
        for name in numbers:
            value = getattr(self, name)
            require(0 <= value < math.inf, f"objective.{name}", value, "be at least 0 and finite")


@dataclass(frozen=True, slots=True)
class OptimiserSettings:
    """Stochastic gradient descent with warm-up and cosine decay.

    Attributes:
        base_lr: learning rate for 256 triplets a batch; scaled with the batch.
        momentum: of SGD.
        weight_decay: on all parameters, as the SimSiam authors do.
        warmup_epochs: linear rise of the learning rate; may be a fraction.
        predictor_decay: decay the predictor's learning rate too (SimSiam section 4.2 keeps it constant).
    """

    base_lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_epochs: float = 10.0
    predictor_decay: bool = False

    def __post_init__(self) -> None:
        require(0 < self.base_lr < math.inf, "optimiser.base_lr", self.base_lr, "be above 0")
        require(0 <= self.momentum < 1, "optimiser.momentum", self.momentum, "lie in 0..1, below 1")
        require(self.weight_decay >= 0, "optimiser.weight_decay", self.weight_decay, "be at least 0")
        require(self.warmup_epochs >= 0, "optimiser.warmup_epochs", self.warmup_epochs, "be at least 0")


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """All of a run; `PretrainSettings()` is the preset `paper`."""

    data: DataSettings = field(default_factory=DataSettings)
    views: ViewSettings = field(default_factory=ViewSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        warmup, epochs = self.optimiser.warmup_epochs, self.run.epochs
        require(warmup < epochs, "optimiser.warmup_epochs", warmup, f"be below run.epochs ({epochs})")


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    folder = resources.files("simtriplet.pretrain") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_settings(
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    values: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> PretrainSettings:
    """Read settings: the preset (else the paper's recipe), the file laid over it, then the values, then the overrides.

    Args:
        preset: a name of `preset_names()`.
        file: TOML with the sections data, views, model, objective, optimiser, run.
        values: the same sections as nested mappings, such as a recipe's.
        overrides: `section.key=value`.

    Raises:
        UnknownNameError: if there is no such preset.
        SettingsError: if a file cannot be read, a key is unknown (the nearest is named) or a value is out of range.
    """
    laid = {} if preset is None else read_toml(_preset_path(preset))
    if file is not None:
        laid = merge(laid, read_toml(Path(file)))
        build(PretrainSettings, laid, source=f"settings file '{file}'")
    laid = merge(merge(laid, values or {}), parse_assignments(overrides))
    return build(PretrainSettings, laid, source="pretraining settings")


def _preset_path(name: str) -> Path:
    known = preset_names()
    if name not in known:
        listed = ", ".join(known)
        raise UnknownNameError(f"preset {name!r}: is not known{nearest_name(name, known)}; known are {listed}")
    return Path(str(resources.files("simtriplet.pretrain") / "presets" / f"{name}.toml"))
