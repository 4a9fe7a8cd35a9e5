"""What can be said of features without labels: how many dimensions they use, whether neighbours are alike, what clusters."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.atomic_output import replace_file
from simtriplet.evaluate.labelled_tiles import encoder_record
from simtriplet.wsi.errors import EvaluationError
from simtriplet.wsi.store import SPATIAL, TileStore

__all__ = ["UnlabelledResult", "describe_features", "effective_rank", "neighbour_auc"]

_MAX_ROWS = 20_000
"""Tiles that the rank and the clusters are computed from; more change the third digit."""


@dataclass(frozen=True, slots=True)
class UnlabelledResult:
    """What features look like.

    Attributes:
        features: their name in the stores.
        encoder: what `embed` recorded of the encoder.
        n_tiles: tiles of all stores.
        feature_dim: length of a feature vector.
        effective_rank: RankMe, from 1 to feature_dim.
        neighbour_auc: chance that a tile is more like its neighbour than like a random tile of its slide (cosine);
            0.5 says nothing, None without neighbours.
        clusters: per store, (n,) int64 cluster of each tile; clusters are numbered by size, 0 the largest.
        n_clusters: number of clusters.
    """

    features: str
    encoder: dict[str, Any]
    n_tiles: int
    feature_dim: int
    effective_rank: float
    neighbour_auc: float | None
    clusters: tuple[npt.NDArray[np.int64], ...]
    n_clusters: int


def describe_features(
    stores: Sequence[TileStore], features: str, *, clusters: int = 5, seed: int = 0, out: Path | None = None
) -> UnlabelledResult:
    """Look at features without labels.

    Args:
        stores: the slides.
        features: the name `embed` was given.
        clusters: how many groups k-means makes of the directions of the features.
        seed: of the clusters and the random pairs.
        out: folder to write results.json into.

    Raises:
        StoreError: if a store has no such features.
        EvaluationError: if there are fewer than two tiles.
    """
    tables = [store.features(features) for store in stores]
    n_tiles = sum(map(len, tables))
    if n_tiles < 2:
        raise EvaluationError(f"features {features!r}: {n_tiles} tiles are too few to describe; tile more of the slide")
    unit = [_unit(table) for table in tables]
    rows = np.concatenate(unit)
    sample = (
        rows if n_tiles <= _MAX_ROWS else rows[np.random.default_rng(seed).choice(n_tiles, _MAX_ROWS, replace=False)]
    )
    assigned = _cluster(rows, sample, min(clusters, n_tiles), seed)
    bounds = np.cumsum([len(table) for table in tables])[:-1]
    result = UnlabelledResult(
        features=features,
        encoder=encoder_record(stores, features),
        n_tiles=n_tiles,
        feature_dim=rows.shape[1],
        effective_rank=effective_rank(sample),
        neighbour_auc=neighbour_auc(stores, unit, seed=seed),
        clusters=tuple(np.split(assigned, bounds)),
        n_clusters=int(assigned.max()) + 1,
    )
    if out is not None:
        replace_file(out / "results.json", json.dumps(_values(result), indent=2, ensure_ascii=False) + "\n")
    return result


def _values(result: UnlabelledResult) -> dict[str, Any]:
    values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    counts = np.bincount(np.concatenate(result.clusters), minlength=result.n_clusters)
    return {"schema": "simtriplet.unlabelled", "version": "1.0", **values, "clusters": counts.tolist()}


def _unit(table: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    return np.asarray(table / np.maximum(lengths, 1e-12), dtype=np.float32)


def effective_rank(rows: npt.NDArray[np.floating[Any]]) -> float:
    """Return exp of the entropy of the normalised singular values (RankMe, arXiv 2210.02885, equation 1).

    Args:
        rows: (m, d).
    """
    values = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
    share = values / max(values.sum(), 1e-300) + 1e-12
    return float(np.exp(-(share * np.log(share)).sum()))


def neighbour_auc(
    stores: Sequence[TileStore], unit: Sequence[npt.NDArray[np.float32]], *, seed: int, name: str = SPATIAL
) -> float | None:
    """Return the chance that a neighbour is more alike than a random other tile of the slide; ties count half.

    Args:
        stores: with a neighbour index.
        unit: per store, (n, d) features of length 1.
        seed: of the random tiles.
        name: the neighbour index.
    """
    rng = np.random.default_rng(seed)
    wins, total = 0.0, 0
    for store, rows in zip(stores, unit, strict=True):
        if name not in store.neighbour_names() or len(rows) < 3:
            continue
        graph = store.neighbours(name)
        anchors = np.repeat(np.arange(len(rows)), graph.degrees)
        # any tile but the anchor itself
        others = (anchors + rng.integers(1, len(rows), len(anchors))) % len(rows)
        near = np.einsum("nd,nd->n", rows[anchors], rows[graph.indices])
        far = np.einsum("nd,nd->n", rows[anchors], rows[others])
        wins += float((near > far).sum() + 0.5 * (near == far).sum())
        total += len(anchors)
    return wins / total if total else None


def _cluster(
    rows: npt.NDArray[np.float32], sample: npt.NDArray[np.float32], clusters: int, seed: int
) -> npt.NDArray[np.int64]:
    from sklearn.cluster import KMeans

    distinct = len(np.unique(sample, axis=0))
    model = KMeans(n_clusters=max(1, min(clusters, distinct)), n_init=4, random_state=seed).fit(sample)
    assigned = np.asarray(model.predict(rows), dtype=np.int64)
    _, codes, counts = np.unique(assigned, return_inverse=True, return_counts=True)
    by_size = np.empty(len(counts), np.int64)
    by_size[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return by_size[codes]
