"""A recipe: everything from slides to numbers in one TOML file, read into frozen dataclasses."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from simtriplet.evaluate.feature_array import check_feature_name
from simtriplet.pipelines.batch import SLIDE_TIMEOUT_S
from simtriplet.pipelines.index_steps import IndexRequest
from simtriplet.pretrain.settings import PrecisionName
from simtriplet.wsi.codec import CodecName
from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.geometry import TilingSpec
from simtriplet.wsi.quality import QualitySpec
from simtriplet.wsi.settings import build, merge, parse_assignments, read_toml
from simtriplet.wsi.tile_request import GridName, LabelSpec, OnDamage, TileRequest
from simtriplet.wsi.tissue import MASK_PREFIX, TissueSpec

__all__ = [
    "EmbedSection",
    "EvaluateSection",
    "PretrainSection",
    "Recipe",
    "SlidesSection",
    "StoreSection",
    "read_recipe",
    "relative_to_out",
]


@dataclass(frozen=True, slots=True)
class SlidesSection:
    """Which slides, and how to read them.

    Attributes:
        inputs: slide files, folders and manifest CSVs; relative to the recipe.
        recursive: take the slides in folders of folders too.
        annotations: folder of <slide_id>.geojson, or None.
        slide_mpp: micrometres per level-0 pixel where files are wrong or silent.
        reader: auto, tiff, openslide or tiffslide.
        on_damage: error, or skip: tiles that cannot be decoded are left out and listed in their store.
        workers: processes on this machine.
        scheduler: address of a running Dask scheduler, instead.
        timeout_s: a slide that takes longer to tile has failed; 0 waits for ever.
    """

    inputs: tuple[Path, ...]
    recursive: bool = False
    annotations: Path | None = None
    slide_mpp: float | None = None
    reader: str = "auto"
    on_damage: OnDamage = "error"
    workers: int = 1
    scheduler: str | None = None
    timeout_s: float = SLIDE_TIMEOUT_S

    def __post_init__(self) -> None:
        if not self.inputs:
            raise SettingsError("slides.inputs []: must name slides; add a file, folder or manifest")
        if self.workers < 1:
            raise SettingsError(f"slides.workers {self.workers}: must be at least 1; correct it")
        if not 0 <= self.timeout_s < math.inf:
            raise SettingsError(f"slides.timeout_s {self.timeout_s}: must be 0 (none) or seconds; correct it")


@dataclass(frozen=True, slots=True)
class StoreSection:
    """How tiles are stored.

    Attributes:
        grid: mpp, or native: the slide's own JPEG tiles, copied.
        codec: none, zstd or jpeg.
        jpeg_quality: 1..100.
    """

    grid: GridName = "mpp"
    codec: CodecName = "none"
    jpeg_quality: int = 90


@dataclass(frozen=True, slots=True)
class PretrainSection:
    """How the encoder is trained: a preset, changed by the same sections as a pretraining settings file.

    Attributes:
        preset: paper, pathology or quick.
        exclude_patients: left out of pretraining, for an inductive test.
        data: see simtriplet.pretrain.settings; likewise the others.
    """

    preset: str = "paper"
    exclude_patients: tuple[str, ...] = ()
    data: Any = field(default_factory=dict)
    views: Any = field(default_factory=dict)
    model: Any = field(default_factory=dict)
    objective: Any = field(default_factory=dict)
    optimiser: Any = field(default_factory=dict)
    run: Any = field(default_factory=dict)

    def changes(self) -> dict[str, Any]:
        """Return the sections to lay over the preset."""
        names = ("data", "views", "model", "objective", "optimiser", "run")
        return {name: getattr(self, name) for name in names if getattr(self, name)}


@dataclass(frozen=True, slots=True)
class EmbedSection:
    """How tiles become features.

    Attributes:
        name: of the features in the stores.
        batch_size: tiles a batch.
        device: auto, cpu, cuda.
        precision: auto, bf16, fp16, fp32.
        baseline: also embed with the same network at its random start, to compare with.
    """

    name: str = "simtriplet"
    batch_size: int = 256
    device: str = "auto"
    precision: PrecisionName = "auto"
    baseline: bool = True

    def __post_init__(self) -> None:
        check_feature_name(self.name)  # now, not after hours of training


@dataclass(frozen=True, slots=True)
class EvaluateSection:
    """How features are measured.

    Attributes:
        labels: CSV by slide or tile; without one the annotations' labels are used.
        label_column: of the CSV, or of the stores.
        patient_column: of the CSV.
        protocol: linear, knn or paper.
        folds: of patients; without it 5, or as many as the rarest class has patients.
        seed: of folds, protocol and bootstrap.
    """

    labels: Path | None = None
    label_column: str = "label"
    patient_column: str | None = None
    protocol: str = "linear"
    folds: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """The whole job.

    Attributes:
        slides: which slides.
        out: folder of all results; relative to the recipe.
        tiling: lattice of tiles.
        tissue: how tissue is found.
        quality: which tiles are good enough.
        labels: how annotations become tile labels.
        store: how tiles are stored.
        index: how tiles become neighbours.
        pretrain: how the encoder is trained.
        embed: how tiles become features.
        evaluate: how features are measured.
    """

    slides: SlidesSection
    out: Path = Path("results")
    tiling: TilingSpec = field(default_factory=TilingSpec)
    tissue: TissueSpec = field(default_factory=TissueSpec)
    quality: QualitySpec = field(default_factory=QualitySpec)
    labels: LabelSpec = field(default_factory=LabelSpec)
    store: StoreSection = field(default_factory=StoreSection)
    index: IndexRequest = field(default_factory=IndexRequest)
    pretrain: PretrainSection = field(default_factory=PretrainSection)
    embed: EmbedSection = field(default_factory=EmbedSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)

    def tile_request(self) -> TileRequest:
        """Return what shapes the stores."""
        return TileRequest(
            tiling=self.tiling,
            tissue=self.tissue,
            quality=self.quality,
            labels=self.labels,
            grid=self.store.grid,
            codec=self.store.codec,
            jpeg_quality=self.store.jpeg_quality,
            reader=self.slides.reader,
            on_damage=self.slides.on_damage,
        )


def relative_to_out(recipe: Recipe) -> Recipe:
    """Return the recipe with its paths relative to `recipe.out`: written there, it runs from there."""

    def relative(path: Path | None) -> Path | None:
        return None if path is None else Path(os.path.relpath(path, recipe.out))

    inputs = tuple(Path(os.path.relpath(path, recipe.out)) for path in recipe.slides.inputs)
    slides = replace(recipe.slides, inputs=inputs, annotations=relative(recipe.slides.annotations))
    index = replace(recipe.index, annotations=relative(recipe.index.annotations))
    evaluate = replace(recipe.evaluate, labels=relative(recipe.evaluate.labels))
    mask, weights = relative(recipe.tissue.mask_path), recipe.pretrain.model.get("weights")
    tissue = recipe.tissue if mask is None else replace(recipe.tissue, detector=f"{MASK_PREFIX}{mask}")
    model = recipe.pretrain.model | ({} if weights is None else {"weights": str(relative(Path(weights)))})
    pretrain = replace(recipe.pretrain, model=model)
    return replace(recipe, out=Path(), slides=slides, tissue=tissue, index=index, pretrain=pretrain, evaluate=evaluate)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; its paths are relative to the file.

    Raises:
        SettingsError: if it cannot be read, a key is unknown (the nearest is named) or a value is out of range.
    """
    values = merge(_resolve(read_toml(path), path.parent), parse_assignments(overrides))
    return build(Recipe, values, source=f"recipe '{path}'")


