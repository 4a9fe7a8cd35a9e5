"""Neighbour rules and gates against all pairs compared one by one, on random lattices with holes."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import simtriplet.wsi.lattice as lattice_module
from simtriplet.wsi.errors import NeighbourError
from simtriplet.wsi.gates import MinTissueGate, SameTissueGate, apply_gates
from simtriplet.wsi.neighbours import RULES, Adjacency, GridRule, KnnRule, RadiusRule, RingRule, TilePlaces

Pairs = dict[tuple[int, int], float]


def make_places(cells: list[tuple[int, int]], *, size_px: int = 8, stride_px: int = 8, mpp: float = 0.5) -> TilePlaces:
    row, col = (np.array([cell[axis] for cell in cells], np.int32) for axis in (0, 1))
    centres = (np.column_stack([col, row]) * stride_px + size_px / 2) * mpp
    return TilePlaces(row, col, centres.astype(np.float64).reshape(-1, 2), size_px, stride_px, mpp)


def pairs_of(adjacency: Adjacency) -> Pairs:
    """Check the form of the result and return {(anchor, other): distance}."""
    indptr, indices, distances = adjacency
    assert (indptr.dtype, indices.dtype, distances.dtype) == (np.int64, np.int32, np.float64)
    assert indptr[0] == 0
    assert indptr[-1] == len(indices) == len(distances)
    found: Pairs = {}
    for anchor, (start, stop) in enumerate(zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True)):
        row = indices[start:stop].tolist()
        assert row == sorted(set(row)), "sorted, each once"
        assert anchor not in row, "no self loops"
        found |= {(anchor, other): d for other, d in zip(row, distances[start:stop].tolist(), strict=True)}
    assert all(found[b, a] == d for (a, b), d in found.items()), "symmetric"
    return found


def approx(pairs: Pairs) -> Any:
    return pytest.approx(pairs, rel=1e-12)


cells = st.lists(st.tuples(st.integers(3, 12), st.integers(100, 109)), unique=True, max_size=50)
strides = st.sampled_from([8, 4, 6, 3, 12])  # of tiles of 8: the size, half, not a divisor, below half, gaps


@settings(deadline=None, max_examples=150)
@given(cells=cells, stride=strides, connectivity=st.sampled_from([4, 8]), allow_overlap=st.booleans())
def test_grid(cells: list[tuple[int, int]], stride: int, connectivity: int, allow_overlap: bool) -> None:
    places = make_places(cells, stride_px=stride)
    step = 1
    while not allow_overlap and step * stride < 8:
        step += 1
    expected: Pairs = {}
    for a, (row, col) in enumerate(cells):
        for b, (other_row, other_col) in enumerate(cells):
            away = (abs(row - other_row), abs(col - other_col))
            if away in {(0, step), (step, 0)}:
                expected[a, b] = step * stride * 0.5
            elif away == (step, step) and connectivity == 8:
                expected[a, b] = step * stride * 0.5 * math.sqrt(2)
    rule = GridRule(connectivity=connectivity, allow_overlap=allow_overlap)
    assert pairs_of(rule.adjacency(places)) == approx(expected)


@pytest.mark.parametrize(("stride", "step"), [(224, 1), (112, 2), (150, 2), (74, 4), (300, 1), (1, 224)])
def test_grid_neighbours_never_share_pixels(stride: int, step: int) -> None:
    line = [(0, col) for col in range(step + 1)]
    pairs = pairs_of(GridRule().adjacency(make_places(line, size_px=224, stride_px=stride)))
    assert set(pairs) == {(0, step), (step, 0)}
    assert step * stride >= 224 > (step - 1) * stride
    near = pairs_of(GridRule(allow_overlap=True).adjacency(make_places(line, size_px=224, stride_px=stride)))
    assert len(near) == 2 * step


def test_a_full_lattice_has_the_known_number_of_pairs() -> None:
    rows, cols = 9, 13
    places = make_places([(r, c) for r in range(rows) for c in range(cols)])
    straight = rows * (cols - 1) + cols * (rows - 1)
    assert len(GridRule(connectivity=4).adjacency(places).indices) == 2 * straight
    assert len(GridRule(connectivity=8).adjacency(places).indices) == 2 * (straight + 2 * (rows - 1) * (cols - 1))


def test_rows_do_not_wrap_around() -> None:
    """The last cell of a row and the first of the next are neighbours in memory, not on the slide."""
    assert pairs_of(GridRule().adjacency(make_places([(0, 4), (1, 0)]))) == {}


@settings(deadline=None, max_examples=60)
@given(cells=cells, stride=strides, far=st.integers(2_000, 10**6))
def test_dense_and_sparse_tables_agree(cells: list[tuple[int, int]], stride: int, far: int) -> None:
    """One tile far away makes the bounding box too large for a dense table."""
    assume(cells)
    alone = make_places(cells, stride_px=stride)
    with_far = make_places([*cells, (far * 1000, far * 1000)], stride_px=stride)
    assert lattice_module.Lattice(alone.row, alone.col, margin=2)._table is not None
    assert lattice_module.Lattice(with_far.row, with_far.col, margin=2)._table is None
    dense, sparse = (GridRule().adjacency(places) for places in (alone, with_far))
    assert np.array_equal(dense.indices, sparse.indices)
    assert np.array_equal(dense.distances_um, sparse.distances_um)
    assert np.array_equal([*dense.indptr, dense.indptr[-1]], sparse.indptr)


def test_blocks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    places = make_places([(r, c) for r in range(12) for c in range(12) if (r * c) % 5])
    whole = GridRule().adjacency(places)
    monkeypatch.setattr(lattice_module, "_BLOCK", 7)
    for a, b in zip(whole, GridRule().adjacency(places), strict=True):
        assert np.array_equal(a, b)


def distances_between(places: TilePlaces) -> npt.NDArray[np.float64]:
    gap = places.centres_um[:, None] - places.centres_um[None]
    return np.asarray(np.hypot(gap[..., 0], gap[..., 1]))


# distances that are sums of two squares times the pitch occur on the lattice itself
limits = st.integers(1, 40).map(lambda n: math.sqrt(n) * 4.0) | st.floats(0.5, 40)


@settings(deadline=None, max_examples=100)
@given(cells=cells, inner=st.just(0.0) | limits, outer=limits)
def test_radius_and_ring(cells: list[tuple[int, int]], inner: float, outer: float) -> None:
    assume(inner < outer * (1 - 1e-6))
    places = make_places(cells)
    between = distances_between(places)
    slack = 1e-9
    expected = {
        (int(a), int(b)): float(between[a, b])
        for a, b in np.argwhere((between > inner * (1 + slack)) & (between <= outer * (1 + slack)) & (between > 0))
    }
    assert pairs_of(RingRule(inner, outer).adjacency(places)) == approx(expected)
    if inner == 0:
        assert pairs_of(RadiusRule(outer).adjacency(places)) == approx(expected)


@pytest.mark.parametrize("mpp", [0.1, 0.2525, 0.3, 0.499, 0.6200])
def test_a_radius_of_one_pitch_takes_every_edge_neighbour(mpp: float) -> None:
    """Centres in micrometres are rounded, so the distance of neighbours is the pitch only to 15 digits."""
    places = make_places([(r, c) for r in range(20) for c in range(20)], size_px=10, stride_px=10, mpp=mpp)
    assert len(RadiusRule(10 * mpp).adjacency(places).indices) == 2 * 2 * 20 * 19
    outside = RingRule(10 * mpp, 10 * mpp * 1.5).adjacency(places)
    assert len(outside.indices) == 2 * 2 * 19 * 19


@settings(deadline=None, max_examples=100)
@given(cells=cells, k=st.integers(1, 12))
def test_knn_on_a_lattice_where_most_distances_tie(cells: list[tuple[int, int]], k: int) -> None:
    """With ties any choice of k nearest is right: nearer ones are in, pairs are those of either side, no row too short."""
    places = make_places(cells)
    pairs = pairs_of(KnnRule(k).adjacency(places))
    between = distances_between(places)
    reach = min(k, len(cells) - 1)
    if reach < 1:
        assert pairs == {}
        return
    kth = np.sort(between, axis=1)[:, reach]  # column 0 is the tile itself
    rows: dict[int, list[int]] = {a: [] for a in range(len(cells))}
    for (a, b), distance in pairs.items():
        rows[a].append(b)
        assert distance == pytest.approx(between[a, b])
        assert distance <= max(kth[a], kth[b]) + 1e-9
    for a, row in rows.items():
        assert len(row) >= reach
        assert set(np.flatnonzero(between[a] < kth[a] - 1e-9).tolist()) - {a} <= set(row)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), n_tiles=st.integers(2, 40), k=st.integers(1, 6))
def test_knn_without_ties_is_exact(seed: int, n_tiles: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    zeros = np.zeros(n_tiles, np.int32)
    places = TilePlaces(zeros, zeros, rng.random((n_tiles, 2)) * 100, 8, 8, 0.5)
    between = distances_between(places)
    nearest = np.argsort(between, axis=1)[:, 1 : k + 1]
    expected = {(a, int(b)) for a in range(n_tiles) for b in nearest[a]}
    assert set(pairs_of(KnnRule(k).adjacency(places))) == expected | {(b, a) for a, b in expected}


def test_knn_of_tiles_at_one_place() -> None:
    zeros = np.zeros(5, np.int32)
    pairs = pairs_of(KnnRule(2).adjacency(TilePlaces(zeros, zeros, np.ones((5, 2)), 8, 8, 0.5)))
    assert {a for a, _ in pairs} == set(range(5))


@pytest.mark.parametrize("rule", [GridRule(), GridRule(4), RadiusRule(9.0), RingRule(1.0, 9.0), KnnRule(3)])
@pytest.mark.parametrize("n_tiles", [0, 1])
def test_no_tile_and_one_tile_have_no_neighbours(rule: Any, n_tiles: int) -> None:
    adjacency = rule.adjacency(make_places([(0, 0)] * n_tiles))
    assert pairs_of(adjacency) == {}
    assert len(adjacency.indptr) == n_tiles + 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GridRule(connectivity=6), "connectivity 6: must be 4 or 8; pass --connectivity 8"),
        (lambda: RadiusRule(0.0), "radius 0.0 um: must be a positive number; pass --radius-um"),
        (lambda: RadiusRule(math.nan), "radius nan um: must be"),
        (lambda: RadiusRule(math.inf), "radius inf um: must be"),
        (lambda: RingRule(5.0, 5.0), r"ring 5.0..5.0 um: must satisfy 0 <= inner < outer"),
        (lambda: RingRule(-1.0, 5.0), r"ring -1.0..5.0 um"),
        (lambda: RingRule(1.0, math.inf), r"ring 1.0..inf um"),
        (lambda: KnnRule(0), "k 0: must be at least 1; pass --k 8"),
    ],
)
def test_parameters_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(NeighbourError, match=message):
        make()


def test_rules_are_registered_under_their_names() -> None:
    assert {name: RULES.get(name).name for name in RULES} == {name: name for name in ("grid", "knn", "radius", "ring")}


class TestGates:
    @settings(deadline=None, max_examples=100)
    @given(cells=cells, seed=st.integers(0, 999), min_tissue=st.floats(0, 1))
    def test_pairs_stay_where_every_gate_agrees(
        self, cells: list[tuple[int, int]], seed: int, min_tissue: float
    ) -> None:
        rng = np.random.default_rng(seed)
        tissue_id = rng.integers(0, 3, len(cells)).astype(np.int32)
        fraction = rng.random(len(cells)).astype(np.float32)
        every = GridRule().adjacency(make_places(cells))
        before = pairs_of(every)
        same = {(a, b): d for (a, b), d in before.items() if tissue_id[a] == tissue_id[b]}
        enough = {(a, b): d for (a, b), d in before.items() if min(fraction[a], fraction[b]) >= min_tissue}
        gates = (SameTissueGate(tissue_id), MinTissueGate(fraction, min_tissue))
        assert pairs_of(apply_gates(every, [])) == before
        assert pairs_of(apply_gates(every, gates[:1])) == same
        assert pairs_of(apply_gates(every, gates[1:])) == enough
        both = pairs_of(apply_gates(every, gates))
        assert both == {pair: d for pair, d in same.items() if pair in enough}
        assert both == pairs_of(apply_gates(every, gates[::-1]))

    def test_the_least_tissue_is_inclusive(self) -> None:
        every = GridRule().adjacency(make_places([(0, 0), (0, 1), (0, 2)]))
        gate = MinTissueGate(np.array([0.5, 0.5, 0.25], np.float32), 0.5)
        assert set(pairs_of(apply_gates(every, [gate]))) == {(0, 1), (1, 0)}

    def test_what_gates_remember(self) -> None:
        assert SameTissueGate(np.zeros(1, int)).record() == {"same_tissue": True}
        assert MinTissueGate(np.zeros(1), 0.3).record() == {"min_tissue": 0.3}


def test_a_large_slide_takes_seconds_not_hours() -> None:
    """A quadratic step over 400,000 tiles would not end."""
    row, col = (axis.ravel() for axis in np.mgrid[0:640, 0:640])
    centres = np.column_stack([col, row]) * 112.0
    places = TilePlaces(row, col, centres, 224, 224, 0.5)
    grid = GridRule().adjacency(places)
    radius = RadiusRule(112.0 * 1.5).adjacency(places)
    assert np.array_equal(grid.indices, radius.indices)
    assert np.array_equal(grid.indptr, radius.indptr)
    assert len(grid.indices) == 2 * (2 * 640 * 639 + 2 * 639 * 639)
