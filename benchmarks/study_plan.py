"""What the study does: how tiles are cut, which of them are neighbours, what is trained on them, and how large it all is."""

from dataclasses import dataclass, field
from typing import Literal

from simtriplet.pipelines.index_steps import IndexRequest

ScaleName = Literal["cpu", "gpu", "tiny"]


TISSUE_VIEWS = (
    "views.crop_scale=[0.4, 1.0]",
    "views.vertical_flip_p=0.5",
    "views.rotations90=true",
    "views.stain_p=0.8",
    "views.stain=0.1",
    "views.brightness=0.3",
    "views.contrast=0.3",
    "views.saturation=0.3",
    "views.hue=0",
    "views.grey_p=0",
    "views.blur_p=0.3",
)
"""Over those of the paper, which are the defaults; written out, so that the study stays what it was when a preset changes."""


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
class Network:
    """One way to train a whole network with labels.

    Attributes:
        title: for tables.
        start: the method whose encoder it starts from; without one, random weights.
    """

    title: str
    start: str


@dataclass(frozen=True, slots=True)
class Method:
    """One way to learn an encoder without labels.

    Attributes:
        name: short.
        title: for tables.
        family: two-view methods are compared with triplet methods of the same family.
        uses_neighbour: whether the objective has a neighbour's term.
        overrides: settings over the base.
        mends: for a remedy, the method it tries to better: it is trained on the main pairing alone, after the others.
        times_steps: how many times the steps of the scale it is trained for.
        views: settings of the views.
    """

    name: str
    title: str
    family: Literal["stop-gradient", "variance"]
    uses_neighbour: bool
    overrides: tuple[str, ...]
    mends: str = ""
    times_steps: int = 1
    views: tuple[str, ...] = TISSUE_VIEWS


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
        Pairing("far60", "120 to 180 um away", "60um", IndexRequest("ring", inner_um=120, radius_um=180, name="far60")),
        Pairing("border60", "adjacent, same annotation", "60um", IndexRequest(name="border60"), at_borders=True),
        Pairing("grid30", "adjacent", "30um", IndexRequest(name="grid30")),
        Pairing("grid119", "adjacent", "119um", IndexRequest(name="grid119")),
    )
}
MAIN_PAIRING = "grid60"
NETWORKS = {
    "supervised": Network("supervised from scratch", ""),
    "finetuned": Network("VICReg triplet, fine-tuned", "vicreg3"),
}
RANDOM = "random"
"""Name of the features of random weights."""

_STOP_GRADIENT = ("objective.name=simtriplet", "model.last_norm=affine_free")
_VARIANCE = (
    "objective.name=vicreg",
    "model.last_norm=none",
    "model.projector_dim=128",
    "objective.invariance_weight=5",
    "optimiser.base_lr=0.25",  # of 0.1 and 0.25 the better one; with 512 dimensions and batches of 128, 0.2 diverged
)
_SIMTRIPLET = (*_STOP_GRADIENT, "objective.inter_weight=1")
METHODS = {
    method.name: method
    for method in (
        Method("simsiam", "SimSiam", "stop-gradient", False, (*_STOP_GRADIENT, "objective.inter_weight=0")),
        Method("simtriplet", "SimTriplet", "stop-gradient", True, _SIMTRIPLET),
        Method("vicreg2", "VICReg, two views", "variance", False, (*_VARIANCE, "objective.inter_weight=0")),
        Method("vicreg3", "VICReg triplet", "variance", True, (*_VARIANCE, "objective.inter_weight=0.5")),
        Method(
            "regated",
            "SimTriplet, pairs chosen anew each epoch",
            "stop-gradient",
            True,
            (*_SIMTRIPLET, "data.regate_every_epochs=1"),
            mends="simtriplet",
        ),
        Method(
            "views",
            "SimTriplet, views of the paper",
            "stop-gradient",
            True,
            _SIMTRIPLET,
            mends="simtriplet",
            views=(),
        ),
        Method(
            "vicreg3light",
            "VICReg triplet, neighbour weight 0.2",
            "variance",
            True,
            (*_VARIANCE, "objective.inter_weight=0.2"),
            mends="vicreg3",
        ),
        Method(
            "vicreg3long",
            "VICReg triplet, four times the steps",
            "variance",
            True,
            (*_VARIANCE, "objective.inter_weight=0.5"),
            mends="vicreg3",
            times_steps=4,
        ),
        Method(
            "simsiam2x",
            "SimSiam, twice the steps",
            "stop-gradient",
            False,
            (*_STOP_GRADIENT, "objective.inter_weight=0"),
            mends="simsiam",
            times_steps=2,
        ),
        Method(
            "simtriplet2x",
            "SimTriplet, twice the steps",
            "stop-gradient",
            True,
            _SIMTRIPLET,
            mends="simtriplet",
            times_steps=2,
        ),
        Method(
            "light",
            "SimTriplet, neighbour weight 0.3",
            "stop-gradient",
            True,
            (*_STOP_GRADIENT, "objective.inter_weight=0.3"),
            mends="simtriplet",
        ),
    )
}