def _resolve(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths of a recipe independent of where the command is run."""

    def absolute(value: Any) -> Any:
        return str(folder / value) if isinstance(value, str) else value

    resolved = {**values, "out": absolute(values.get("out", "results"))}
    slides = values.get("slides")
    if isinstance(slides, dict):
        inputs = slides.get("inputs")
        resolved["slides"] = {key: absolute(value) if key == "annotations" else value for key, value in slides.items()}
        if isinstance(inputs, list):
            resolved["slides"]["inputs"] = [absolute(item) for item in inputs]
        elif isinstance(inputs, str):
            resolved["slides"]["inputs"] = [absolute(inputs)]
    for section, key in (("index", "annotations"), ("evaluate", "labels")):
        given = values.get(section)
        if isinstance(given, dict) and key in given:
            resolved[section] = {**given, key: absolute(given[key])}
    tissue, pretrain = values.get("tissue"), values.get("pretrain")
    mask = str(tissue.get("detector")).removeprefix(MASK_PREFIX) if isinstance(tissue, dict) else ""
    if isinstance(tissue, dict) and mask and tissue.get("detector") == MASK_PREFIX + mask:
        resolved["tissue"] = {**tissue, "detector": MASK_PREFIX + absolute(mask)}
    model = pretrain.get("model") if isinstance(pretrain, dict) else None
    if isinstance(pretrain, dict) and isinstance(model, dict) and "weights" in model:
        resolved["pretrain"] = {**pretrain, "model": {**model, "weights": absolute(model["weights"])}}
    return resolved
