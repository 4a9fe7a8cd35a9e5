"""Nearest tiles against scikit-learn and by hand, and what is made of them: retrieval, slide leakage, galleries."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from simtriplet.evaluate import nearest_tiles as module
from simtriplet.evaluate.feature_geometry import measure_geometry
from simtriplet.evaluate.gallery import describe_gallery, pick_anchors
from simtriplet.evaluate.labelled_tiles import LabelledTiles
from simtriplet.evaluate.nearest_tiles import NOBODY, nearest_tiles
from simtriplet.evaluate.unlabelled import effective_rank
from simtriplet.wsi.errors import SettingsError


def tiles_of(features, codes, patients, slides=None):
    n = len(codes)
    return LabelledTiles(
        features=np.asarray(features, np.float32),
        codes=np.asarray(codes),
        classes=("a", "b", "c")[: max(codes) + 1],
        patients=np.array(patients, dtype=object),
        slides=np.array(patients if slides is None else slides, dtype=object),
        tile_ids=np.array([str(number) for number in range(n)], dtype=object),
        rows=np.arange(n),
        base_xy=np.zeros((n, 2), np.int64),
    )


@pytest.mark.parametrize("cells", [1, 1 << 24])
def test_nearest_tiles_are_the_most_similar_of_other_groups(monkeypatch, cells):
    monkeypatch.setattr(module, "_CELLS", cells)  # blocks of one anchor, and one block
    rng = np.random.default_rng(0)
    features, groups = rng.normal(size=(60, 7)), rng.integers(0, 4, 60)
    anchors = np.array([3, 17, 59])
    found = nearest_tiles(features, groups, anchors=anchors, k=5)
    likeness = cosine_similarity(features)
    for anchor, places in zip(anchors, found, strict=True):
        others = [place for place in np.argsort(-likeness[anchor]) if groups[place] != groups[anchor]]
        assert places.tolist() == others[:5]


def test_too_few_tiles_of_other_groups_leave_places_empty():
    found = nearest_tiles(np.eye(4), np.array([0, 0, 0, 1]), anchors=np.array([0, 3]), k=6)
    assert found[0].tolist() == [3] + [NOBODY] * 5
    assert sorted(found[1, :3].tolist()) == [0, 1, 2]
    assert found[1, 3:].tolist() == [NOBODY] * 3
    with pytest.raises(SettingsError, match="k 0: must be at least 1"):
        nearest_tiles(np.eye(2), np.arange(2), anchors=np.arange(2), k=0)


def test_retrieval_leakage_and_rank_of_known_features():
    # two classes by the first two columns, four slides by the last four, weaker
    patients = np.repeat(["p0", "p1", "p2", "p3"], 10)
    codes = np.tile([0, 1], 20)
    by_class, by_slide = np.eye(2)[codes], np.eye(4)[np.repeat(np.arange(4), 10)]
    everybody = np.arange(40)
    classes = measure_geometry(tiles_of(np.hstack([by_class, 0.1 * by_slide]), codes, patients), everybody, k=3)
    slides = measure_geometry(tiles_of(np.hstack([0.1 * by_class, by_slide]), codes, patients), everybody, k=3)
    assert classes.retrieval == 1.0
    assert classes.retrieval_chance == 0.5
    # every tile has 9 others of its slide among the 20 most similar, at most 5 of each other one
    assert slides.slide_leakage == 1.0
    assert classes.slide_leakage_chance == slides.slide_leakage_chance == 0.25
    rows = np.hstack([by_class, 0.1 * by_slide])
    assert classes.effective_rank == pytest.approx(effective_rank(rows / np.linalg.norm(rows, axis=1, keepdims=True)))
    assert (classes.feature_dim, classes.n_anchors, classes.k) == (6, 40, 3)


def test_retrieval_weighs_classes_alike_and_asks_tested_tiles_only():
    # class b is found by nobody: its tiles of the two patients point apart
    features = [[1, 0, 0]] * 6 + [[1, 0, 0]] * 6 + [[0, 1, 0], [0, 0, 1]]
    tiles = tiles_of(features, [0] * 12 + [1, 1], ["p"] * 6 + ["q"] * 6 + ["p", "q"])
    assert measure_geometry(tiles, np.arange(14), k=1).retrieval == pytest.approx((1.0 + 0.0) / 2)
    assert measure_geometry(tiles, np.arange(6), k=1).retrieval == 1.0
    one_slide = measure_geometry(tiles, np.arange(6), k=1)
    assert one_slide.slide_leakage is None
    assert one_slide.slide_leakage_chance is None


def test_random_features_retrieve_at_chance():
    rng = np.random.default_rng(1)
    codes, patients = rng.choice(3, 900, p=[0.6, 0.3, 0.1]), rng.integers(0, 9, 900).astype(str)
    found = measure_geometry(tiles_of(rng.normal(size=(900, 8)), codes.tolist(), patients), np.arange(900))
    assert found.retrieval == pytest.approx(found.retrieval_chance, abs=0.03)
    assert found.retrieval_chance == pytest.approx(1 / 3, abs=0.01)  # mean of the classes' shares
    assert found.slide_leakage == pytest.approx(1 / 9, abs=0.04)


def test_anchors_are_of_each_class_and_of_different_patients():
    codes = [0] * 8 + [1] * 8
    tiles = tiles_of(np.zeros((16, 2)), codes, ["p"] * 7 + ["q"] + ["q"] * 7 + ["p"])
    for seed in range(5):
        anchors = pick_anchors(tiles, np.arange(16), seed=seed)
        assert tiles.codes[anchors].tolist() == [0, 0, 1, 1]
        assert set(tiles.patients[anchors[:2]]) == set(tiles.patients[anchors[2:]]) == {"p", "q"}
    assert set(pick_anchors(tiles, np.array([1, 9])).tolist()) == {1, 9}
    assert not np.array_equal(pick_anchors(tiles, np.arange(16), seed=0), pick_anchors(tiles, np.arange(16), seed=3))


def test_a_gallery_is_told_in_words():
    tiles = tiles_of(np.zeros((5, 2)), [0, 0, 1, 1, 0], ["p", "q", "q", "r", "r"])
    said = describe_gallery(tiles, np.array([0, 2]), np.array([[1, 2], [3, NOBODY]]))
    assert said == "2 tiles and the 2 most similar ones of other patients each: 2 of 3 are of the class of their anchor"
