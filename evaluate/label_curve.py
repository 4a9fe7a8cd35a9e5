"""How good features are by how many labels a head may learn from: the results of few-shot and label-efficiency runs."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.bootstrap import Interval
from simtriplet.wsi.errors import SettingsError

__all__ = [
    "CURVE_PROTOCOLS",
    "DEFAULT_AMOUNTS",
    "DEFAULT_DRAWS",
    "CurveKind",
    "CurvePoint",
    "CurveSettings",
    "LabelCurve",
    "LabelDraw",
    "TestedTiles",
]

CurveKind = Literal["share", "shots"]

CURVE_PROTOCOLS: dict[str, CurveKind] = {"few-shot": "shots", "label-efficiency": "share"}
"""Protocols that give a curve, by the name a user gives them."""

DEFAULT_AMOUNTS: dict[CurveKind, tuple[float, ...]] = {"share": (0.01, 0.1, 0.25, 1.0), "shots": (1, 2, 4, 8, 16)}
"""The paper's shares (Liu et al., MICCAI 2021), and the shots of most few-shot studies."""

DEFAULT_DRAWS: dict[CurveKind, int] = {"share": 5, "shots": 50}


@dataclass(frozen=True, slots=True)
class CurveSettings:
    """How a curve is measured.

    Attributes:
        kind: whether amounts are shares of the training labels or tiles a class.
        amounts: rising; shares in (0, 1] or whole numbers.
        draws: draws of labels for each amount.
        folds: folds of patients, as for the `linear` protocol.
        seed: of the folds, the draws and the bootstrap.
        bootstrap: resamples of test patients.
        test_patients: tested on, all others learnt from; without them folds are made.
        classes: the classes to tell apart; all where empty.
    """

    kind: CurveKind
    amounts: tuple[float, ...]
    draws: int
    folds: int | None = None
    seed: int = 0
    bootstrap: int = 2000
    test_patients: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_amounts(self.kind, self.amounts)
        least = {"draws": 1, "folds": 2, "seed": 0, "bootstrap": 100}
        for name, lowest in least.items():
            if getattr(self, name) is not None and getattr(self, name) < lowest:
                raise SettingsError(f"{name} {getattr(self, name)}: must be at least {lowest}; pass a larger number")


def _check_amounts(kind: CurveKind, amounts: tuple[float, ...]) -> None:
    if kind not in DEFAULT_AMOUNTS:
        raise SettingsError(f"kind {kind!r}: must be one of {', '.join(DEFAULT_AMOUNTS)}; choose one of them")
    if not amounts or list(amounts) != sorted(set(amounts)):
        raise SettingsError(f"amounts {list(amounts)}: must rise and be at least one; pass each once, in order")
    for amount in amounts:
        if kind == "share" and not 0 < amount <= 1:
            raise SettingsError(f"share {amount}: must be above 0 and at most 1; pass 0.1 for 10 % of the labels")
        if kind == "shots" and (amount < 1 or amount != int(amount)):
            raise SettingsError(f"shots {amount}: must be a whole number of at least 1; pass tiles a class")


@dataclass(frozen=True, slots=True)
class TestedTiles:
    """The tiles a curve was tested on, m of them, fold after fold merged into the order of the cohort.

    Attributes:
        codes: (m,) int64 class codes.
        patients: (m,) patient of each tile.
        slides: (m,) slide of each tile.
        tile_ids: (m,) the tile's name in its store.
        folds: (m,) int64, the fold that tested it.
    """

    __test__ = False  # pytest would take it for a test by its name

    codes: npt.NDArray[np.int64]
    patients: npt.NDArray[np.object_]
    slides: npt.NDArray[np.object_]
    tile_ids: npt.NDArray[np.object_]
    folds: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True, slots=True)
class LabelDraw:
    """What was reached with one draw of the labels.

    Attributes:
        seed: of the draw.
        n_labels: labelled tiles learnt from, mean over the folds.
        scores: by metric name, over the test tiles of all folds together.
    """

    seed: int
    n_labels: float
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One amount of labels.

    Attributes:
        amount: share of the training tiles (0, 1], or tiles a class, by the curve's kind.
        draws: one by one; a single one where the amount takes every label, as all draws are then the same.
        intervals: by metric name: the mean over the draws, with its 95 % interval over test patients.
        log_probabilities: (draws, m, k) float32, natural logarithms over the curve's tested tiles, from which paired
            comparisons are made; logarithms because float32 holds 1 - 1e-9 as 1. None where they were not kept.
    """

    amount: float
    draws: tuple[LabelDraw, ...]
    intervals: dict[str, Interval]
    log_probabilities: npt.NDArray[np.float32] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class LabelCurve:
    """One encoder's curve.

    Attributes:
        features: name of the features in the stores.
        encoder: what `embed` recorded of the encoder.
        kind: whether amounts are shares of the labels or shots a class.
        classes: names in code order.
        points: by rising amount.
        leakage: `transductive` where the encoder was pretrained on tiles of a test patient.
        settings: as asked for.
        label_source: where the labels come from.
        tiles: what was tested; None where it was not kept.
    """

    features: str
    encoder: dict[str, Any]
    kind: CurveKind
    classes: tuple[str, ...]
    points: tuple[CurvePoint, ...]
    leakage: Literal["inductive", "transductive"]
    settings: CurveSettings | None = None
    label_source: str = ""
    tiles: TestedTiles | None = field(default=None, repr=False, compare=False)
