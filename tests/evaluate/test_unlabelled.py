"""What is said of features without labels, on features whose properties are known."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from simtriplet.evaluate.feature_array import write_features
from simtriplet.evaluate.unlabelled import describe_features, effective_rank
from simtriplet.evaluate.unlabelled_report import write_unlabelled_report
from simtriplet.wsi.errors import EvaluationError
from simtriplet.wsi.store import TileStore

StoreFactory = Callable[..., TileStore]


def with_features(store: TileStore, features: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> TileStore:
    write_features(store, "f", features, attributes={"encoder_hash": "0"})
    return TileStore(store.path)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_of_equal_directions_is_their_number(rank: int) -> None:
    rows = np.tile(np.eye(8)[:rank], (40, 1))
    assert effective_rank(rows) == pytest.approx(rank, rel=1e-6)


def test_effective_rank_matches_its_equation() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 5)) * [5, 2, 1, 0.5, 0.1]
    values = np.linalg.svd(rows)[1]
    share = values / values.sum()
    assert effective_rank(rows) == pytest.approx(float(np.exp(-(share * np.log(share)).sum())), rel=1e-6)


def test_neighbours_alike_and_clusters_found(store_factory: StoreFactory, tmp_path: Path) -> None:
    store = store_factory(rows=8, cols=8)
    left = store.numbers("col") < 4
    noise = np.random.default_rng(1).normal(0, 0.01, (64, 6))
    features = (np.where(left[:, None], [1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]) + noise).astype(np.float32)
    store = with_features(store, features)
    result = describe_features([store], "f", clusters=2, out=tmp_path)
    # the two halves are the two clusters, whatever their numbers
    codes = result.clusters[0]
    assert len(set(codes[left])) == len(set(codes[~left])) == 1
    assert codes[left][0] != codes[~left][0]
    # of 63 other tiles 31 are of the tile's own half, where likeness is a coin toss; nearly all neighbours are
    assert result.neighbour_auc is not None
    assert 0.65 < result.neighbour_auc < 0.8
    values = json.loads((tmp_path / "results.json").read_text())
    assert values["clusters"] == [32, 32]
    assert values["neighbour_auc"] == result.neighbour_auc


def test_random_features_say_nothing_of_neighbours(store_factory: StoreFactory) -> None:
    features = np.random.default_rng(2).normal(size=(400, 16)).astype(np.float32)
    store = with_features(store_factory(rows=20, cols=20), features)
    result = describe_features([store], "f")
    assert result.neighbour_auc == pytest.approx(0.5, abs=0.05)


def test_slide_without_index_and_single_tile(store_factory: StoreFactory) -> None:
    features = np.random.default_rng(3).normal(size=(24, 4)).astype(np.float32)
    store = with_features(store_factory("bare", index=False), features)
    assert describe_features([store], "f").neighbour_auc is None
    single = with_features(store_factory("one", rows=1, cols=1), features[:1])
    with pytest.raises(EvaluationError, match="1 tiles are too few"):
        describe_features([single], "f")


def test_same_seed_same_result(store_factory: StoreFactory) -> None:
    features = np.random.default_rng(4).normal(size=(24, 4)).astype(np.float32)
    store = with_features(store_factory(), features)
    first, second = (describe_features([store], "f", seed=5) for _ in range(2))
    assert first.neighbour_auc == second.neighbour_auc
    assert np.array_equal(first.clusters[0], second.clusters[0])


def test_report_escapes_and_inlines(store_factory: StoreFactory, tmp_path: Path) -> None:
    features = np.random.default_rng(6).normal(size=(24, 4)).astype(np.float32)
    store = with_features(store_factory(), features)
    page = write_unlabelled_report(
        tmp_path, result=describe_features([store], "f"), stores=[store], title="<script>alert(1)</script>"
    )
    text = page.read_text()
    assert "<script" not in text
    assert text.count("data:image/png;base64,") == 2
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"01_slide_tiles.png", "01_slide_clusters.png"}
