"""What the study does: how tiles are cut, which of them are neighbours, what is trained on them, and how large it all is."""

from dataclasses import dataclass, field
from typing import Literal

from simtriplet.pipelines.index_steps import IndexRequest

ScaleName = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True)
class TilePlanOfStudy:
    """One way to cut the slides.

    Attributes:
        name: of its folder; the side of a tile in micrometres.
        mpp: micrometres per stored pixel.
        size_px: side of a tile.
        stride_px: pitch of the lattice.
        step: every so many-th tile in each direction is evaluated, so that those do not overlap.
    """

    name: str
    mpp: float
    size_px: int
    stride_px: int
    step: int

    @property
    def side_um(self) -> float:
        """Side of a tile."""
        return self.mpp * self.size_px


@dataclass(frozen=True, slots=True)
class Pairing:
    """One choice of neighbours on one kind of tiles.

    Attributes:
        name: of the index.
        title: for tables.
        tiles: name of the TilePlanOfStudy.
        request: how the index is built.
        at_borders: whether pairs across an annotated border are left out, which needs labels: a bound, not a method.
    """

    name: str
    title: str
    tiles: str
    request: IndexRequest
    at_borders: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """One way to learn an encoder without labels.

    Attributes:
        name: short.
        title: for tables.
        family: two-view methods are compared with triplet methods of the same family.
        uses_neighbour: whether the objective has a neighbour's term.
        overrides: settings over the base.
    """

    name: str
    title: str
    family: Literal["stop-gradient", "variance"]
    uses_neighbour: bool
    overrides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the study is.

    Attributes:
        base: settings of every run.
        steps: optimiser steps of every run.
        folds: folds of patients; every fold has a seed of its own.
        curve_folds: how many of them also train for the purity curve.
        draws: draws of labels.
        supervised_steps: of a network trained with labels.
    """

    base: tuple[str, ...]
    steps: int
    folds: int
    curve_folds: int
    draws: int
    supervised_steps: int
    preset: str = "pathology"


TILES = {
    plan.name: plan
    for plan in (
        TilePlanOfStudy("30um", 0.62005, 48, 48, 1),
        TilePlanOfStudy("60um", 0.93, 64, 32, 2),
        TilePlanOfStudy("119um", 1.86, 64, 32, 2),
    )
}

PAIRINGS = {
    pairing.name: pairing
    for pairing in (
        Pairing("grid60", "adjacent", "60um", IndexRequest(name="grid60")),
        Pairing("grid30", "adjacent", "30um", IndexRequest(name="grid30")),
        Pairing("grid119", "adjacent", "119um", IndexRequest(name="grid119")),
        Pairing("far60", "120 to 180 um away", "60um", IndexRequest("ring", inner_um=120, radius_um=180, name="far60")),
        Pairing("border60", "adjacent, same annotation", "60um", IndexRequest(name="border60"), at_borders=True),
    )
}
MAIN_PAIRING = "grid60"

_STOP_GRADIENT = ("objective.name=simtriplet", "model.last_norm=affine_free")
_VARIANCE = (
    "objective.name=vicreg",
    "model.last_norm=none",
    "model.projector_dim=128",
    "objective.invariance_weight=5",
    "optimiser.base_lr=0.05",  # at 0.2 and 512 dimensions the loss was not finite after 28 steps
)
METHODS = {
    method.name: method
    for method in (
        Method("simsiam", "SimSiam", "stop-gradient", False, (*_STOP_GRADIENT, "objective.inter_weight=0")),
        Method("simtriplet", "SimTriplet", "stop-gradient", True, (*_STOP_GRADIENT, "objective.inter_weight=1")),
        Method("vicreg2", "VICReg, two views", "variance", False, (*_VARIANCE, "objective.inter_weight=0")),
        Method("vicreg3", "VICReg triplet", "variance", True, (*_VARIANCE, "objective.inter_weight=0.5")),
    )
}

SCALES: dict[ScaleName, Scale] = {
    "cpu": Scale(
        base=(
            "model.backbone=resnet18",
            "model.projector_dim=512",
            "model.predictor_dim=128",
            "data.image_size_px=48",
            "run.batch_size=128",
            "run.precision=bf16",
            "data.regate_every_epochs=0",
            "optimiser.warmup_epochs=1",
            "optimiser.base_lr=0.2",
        ),
        steps=300,
        folds=4,
        curve_folds=1,
        draws=5,
        supervised_steps=150,
    ),
    "gpu": Scale(
        base=(
            "model.backbone=resnet50",
            "data.image_size_px=128",
            "run.batch_size=128",
            "data.regate_every_epochs=0",
        ),
        steps=20_000,
        folds=4,
        curve_folds=4,
        draws=10,
        supervised_steps=4_000,
    ),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One encoder to train.

    Attributes:
        method: name in METHODS.
        pairing: name in PAIRINGS.
        fold: which patients are left out; the seed too.
    """

    method: str
    pairing: str
    fold: int
    name: str = field(init=False)

    def __post_init__(self) -> None:
        used = self.pairing if METHODS[self.method].uses_neighbour else PAIRINGS[self.pairing].tiles
        object.__setattr__(self, "name", f"{self.method}-{used}-fold{self.fold}")


def plan_runs(scale: Scale) -> list[Run]:
    """Return every run once: first the comparison of methods fold by fold, then what the purity curve needs beyond it."""
    runs = [Run(method, MAIN_PAIRING, fold) for fold in range(scale.folds) for method in METHODS]
    runs += [
        Run(method, pairing, fold) for fold in range(scale.curve_folds) for pairing in PAIRINGS for method in METHODS
    ]
    return list({run.name: run for run in runs}.values())