COMPARED = tuple(name for name, method in METHODS.items() if not method.mends)
"""Methods of the main comparison: all but the remedies."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the study is.

    Attributes:
        base: settings of every run.
        steps: optimiser steps of every run.
        folds: folds of patients; every fold has a seed of its own.
        draws: draws of labels.
        supervised_steps: of a network trained with labels, at least; 10 epochs where those are more.
        supervised_tasks: those that networks are trained for with labels.
        pairings: of the purity curve.
        remedies: tried.
    """

    base: tuple[str, ...]
    steps: int
    folds: int
    draws: int
    supervised_steps: int
    supervised_tasks: tuple[str, ...]
    pairings: tuple[str, ...] = tuple(PAIRINGS)
    remedies: tuple[str, ...] = tuple(name for name, method in METHODS.items() if method.mends)


SCALES: dict[ScaleName, Scale] = {
    "cpu": Scale(
        base=(
            "model.backbone=resnet18",
            "model.projector_dim=512",
            "model.predictor_dim=128",
            "data.image_size_px=48",
            "run.batch_size=64",
            "run.precision=bf16",
            "optimiser.warmup_epochs=1",
            "optimiser.base_lr=0.8",  # SimSiam learns more with it in 600 steps than with 0.2
        ),
        steps=600,
        folds=3,
        draws=3,
        supervised_steps=300,
        supervised_tasks=("gland",),
    ),
    "gpu": Scale(
        base=(
            "model.backbone=resnet50",
            "data.image_size_px=128",
            "run.batch_size=128",
        ),
        steps=20_000,
        folds=4,
        draws=10,
        supervised_steps=4_000,
        supervised_tasks=("gland", "diagnosis", "grade"),
    ),
    "tiny": Scale(  # no result to speak of, but every step of the study on a handful of slides
        base=(
            "model.backbone=resnet18",
            "model.projector_dim=32",
            "model.predictor_dim=16",
            "data.image_size_px=32",
            "run.batch_size=16",
        ),
        steps=2,
        folds=2,
        draws=1,
        supervised_steps=2,
        supervised_tasks=("gland",),
        pairings=("grid60", "far60"),
        remedies=("light",),
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


@dataclass(frozen=True, slots=True)
class SupervisedRun:
    """The networks trained with labels for one task, in one fold: one for each share of the labels and draw.

    Attributes:
        kind: name in NETWORKS.
        task: name of the task.
        fold: which patients are left out.
    """

    kind: str
    task: str
    fold: int
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.kind}-{self.task}-fold{self.fold}")


@dataclass(frozen=True, slots=True)
class Heads:
    """The linear heads of one encoder, in one fold, for one task: one for each share of the labels and draw.

    Attributes:
        encoder: name of the run, or RANDOM.
        fold: which patients are tested.
        task: name of the task.
        tiles: name of the tiles.
    """

    encoder: str
    fold: int
    task: str
    tiles: str

    @property
    def name(self) -> str:
        """Name of the file with their answers."""
        return f"{self.encoder}-{self.task}-tests{self.fold}"


def plan_runs(scale: Scale) -> list[Run | SupervisedRun]:
    """Return every run once, the most telling first, so that what is done when time is up says something.

    That is the comparison of methods, fold by fold; then, fold by fold too, the networks trained with labels, what the purity
    curve needs beyond the comparison, networks fine-tuned, and the remedies, before the last, largest tiles.
    """
    folds = range(scale.folds)
    runs: list[Run | SupervisedRun] = [Run(method, MAIN_PAIRING, fold) for fold in folds for method in COMPARED]
    runs += [SupervisedRun("supervised", task, fold) for task in scale.supervised_tasks for fold in folds]
    for fold in folds:
        curve = [[Run(method, pairing, fold) for method in COMPARED] for pairing in scale.pairings]
        runs += [run for some in curve[:-1] for run in some]
        runs += [SupervisedRun("finetuned", task, fold) for task in scale.supervised_tasks]
        runs += [Run(method, MAIN_PAIRING, fold) for method in scale.remedies]
        runs += curve[-1]
    once: dict[str, Run | SupervisedRun] = {}
    for run in runs:
        once.setdefault(run.name, run)
    return list(once.values())
