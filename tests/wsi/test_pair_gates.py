"""The gates of borders and of likeness against every pair looked at one by one, and in the store."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from simtriplet.wsi.adjacency import Adjacency
from simtriplet.wsi.annotation import NamedRegion
from simtriplet.wsi.border_gate import BorderGate
from simtriplet.wsi.errors import AnnotationError, NeighbourError, StoreError
from simtriplet.wsi.gate_spec import GateSpec
from simtriplet.wsi.gates import apply_gates
from simtriplet.wsi.neighbour_index import build_neighbours, check_same_mpp, index_store
from simtriplet.wsi.neighbours import GridRule, RadiusRule, TilePlaces
from simtriplet.wsi.similarity_gate import SimilarityGate
from simtriplet.wsi.store import TileStore

StoreFactory = Callable[..., TileStore]
SIDE = 10.0

cells = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), unique=True, max_size=30)
corners = st.integers(-2, 82)
boxes = st.lists(st.tuples(st.sampled_from(["tumour", "stroma"]), corners, corners, corners, corners), max_size=5)


def _lattice(cells: list[tuple[int, int]]) -> tuple[TilePlaces, np.ndarray[Any, Any]]:
    row, col = (np.array([cell[axis] for cell in cells], np.int32) for axis in (0, 1))
    centres = np.column_stack([col, row]).reshape(-1, 2) * SIDE + SIDE / 2
    return TilePlaces(row, col, centres, 10, 10, 1.0), centres


def _pairs(adjacency: Adjacency) -> set[tuple[int, int]]:
    starts = np.repeat(np.arange(len(adjacency.indptr) - 1), np.diff(adjacency.indptr))
    return set(zip(starts.tolist(), adjacency.indices.tolist(), strict=True))


@settings(deadline=None, max_examples=150)
@given(cells=cells, boxes=boxes, seed=st.integers(0, 99), connectivity=st.sampled_from([4, 8]))
def test_no_pair_crosses_a_border(
    cells: list[tuple[int, int]], boxes: list[tuple[str, int, int, int, int]], seed: int, connectivity: int
) -> None:
    places, centres = _lattice(cells)
    regions = [
        NamedRegion(name, shapely.box(min(a, c), min(b, d), max(a, c), max(b, d)))
        for name, a, b, c, d in boxes
        if a != c and b != d
    ]
    classes = np.random.default_rng(seed).integers(-1, 2, len(cells))
    areas = [
        shapely.union_all([region.area for region in regions if region.name == name]) for name in ("tumour", "stroma")
    ]
    every = GridRule(connectivity).adjacency(places)
    expected = set()
    for a, b in _pairs(every):
        line = shapely.LineString([centres[min(a, b)], centres[max(a, b)]])
        crosses = any(line.intersects(area.boundary) for area in areas)
        differ = classes[a] >= 0 and classes[b] >= 0 and classes[a] != classes[b]
        if not crosses and not differ:
            expected.add((a, b))
    assert _pairs(apply_gates(every, [BorderGate(regions, centres, classes=classes)])) == expected


@settings(deadline=None, max_examples=150)
@given(cells=cells, seed=st.integers(0, 999), quantile=st.floats(0, 0.99))
def test_the_least_alike_pairs_go(cells: list[tuple[int, int]], seed: int, quantile: float) -> None:
    places, _ = _lattice(cells)
    rng = np.random.default_rng(seed)
    features = (rng.standard_normal((len(cells), 5)) * (rng.random((len(cells), 1)) > 0.1)).astype(np.float32)
    every = RadiusRule(25.0).adjacency(places)

    def cosine(a: int, b: int) -> float:
        x, y = features[a].astype(np.float64), features[b].astype(np.float64)
        length = np.linalg.norm(x) * np.linalg.norm(y)
        return float(x @ y / length) if length else 0.0

    alike = {(a, b): cosine(a, b) for a, b in _pairs(every)}
    once = [value for (a, b), value in alike.items() if a < b]
    kept = _pairs(apply_gates(every, [SimilarityGate(features, every, quantile)]))
    assert all((b, a) in kept for a, b in kept)
    if not once:
        assert not kept
        return
    limit = np.quantile(once, quantile)
    clear = 3e-5  # similarities are rounded to 5 decimals
    assert {pair for pair, value in alike.items() if value > limit + clear} <= kept
    assert not {pair for pair, value in alike.items() if value < limit - clear} & kept


def _write_borders(path: Path, box: tuple[float, float, float, float], name: str = "tumour") -> Path:
    feature = {
        "type": "Feature",
        "geometry": json.loads(shapely.to_geojson(shapely.box(*box))),
        "properties": {"classification": {"name": name}},
    }
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def test_borders_from_a_file_gate_a_store_and_are_recorded(store_factory: StoreFactory, tmp_path: Path) -> None:
    store = store_factory(rows=2, cols=4, index=False)  # tiles of 32 px at level 0
    file = _write_borders(tmp_path / "slide.geojson", (-10, -10, 64, 100))
    for annotations in (file, tmp_path):
        built = build_neighbours(store, GridRule(4), GateSpec(annotations=annotations))
        assert built.adjacency.n_pairs == 10 - 2, "columns 1 and 2 are parted in both rows"
        assert built.params["border_file"] == "slide.geojson"
        assert len(built.params["border_sha256"]) == 64
        assert built.measured["candidate_pairs"] == 10


def test_a_slide_without_annotations_keeps_its_pairs_and_says_so(
    store_factory: StoreFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    built = build_neighbours(store_factory(rows=2, cols=4), GridRule(4), GateSpec(annotations=tmp_path / "empty"))
    assert built.adjacency.n_pairs == 10
    assert "has no annotation" in caplog.text


def test_nonsense_is_refused(store_factory: StoreFactory, tmp_path: Path) -> None:
    store = store_factory()
    with pytest.raises(NeighbourError, match="do not exist"):
        index_store(store, gates=GateSpec(annotations=tmp_path / "gone.geojson"))
    (tmp_path / "notes.geojson").write_text("these are not annotations")
    with pytest.raises(AnnotationError, match=r"notes\.geojson"):
        index_store(store, gates=GateSpec(annotations=tmp_path / "notes.geojson"))
    with pytest.raises(NeighbourError, match="no features 'resnet'"):
        index_store(store, gates=GateSpec(similar_to="X_resnet", min_similarity=0.2))
    for wrong in ({"similar_to": "X_a"}, {"min_similarity": 0.5}):
        with pytest.raises(NeighbourError, match="needs features and a quantile"):
            GateSpec(**wrong)  # type: ignore[arg-type]
    for quantile in (-0.1, 1.0, float("nan")):
        with pytest.raises(NeighbourError, match=r"must lie in 0\.\.1"):
            GateSpec(similar_to="a", min_similarity=quantile)
    coarse = store_factory("coarse", mpp=1.0)
    with pytest.raises(NeighbourError, match=r"0\.5 and 1 um per pixel"):
        check_same_mpp([store, coarse])


def test_an_index_of_older_tiles_is_refused(store_factory: StoreFactory, tmp_path: Path) -> None:
    """The tiles were made anew, and a copy tool put the old index back."""
    old, new = store_factory(), store_factory("again", seed=1)
    table = ("tables", "tiles")
    for name in ("obsp/spatial_connectivities", "obsp/spatial_distances", "uns/spatial_neighbors"):
        source, target = old.path.joinpath(*table, name), new.path.joinpath(*table, name)
        for file in source.rglob("*"):
            if file.is_file():
                (target / file.relative_to(source)).write_bytes(file.read_bytes())
    with pytest.raises((NeighbourError, StoreError), match=r"other tiles|older tiles"):
        TileStore(new.path).neighbours()
