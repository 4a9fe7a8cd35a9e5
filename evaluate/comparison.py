"""Several encoders measured alike: what is known of each, and how far it is from the one they are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.embedding_map import EmbeddingMap, MapMethod
from simtriplet.evaluate.evaluation import EvaluationResult, EvaluationSettings, Leakage
from simtriplet.evaluate.feature_geometry import FeatureGeometry
from simtriplet.evaluate.label_curve import CurveKind, LabelCurve
from simtriplet.evaluate.paired import PairedDifference
from simtriplet.evaluate.protocol_registry import PROTOCOLS
from simtriplet.wsi.errors import EvaluationError, SettingsError
from simtriplet.wsi.registry import nearest_name

__all__ = ["ComparedEncoder", "Comparison", "ComparisonSettings", "CurveDifferences", "check_titles", "find_encoder"]

CurveDifferences = dict[CurveKind, dict[float, dict[str, PairedDifference]]]
"""By kind of curve, amount of labels, metric name."""


@dataclass(frozen=True, slots=True)
class ComparisonSettings:
    """How encoders are measured, all alike.

    Attributes:
        labels: see evaluate_features, as for all up to classes.
        label_column: the column of the file or of the stores.
        patient_column: the file's column of patients.
        protocol: a registered evaluation protocol.
        folds: how many, by patient; None for 5, or as many as the rarest class has patients.
        seed: of everything drawn.
        test_patients: tested on instead of folds.
        classes: the classes to tell apart.
        curves: measure label-efficiency and few-shot curves of the features, which takes most of the time.
        k: tiles retrieved for each.
        map_method: how features are laid out in a plane.
    """

    labels: Path | None = None
    label_column: str = "label"
    patient_column: str | None = None
    protocol: str = "linear"
    folds: int | None = None
    seed: int = 0
    test_patients: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    curves: bool = True
    k: int = 5
    map_method: MapMethod = "pca"

    @property
    def label_options(self) -> dict[str, Any]:
        """What every measurement is told alike of labels."""
        return {name: getattr(self, name) for name in ("labels", "label_column", "patient_column")}

    @property
    def fold_options(self) -> dict[str, Any]:
        """What every measurement is told alike of the folds of patients."""
        return {name: getattr(self, name) for name in ("folds", "seed", "test_patients", "classes")}

    def __post_init__(self) -> None:
        PROTOCOLS.get(self.protocol)
        EvaluationSettings(folds=self.folds, seed=self.seed)
        if self.k < 1:
            raise SettingsError(f"k {self.k}: must be at least 1; pass a larger number")


@dataclass(frozen=True, slots=True)
class ComparedEncoder:
    """One row.

    Attributes:
        title: what a reader calls the encoder.
        result: the evaluation; its tiles' features are left out, (m, 0).
        differences: this encoder minus the reference, by metric name; empty for the reference itself.
        geometry: of the features; None for a network that was trained with labels, as for the next two.
        laid_out: the features in a plane.
        nearest: (a, k) places of the tiles most like the comparison's anchors, those of the anchor's patient left out.
        curves: over the number of labels.
        curve_differences: this encoder minus the reference, where both have the curve.
    """

    title: str
    result: EvaluationResult
    differences: dict[str, PairedDifference] = field(default_factory=dict)
    geometry: FeatureGeometry | None = None
    laid_out: EmbeddingMap | None = None
    nearest: npt.NDArray[np.int64] | None = None
    curves: tuple[LabelCurve, ...] = ()
    curve_differences: CurveDifferences = field(default_factory=dict)

    def curve(self, kind: CurveKind) -> LabelCurve | None:
        """Return the curve of a kind, or None where there is none."""
        return next((curve for curve in self.curves if curve.kind == kind), None)

    @property
    def leakage(self) -> Leakage:
        """`transductive` where the encoder was pretrained on tiles of a test patient."""
        return self.result.leakage


@dataclass(frozen=True, slots=True)
class Comparison:
    """Encoders measured alike.

    Attributes:
        encoders: rows, in the order they were given.
        reference: title of the row that differences are taken from.
        anchors: (a,) places of the tiles whose nearest tiles are shown.
    """

    encoders: tuple[ComparedEncoder, ...]
    reference: str
    anchors: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        titles = [encoder.title for encoder in self.encoders]
        check_titles(titles)
        find_encoder(self.reference, titles, titles)

    @property
    def base(self) -> ComparedEncoder:
        """The reference's row."""
        return next(encoder for encoder in self.encoders if encoder.title == self.reference)

    @property
    def k(self) -> int | None:
        """Tiles retrieved; None where no row has features."""
        return next((encoder.geometry.k for encoder in self.encoders if encoder.geometry), None)


def check_titles(titles: Sequence[str]) -> None:
    """Refuse too few encoders, and titles that do not tell them apart.

    Raises:
        EvaluationError: if there are fewer than two, or two of one title.
    """
    if len(titles) < 2:
        raise EvaluationError(f"comparison of {len(titles)} encoder(s): needs two; name another one")
    for title in titles:
        if titles.count(title) > 1:
            raise EvaluationError(f"encoder {title!r}: two have this title; give each its own")


def find_encoder(wanted: str, titles: Sequence[str], names: Sequence[str]) -> int:
    """Return the place of the encoder that has this title, or else these features.

    Raises:
        EvaluationError: if there is none.
    """
    for known in (titles, names):
        if wanted in known:
            return list(known).index(wanted)
    hint = nearest_name(wanted, [*titles, *names])
    raise EvaluationError(f"reference {wanted!r}: is none of the encoders{hint}; known are {', '.join(titles)}")
