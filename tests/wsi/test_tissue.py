"""Tissue: exact coverage, regions, what is too small, and slides that are all glass or all tissue."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from simtriplet.wsi.errors import SettingsError, UnknownNameError
from simtriplet.wsi.overview import Overview
from simtriplet.wsi.tissue import DETECTORS, OtsuDetector, TissueMap, TissueSpec, map_tissue

PINK = (200, 120, 170)
GLASS = (242, 240, 243)


def glass_with(boxes: list[tuple[int, int, int, int]], *, width: int = 200, height: int = 120) -> npt.NDArray[np.uint8]:
    """Draw (x, y, width, height) boxes of tissue on noisy glass."""
    rng = np.random.default_rng(0)
    pixels = np.full((height, width, 3), GLASS, np.int16)
    for x, y, w, h in boxes:
        pixels[y : y + h, x : x + w] = PINK
    return np.clip(pixels + rng.integers(-3, 4, pixels.shape), 0, 255).astype(np.uint8)


def pixel_boxes(mask: npt.NDArray[Any], downsample: float) -> npt.NDArray[Any]:
    y, x = np.nonzero(mask)
    boxes = shapely.box(x * downsample, y * downsample, (x + 1) * downsample, (y + 1) * downsample)
    return np.atleast_1d(boxes)


maps = st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(0, 2**32 - 1), st.floats(0.5, 40))


@settings(deadline=None, max_examples=100)
@given(layout=maps, size=st.floats(0.3, 200), seed=st.integers(0, 999))
def test_coverage_is_the_area_of_the_mask_in_the_tile(
    layout: tuple[int, int, int, float], size: float, seed: int
) -> None:
    width, height, mask_seed, downsample = layout
    mask = np.random.default_rng(mask_seed).integers(0, 3, (height, width)).astype(np.uint16)
    tissue = TissueMap(mask, downsample)
    corners = np.random.default_rng(seed).integers(-20, int(10 * downsample) + 20, (6, 2))
    boxes = pixel_boxes(mask, downsample)
    for (x, y), share in zip(corners.tolist(), tissue.coverage(corners, size).tolist(), strict=True):
        area = shapely.area(shapely.intersection(boxes, shapely.box(x, y, x + size, y + size))).sum()
        assert share == pytest.approx(area / size**2, abs=1e-9)
        assert 0 <= share <= 1


@settings(deadline=None, max_examples=80)
@given(layout=maps, size=st.floats(1, 200), seed=st.integers(0, 999))
def test_a_tile_belongs_to_the_region_that_covers_most_of_it(
    layout: tuple[int, int, int, float], size: float, seed: int
) -> None:
    width, height, mask_seed, downsample = layout
    mask = np.random.default_rng(mask_seed).integers(0, 3, (height, width)).astype(np.uint16)
    tissue = TissueMap(mask, downsample)
    corners = np.random.default_rng(seed).integers(-20, int(10 * downsample) + 20, (6, 2))
    found = tissue.region_of(corners, size)
    assert found.dtype == np.int32
    boxes = [pixel_boxes(mask == number, downsample) for number in (1, 2)]
    for (x, y), region in zip(corners.tolist(), found.tolist(), strict=True):
        tile = shapely.box(x, y, x + size, y + size)
        areas = [float(shapely.area(shapely.intersection(part, tile)).sum()) / size**2 for part in boxes]
        if max(areas) < 1e-9:
            assert region == -1 or max(areas) > 0
        else:
            assert areas[region] == pytest.approx(max(areas), abs=1e-9)


def test_the_region_is_the_one_that_covers_most() -> None:
    regions = np.zeros((10, 20), np.uint16)
    regions[:, :8], regions[:, 10:] = 1, 2
    tissue = TissueMap(regions, 10.0)
    corners = np.array([[0, 0], [40, 0], [61, 20], [59, 20], [100, 0], [85, 0], [500, 0]])
    assert tissue.n_regions == 2
    assert tissue.region_of(corners, 60.0).tolist() == [0, 0, 1, 0, 1, 1, -1]
    assert tissue.region_of(np.array([[81, 0]]), 15.0).tolist() == [-1]


def test_polygons_outline_each_region_with_its_holes() -> None:
    regions = np.zeros((40, 60), np.uint16)
    cv2.rectangle(regions, (2, 3), (21, 32), 1, -1)
    cv2.rectangle(regions, (8, 10), (15, 20), 0, -1)
    cv2.rectangle(regions, (40, 5), (50, 15), 2, -1)
    regions[38, 58] = 2
    first, second = TissueMap(regions, 4.0).polygons()
    assert first.bounds == (10.0, 14.0, 86.0, 130.0)
    assert len(first.geoms[0].interiors) == 1
    assert second.bounds == (162.0, 22.0, 202.0, 62.0)
    assert first.is_valid
    assert second.is_valid
    # the outline runs through pixel centres, so it differs from the pixels by at most half a pixel on every side
    pixels = shapely.union_all(pixel_boxes(regions == 1, 4.0))
    assert pixels.buffer(1e-9).contains(first)
    assert first.buffer(4.0).contains(pixels)


def test_an_empty_map_has_no_regions() -> None:
    tissue = TissueMap(np.zeros((4, 4), np.uint16), 8.0)
    assert tissue.n_regions == 0
    assert tissue.polygons() == []
    assert tissue.coverage(np.array([[0, 0]]), 16.0).tolist() == [0.0]


class TestMapTissue:
    def regions(self, pixels: npt.NDArray[np.uint8], *, mpp: float = 1.0, **spec: Any) -> TissueMap:
        return map_tissue(Overview(pixels, 8.0), TissueSpec(**spec), slide_mpp=mpp)

    def test_regions_are_numbered_by_size(self) -> None:
        tissue = self.regions(glass_with([(10, 10, 40, 40), (80, 20, 90, 80)]), min_region_um2=0)
        assert tissue.n_regions == 2
        assert tissue.regions[60, 120] == 1
        assert tissue.regions[30, 30] == 2
        assert tissue.regions[5, 190] == 0
        assert tissue.downsample == 8.0
        for number, area in ((1, 90 * 80), (2, 40 * 40)):
            assert (tissue.regions == number).sum() == pytest.approx(area, rel=0.06)

    def test_small_pieces_are_dropped_by_their_area_in_square_micrometres(self) -> None:
        """One overview pixel is 8 x 8 um here; the piece of 16 x 16 pixels covers 16,384 um2."""
        pixels = glass_with([(80, 20, 90, 80), (20, 20, 16, 16)])
        assert self.regions(pixels, min_region_um2=13_000).n_regions == 2
        assert self.regions(pixels, min_region_um2=20_000).n_regions == 1
        assert self.regions(pixels, min_region_um2=20_000, mpp=2.0).n_regions == 2

    def test_small_holes_are_filled_by_their_area(self) -> None:
        pixels = glass_with([(20, 10, 160, 100)])
        pixels[50:70, 90:110] = GLASS  # 400 pixels, 25,600 um2
        assert self.regions(pixels, max_hole_um2=20_000).regions[60, 100] == 0
        assert self.regions(pixels, max_hole_um2=30_000).regions[60, 100] == 1

    def test_a_bay_at_the_border_is_no_hole(self) -> None:
        pixels = glass_with([(0, 0, 200, 120)])
        pixels[0:16, 90:110] = GLASS
        assert self.regions(pixels, max_hole_um2=50_000).regions[4, 100] == 0

    def test_limits_do_not_swallow_a_small_slide(self) -> None:
        """A slide of 480 x 320 um: the default limits would drop a third of it."""
        tissue = self.regions(glass_with([(10, 10, 30, 20)], width=60, height=40))
        assert tissue.n_regions == 1

    def test_glass_alone_is_no_tissue(self) -> None:
        assert self.regions(glass_with([])).n_regions == 0
        assert self.regions(np.full((50, 60, 3), 255, np.uint8)).n_regions == 0

    def test_tissue_alone_is_kept(self) -> None:
        """Otsu by itself would split a slide without glass."""
        tissue = self.regions(glass_with([(0, 0, 200, 120)]))
        assert tissue.n_regions == 1
        assert (tissue.regions == 1).mean() > 0.99

    def test_black_pen_and_dust_are_no_tissue(self) -> None:
        pixels = glass_with([(100, 20, 80, 80)])
        pixels[20:60, 20:60] = (12, 12, 12)
        tissue = self.regions(pixels, min_region_um2=0)
        assert tissue.n_regions == 1
        assert tissue.regions[40, 40] == 0

    @pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (3, 3), (4, 200)])
    def test_tiny_pictures_do_not_fail(self, shape: tuple[int, int]) -> None:
        assert self.regions(np.full((*shape, 3), PINK, np.uint8)).n_regions == 1
        assert self.regions(np.full((*shape, 3), 255, np.uint8)).n_regions == 0

    def test_everything_is_tissue_when_asked(self) -> None:
        tissue = self.regions(glass_with([]), detector="all")
        assert (tissue.regions == 1).all()


def test_gaps_narrower_than_asked_are_closed() -> None:
    pixels = glass_with([(20, 20, 70, 80), (94, 20, 80, 80)])
    gap = (slice(40, 80), slice(91, 93))
    assert OtsuDetector(close_um=80.0).detect(pixels, 8.0)[gap].all()
    assert not OtsuDetector(close_um=8.0).detect(pixels, 8.0)[gap].any()


def test_a_detector_can_be_added_by_name() -> None:
    class LeftHalf:
        name = "left half"

        def detect(self, pixels: npt.NDArray[np.uint8], um_per_px: float) -> npt.NDArray[np.bool_]:
            mask = np.zeros(pixels.shape[:2], bool)
            mask[:, : mask.shape[1] // 2] = True
            return mask

    DETECTORS.add("left half", LeftHalf)
    try:
        tissue = map_tissue(Overview(glass_with([]), 8.0), TissueSpec(detector="left half"), slide_mpp=1.0)
        assert (tissue.regions[:, :100] == 1).all()
        assert (tissue.regions[:, 100:] == 0).all()
    finally:
        DETECTORS._entries.pop("left half")


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"^tissue detector 'otsus': is not known; did you mean 'otsu'"):
        TissueSpec(detector="otsus")
    for values in ({"min_region_um2": -1.0}, {"max_hole_um2": float("nan")}, {"max_hole_um2": float("inf")}):
        with pytest.raises(SettingsError, match="must be zero or a positive number"):
            TissueSpec(**values)
