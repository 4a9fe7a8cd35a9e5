"""Where tiles lie: every law of the lattice over random slides, and the choice of the level around each border."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simtriplet.wsi.errors import ResolutionError, SettingsError
from simtriplet.wsi.geometry import EdgePolicy, TilePlan, TilingSpec, morton_order, plan_tiles
from simtriplet.wsi.slide import SlideInfo


def make_info(width: int, height: int, downsamples: Sequence[float] = (1.0,), mpp: float | None = 0.25) -> SlideInfo:
    sizes = tuple((math.ceil(width / d), math.ceil(height / d)) for d in downsamples)
    return SlideInfo(sizes, tuple(downsamples), mpp, mpp, None, "test")


def plan(info: SlideInfo, spec: TilingSpec, mpp: float = 0.25) -> TilePlan:
    return plan_tiles(info, mpp, spec, slide_name="a.svs")


def count_by_hand(length: int, made: TilePlan, edge: EdgePolicy) -> int:
    """Walk the lattice one position after the other."""
    limit = length - made.read_px if edge == "inside" else length - 1
    return sum(
        1 for _ in itertools.takewhile(lambda k: np.rint(k * made.stride_px * made.scale) <= limit, itertools.count())
    )


slides = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
requests = st.builds(
    TilingSpec,
    mpp=st.floats(0.25, 4.0) | st.sampled_from([0.25, 0.3125, 0.375, 0.5, 1.0, 1.37 * 0.25]),
    size_px=st.integers(1, 256),
    stride_px=st.none() | st.integers(1, 300),
    edge=st.sampled_from(["inside", "pad"]),
    mpp_tolerance=st.sampled_from([0.0, 0.02]),
)
pyramids = st.sampled_from([(1.0,), (1.0, 2.0, 4.0), (1.0, 4.000123, 16.00391), (1.0, 1.5, 3.0)])


@settings(deadline=None, max_examples=200)
@given(size=slides, downsamples=pyramids, spec=requests)
def test_lattice_laws(size: tuple[int, int], downsamples: tuple[float, ...], spec: TilingSpec) -> None:
    info = make_info(*size, downsamples)
    made = plan(info, spec)
    level_size = info.level_sizes[made.level]
    pitch = spec.stride * made.scale
    assume(level_size[0] / pitch < 2000)
    assume(level_size[1] / pitch < 2000)

    assert made.n_cols == count_by_hand(level_size[0], made, spec.edge)
    assert made.n_rows == count_by_hand(level_size[1], made, spec.edge)
    assert made.size_px * made.scale <= made.read_px + 1e-6 < made.size_px * made.scale + 1 + 1e-6

    for count, axis in ((made.n_cols, 0), (made.n_rows, 1)):
        k = np.arange(count)
        still = np.zeros_like(k)
        xy = made.level_xy(still, k) if axis == 0 else made.level_xy(k, still)
        positions = xy[:, axis]
        assert (xy[:, 1 - axis] == 0).all()
        assert np.array_equal(positions, np.rint(k * made.stride_px * made.scale))
        assert (np.abs(np.diff(positions) - pitch) <= 1).all()
        last = level_size[axis] - (made.read_px if spec.edge == "inside" else 1)
        assert (positions <= last).all()
        base = made.base_xy(still, k) if axis == 0 else made.base_xy(k, still)
        assert (np.abs(base[:, axis] - positions * made.level_downsample) <= 0.5).all()


@settings(deadline=None, max_examples=100)
@given(k=st.integers(0, 200_000), stride=st.integers(1, 512), scale=st.floats(0.5, 4))
def test_positions_do_not_drift(k: int, stride: int, scale: float) -> None:
    made = TilePlan(0, 1.0, scale, 0.5, 224, stride, 1, 1, 1)
    assert abs(int(made.level_xy(np.array([0]), np.array([k]))[0, 0]) - k * stride * scale) <= 0.5 + 1e-6


@settings(deadline=None, max_examples=100)
@given(
    size_px=st.integers(1, 300),
    halves=st.integers(1, 2000),
    stride=st.integers(1, 50),
    quarters=st.integers(1, 40),
    edge=st.sampled_from(["inside", "pad"]),
)
def test_counts_where_positions_fall_half_way_between_pixels(
    size_px: int, halves: int, stride: int, quarters: int, edge: EdgePolicy
) -> None:
    """Scales of n/4 put positions on x.5, which rint sends to the even side."""
    spec = TilingSpec(mpp=0.25 * (1 + quarters / 4), size_px=size_px, stride_px=stride, edge=edge, mpp_tolerance=0)
    made = plan(make_info(halves, 1 + halves // 2), spec)
    assume(halves / (stride * made.scale) < 2000)
    assert made.n_cols == count_by_hand(halves, made, edge)
    assert made.n_rows == count_by_hand(1 + halves // 2, made, edge)


@pytest.mark.parametrize(
    ("length", "size_px", "stride", "scale", "count"),
    [(426, 43, 57, 1.3, 6), (2082, 36, 21, 2.7, 35), (2001, 15, 7, 3.7, 76), (422, 15, 35, 2.22, 5)],
)
def test_the_count_and_the_positions_round_alike(
    length: int, size_px: int, stride: int, scale: float, count: int
) -> None:
    """Products that are half a pixel by hand and not in binary: a count of its own would lose or add a column."""
    spec = TilingSpec(mpp=scale, size_px=size_px, stride_px=stride, mpp_tolerance=0)
    made = plan(make_info(length, length), spec, mpp=1.0)
    ends = made.level_xy(np.zeros(count + 1, np.int64), np.arange(count + 1))[:, 0] + made.read_px
    assert made.n_cols == made.n_rows == count
    assert ends[-2] <= length < ends[-1]


@pytest.mark.parametrize(
    ("spec", "n_cols", "n_rows"),
    [
        (TilingSpec(mpp=0.25, size_px=100), 10, 7),
        (TilingSpec(mpp=0.25, size_px=101), 9, 6),
        (TilingSpec(mpp=0.25, size_px=100, stride_px=50), 19, 13),
        (TilingSpec(mpp=0.5, size_px=100), 5, 3),
        (TilingSpec(mpp=0.5, size_px=100, edge="pad"), 5, 4),
        (TilingSpec(mpp=0.25, size_px=700), 1, 1),
        (TilingSpec(mpp=0.25, size_px=701), 1, 0),
        (TilingSpec(mpp=0.25, size_px=701, edge="pad"), 2, 1),
        (TilingSpec(mpp=0.25, size_px=1001), 0, 0),
    ],
)
def test_counts_in_closed_form_on_a_slide_that_is_not_square(spec: TilingSpec, n_cols: int, n_rows: int) -> None:
    made = plan(make_info(1000, 700), spec)
    assert (made.n_cols, made.n_rows) == (n_cols, n_rows)


def test_columns_run_along_the_width() -> None:
    made = plan(make_info(1000, 700), TilingSpec(mpp=0.25, size_px=100))
    assert made.level_xy(np.array([0, 2]), np.array([3, 0])).tolist() == [[300, 0], [0, 200]]
    assert made.base_xy(np.array([5]), np.array([1])).tolist() == [[100, 500]]


DOWNSAMPLES = (1.0, 2.0005, 4.00125, 16.01)


@pytest.mark.parametrize("level", range(4))
def test_the_level_changes_exactly_at_its_downsample(level: int) -> None:
    info = make_info(20_000, 15_000, DOWNSAMPLES, mpp=1.0)
    at = DOWNSAMPLES[level]
    for wanted, expected in ((at, level), (np.nextafter(at, 99), level), (np.nextafter(at, 0), level - 1)):
        spec = TilingSpec(mpp=float(wanted), mpp_tolerance=0)
        if expected < 0:
            with pytest.raises(ResolutionError):
                plan(info, spec, mpp=1.0)
            continue
        made = plan(info, spec, mpp=1.0)
        assert made.level == expected
        assert made.scale == wanted / DOWNSAMPLES[expected]
        assert made.mpp == pytest.approx(wanted, rel=1e-15)


@settings(deadline=None, max_examples=100)
@given(wanted=st.floats(1.0, 64.0), mpp=st.floats(0.1, 2.0))
def test_the_level_is_the_coarsest_that_is_fine_enough(wanted: float, mpp: float) -> None:
    info = make_info(20_000, 15_000, DOWNSAMPLES, mpp=mpp)
    asked = wanted * mpp
    assume(asked / mpp >= 1)
    made = plan(info, TilingSpec(mpp=asked, mpp_tolerance=0), mpp=mpp)
    assert made.level == max(i for i, d in enumerate(DOWNSAMPLES) if d <= asked / mpp)
    assert made.scale >= 1
    assert made.mpp == pytest.approx(asked)
    assert made.base_size * mpp == pytest.approx(made.size_px * asked)


@pytest.mark.parametrize(
    ("mpp", "level", "scale"),
    [
        (0.5, 0, 1.0),
        (0.5099, 0, 1.0),
        (0.4901, 0, 1.0),
        (1.0, 1, 1.0),
        (0.981, 1, 1.0),
        (0.979, 0, 1.958),
        (1.019, 1, 1.0),
        (1.021, 1, 1.021),
    ],
)
def test_a_level_within_the_tolerance_is_taken_as_it_is(mpp: float, level: int, scale: float) -> None:
    made = plan(make_info(4000, 3000, (1.0, 2.0), mpp=0.5), TilingSpec(mpp=mpp, mpp_tolerance=0.02), mpp=0.5)
    assert made.level == level
    assert made.scale == pytest.approx(scale)
    assert made.mpp == pytest.approx(0.5 * (1, 2)[level] * scale)


def test_upsampling_is_refused_and_the_message_names_the_ways_out() -> None:
    info = make_info(1000, 700)
    with pytest.raises(ResolutionError) as caught:
        plan(info, TilingSpec(mpp=0.2))
    assert str(caught.value) == (
        "slide 'a.svs': its 0.25 um per pixel are coarser than the wanted 0.2; "
        "pass --mpp 0.25 or coarser, or --upsample, or --slide-mpp if the file is wrong"
    )
    made = plan(info, TilingSpec(mpp=0.2, size_px=100, upsample=True))
    assert (made.level, made.scale, made.read_px, made.n_cols, made.n_rows) == (0, 0.8, 80, 12, 8)


def test_a_level_asked_for_is_read_without_resampling() -> None:
    info = make_info(1000, 700, (1.0, 4.0))
    made = plan(info, TilingSpec(level=1, size_px=50, mpp=99.0))
    assert (made.level, made.scale, made.mpp, made.n_cols, made.n_rows) == (1, 1.0, 1.0, 5, 3)
    with pytest.raises(SettingsError, match=r"^level 2: slide 'a.svs' has levels 0..1; choose one of them$"):
        plan(info, TilingSpec(level=2))


@pytest.mark.parametrize(
    "values",
    [
        {"mpp": 0.0},
        {"mpp": -1.0},
        {"mpp": math.nan},
        {"mpp": math.inf},
        {"size_px": 0},
        {"size_px": 8193},
        {"stride_px": 0},
        {"stride_px": -3},
        {"min_tissue": -0.1},
        {"min_tissue": 1.1},
        {"min_tissue": math.nan},
        {"mpp_tolerance": -0.1},
        {"mpp_tolerance": 0.5},
        {"level": -1},
        {"edge": "crop"},
    ],
)
def test_values_out_of_range_are_refused_by_name(values: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=rf"^{next(iter(values))} .*: must .*; correct it$"):
        dataclasses.replace(TilingSpec(), **values)  # type: ignore[arg-type]


def interleave(row: int, col: int) -> int:
    """Bit by bit: column bits on the even places, row bits on the odd."""
    return sum(((col >> bit) & 1) << (2 * bit) | ((row >> bit) & 1) << (2 * bit + 1) for bit in range(32))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=20))
def test_morton_codes_interleave_the_bits(cells: list[tuple[int, int]]) -> None:
    row, col = (np.array([cell[axis] for cell in cells], np.int64) for axis in (0, 1))
    assert morton_order(row, col).tolist() == [interleave(*cell) for cell in cells]


def test_morton_order_walks_quadrant_by_quadrant() -> None:
    row, col = (axis.ravel() for axis in np.mgrid[0:4, 0:4])
    order = np.argsort(morton_order(row, col))
    assert list(zip(row[order][:8].tolist(), col[order][:8].tolist(), strict=True)) == [
        (0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3),
    ]  # fmt: skip


def test_a_tile_of_a_whole_slide_is_refused_before_its_pixels_take_the_memory() -> None:
    info = make_info(40_000, 30_000, (1.0, 4.0))
    assert plan(info, TilingSpec(mpp=64.0, size_px=256)).read_px == 16_384
    with pytest.raises(SettingsError, match=r"mpp 64\.1: a tile of 256 px would be read from 16410 x 16410 pixels"):
        plan(info, TilingSpec(mpp=64.1, size_px=256))
