"""What features are worth before any head is trained: retrieval from other patients, slide leakage, effective rank."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.nearest_tiles import NOBODY, nearest_tiles, unit_rows
from simtriplet.evaluate.unlabelled import effective_rank

__all__ = ["FeatureGeometry", "measure_geometry"]

LEAKAGE_VOTERS = 20
"""As in the monitor of pretraining."""

_MAX_ANCHORS = 5_000
"""Tiles asked for their neighbours, out of all; the standard error of a share of 5,000 is below 0.01."""

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FeatureGeometry:
    """Numbers of features as they are.

    Attributes:
        k: tiles retrieved.
        retrieval: share of the k most similar tiles (cosine) of other patients that have the tile's class; mean over the
            classes.
        retrieval_chance: the same of tiles drawn at random.
        slide_leakage: how often the 20 most similar other tiles vote for a tile's slide; None where there is one slide.
        slide_leakage_chance: share of the largest slide, which is what a vote that knows nothing comes to.
        effective_rank: RankMe, from 1 to feature_dim.
        feature_dim: length of a feature vector.
        n_anchors: tiles asked.
    """

    k: int
    retrieval: float
    retrieval_chance: float
    slide_leakage: float | None
    slide_leakage_chance: float | None
    effective_rank: float
    feature_dim: int
    n_anchors: int

    def cells(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """Return retrieval, slide leakage and effective rank for a reader, each with what it is to be held against."""
        leakage: tuple[str, ...] = ("–",)
        if self.slide_leakage is not None and self.slide_leakage_chance is not None:
            leakage = f"{self.slide_leakage:.3f}", f"({self.slide_leakage_chance:.3f})"
        retrieval = f"{self.retrieval:.3f}", f"({self.retrieval_chance:.3f})"
        return retrieval, leakage, (f"{self.effective_rank:.1f}", f"of {self.feature_dim}")


def measure_geometry(tiles: LabelledTiles, tested: _Ints, *, k: int = 5, seed: int = 0) -> FeatureGeometry:
    """Describe the features of labelled tiles.

    Args:
        tiles: of at least two patients.
        tested: (t,) places of the tiles that are asked; all labelled tiles may be found.
        k: tiles retrieved for each.
        seed: of the draw where more than 5,000 tiles could be asked.

    Raises:
        SettingsError: if k is below 1.
    """
    anchors = draw_anchors(tested, seed)
    _, patients = np.unique(tiles.patients.astype(str), return_inverse=True)
    retrieved = nearest_tiles(tiles.features, patients, anchors=anchors, k=k)
    leakage, chance = _slide_leakage(tiles, anchors)
    return FeatureGeometry(
        k=k,
        retrieval=_class_mean(_share_alike(tiles.codes, anchors, retrieved), tiles.codes[anchors]),
        retrieval_chance=_class_mean(_chance_alike(tiles.codes, patients, anchors), tiles.codes[anchors]),
        slide_leakage=leakage,
        slide_leakage_chance=chance,
        effective_rank=effective_rank(unit_rows(tiles.features[anchors])),
        feature_dim=tiles.features.shape[1],
        n_anchors=len(anchors),
    )


def draw_anchors(tested: _Ints, seed: int) -> _Ints:
    """Return at most 5,000 of the places, sorted."""
    if len(tested) <= _MAX_ANCHORS:
        return np.sort(tested)
    return np.sort(np.random.default_rng(seed).choice(tested, _MAX_ANCHORS, replace=False))


def _share_alike(codes: _Ints, anchors: _Ints, found: _Ints) -> npt.NDArray[np.float64]:
    there = found != NOBODY
    alike = (codes[found] == codes[anchors, None]) & there
    return np.asarray(alike.sum(axis=1) / np.maximum(there.sum(axis=1), 1), dtype=np.float64)


def _chance_alike(codes: _Ints, patients: _Ints, anchors: _Ints) -> npt.NDArray[np.float64]:
    """Share of each anchor's class among the tiles of other patients."""
    counts = np.zeros((int(patients.max()) + 1, int(codes.max()) + 1))
    np.add.at(counts, (patients, codes), 1)
    others = counts.sum(axis=0) - counts[patients[anchors]]
    return np.asarray(others[np.arange(len(anchors)), codes[anchors]] / others.sum(axis=1), dtype=np.float64)


def _class_mean(values: npt.NDArray[np.float64], codes: _Ints) -> float:
    return float(np.mean([values[codes == code].mean() for code in np.unique(codes)]))


def _slide_leakage(tiles: LabelledTiles, anchors: _Ints) -> tuple[float | None, float | None]:
    """Let the most similar tiles among the anchors vote on each one's slide; ties go to the slide that comes first."""
    _, slides = np.unique(tiles.slides[anchors].astype(str), return_inverse=True)
    n_slides = int(slides.max()) + 1
    if n_slides < 2:
        return None, None
    everybody = np.arange(len(anchors))
    voters = nearest_tiles(
        tiles.features[anchors], everybody, anchors=everybody, k=min(LEAKAGE_VOTERS, len(anchors) - 1)
    )
    votes = np.zeros((len(anchors), n_slides))
    np.add.at(votes, (everybody[:, None], slides[voters]), 1)
    right = votes.argmax(axis=1) == slides
    return float(right.mean()), float(np.bincount(slides).max() / len(slides))
