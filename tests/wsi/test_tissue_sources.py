"""The user's own tissue, painted or outlined; detectors on ink, lines, dust, and on grey, tinted and pale slides."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from simtriplet.wsi.area_cover import Cover
from simtriplet.wsi.errors import AnnotationError, TissueError, UnknownNameError
from simtriplet.wsi.overview import Overview
from simtriplet.wsi.tissue import TissueSpec, map_tissue
from simtriplet.wsi.tissue_polygons import PolygonTissue
from simtriplet.wsi.tissue_source import find_tissue, mask_file

DETECTORS = ("otsu", "hsv", "entropy")
INKS = {"blue": (25, 70, 170), "green": (30, 140, 60), "red": (200, 25, 45), "black": (25, 25, 28)}
Pixels = npt.NDArray[np.uint8]


def draw_overview(*, width: int = 300, height: int = 200) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return light (0..1 of the lamp's) of two pieces of grainy tissue on glass, and where they are."""
    rng = np.random.default_rng(0)
    tissue = np.zeros((height, width), np.uint8)
    cv2.ellipse(tissue, (90, 110), (60, 55), 0, 0, 360, 1, -1)
    cv2.ellipse(tissue, (220, 90), (45, 60), 20, 0, 360, 1, -1)
    grain = cv2.GaussianBlur(rng.normal(0, 1, tissue.shape), (0, 0), 1.2) * 1.6
    density = np.clip(0.45 + 0.22 * grain, 0.1, None)[..., None] * np.array([0.35, 0.95, 0.6]) * tissue[..., None]
    return 10**-density, tissue > 0


def expose(light: npt.NDArray[np.float64], glass: Any = (244, 244, 244), noise: float = 1.5) -> Overview:
    pixels = light * np.array(glass) + np.random.default_rng(1).normal(0, noise, light.shape)
    return Overview(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), 8.0)


def detect(overview: Overview, detector: str) -> npt.NDArray[np.bool_]:
    return map_tissue(overview, TissueSpec(detector=detector), slide_mpp=1.0).regions > 0


def agreement(found: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    return float((found & truth).sum() / (found | truth).sum())


@pytest.mark.parametrize("detector", DETECTORS)
class TestDetectors:
    def test_tissue_is_found(self, detector: str) -> None:
        light, truth = draw_overview()
        assert agreement(detect(expose(light), detector), truth) > 0.9

    @pytest.mark.parametrize("glass", [(205, 203, 198), (228, 216, 190), (180, 182, 185), (225, 235, 228)])
    def test_grey_and_tinted_glass_is_glass(self, detector: str, glass: tuple[int, int, int]) -> None:
        light, truth = draw_overview()
        assert agreement(detect(expose(light, glass), detector), truth) > 0.88
        assert not detect(expose(np.ones_like(light), glass), detector).any()

    def test_glass_with_dust_is_glass(self, detector: str) -> None:
        pixels = expose(np.ones((300, 400, 3))).pixels.copy()
        rng = np.random.default_rng(2)
        for _ in range(60):
            grey = int(rng.integers(60, 200))
            colour = tuple(int(c) for c in np.clip(grey + rng.integers(-10, 11, 3), 0, 255))
            cv2.circle(pixels, tuple(rng.integers(10, 290, 2).tolist()), int(rng.integers(1, 5)), colour, -1)
        assert not detect(Overview(pixels, 8.0), detector).any()

    @pytest.mark.parametrize("ink", INKS)
    def test_strokes_on_glass_are_no_tissue(self, detector: str, ink: str) -> None:
        light, truth = draw_overview()
        stroke = np.zeros(truth.shape, np.uint8)
        cv2.line(stroke, (150, 5), (160, 195), 1, 9)
        cv2.line(stroke, (5, 10), (290, 14), 1, 9)
        stroke = cv2.GaussianBlur(stroke.astype(np.float64), (0, 0), 0.8)[..., None]
        inked = light * (1 - stroke * (1 - np.array(INKS[ink]) / 244))
        found = detect(expose(inked), detector)
        assert agreement(found, truth) > 0.85
        assert (found & (stroke[..., 0] > 0.5) & ~truth).mean() < 0.002

    def test_edges_of_a_cover_slip_are_no_tissue(self, detector: str) -> None:
        light, truth = draw_overview()
        light = light.copy()
        tint = np.array([0.85, 0.78, 0.92])
        light[:, 3:6] *= tint
        light[185:188] *= tint
        light[:4] *= tint
        slanted = np.zeros(truth.shape, np.uint8)
        cv2.line(slanted, (10, 12), (290, 22), 1, 2)
        light[slanted > 0] *= tint
        found = detect(expose(light), detector)
        assert agreement(found, truth) > 0.88
        assert not found[:, :8].any()
        assert not found[:8].any()


def test_pale_tissue_is_found_by_its_colour() -> None:
    light, truth = draw_overview()
    assert agreement(detect(expose(light**0.3), "otsu"), truth) > 0.88


def test_colours_that_no_stain_has_are_left_out_by_hsv_alone() -> None:
    light, _ = draw_overview()
    pixels = expose(light).pixels.copy()
    pixels[150:195, 180:290] = (215, 225, 170)  # yellow-green glue
    assert not detect(Overview(pixels, 8.0), "hsv")[160:190, 240:285].any()
    assert detect(Overview(pixels, 8.0), "otsu")[160:190, 240:285].all()


def cover_by_hand(areas: list[Any], corners: npt.NDArray[np.int64], size: float) -> list[float]:
    union = shapely.union_all(areas)
    return [
        float(union.intersection(shapely.box(x, y, x + size, y + size)).area / size**2) for x, y in corners.tolist()
    ]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), n_points=st.sampled_from([3, 10, 400]), size=st.floats(3, 60))
def test_the_cover_of_outlines_is_exact(seed: int, n_points: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    areas = []
    for _ in range(3):
        angles = np.sort(rng.uniform(0, 2 * np.pi, n_points))
        radii = rng.uniform(5, 40, n_points)
        points = rng.uniform(20, 130, 2) + radii[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])
        areas.append(shapely.make_valid(shapely.Polygon(points)))
    corners = rng.integers(-20, 160, (30, 2))
    expected = cover_by_hand(areas, corners, size)
    assert Cover(corners, size).shares(shapely.union_all(areas)) == pytest.approx(expected, abs=1e-9)


class TestPolygonTissue:
    areas = (shapely.box(10, 10, 30, 30), shapely.box(25, 10, 40, 30), shapely.box(60, 20, 70.5, 30.25))

    def test_regions_are_contiguous_areas_the_largest_first(self) -> None:
        tissue = PolygonTissue(self.areas, (20, 10), 5.0)
        assert tissue.n_regions == 2
        assert [polygon.bounds for polygon in tissue.polygons()] == [(10, 10, 40, 30), (60, 20, 70.5, 30.25)]
        assert tissue.regions.shape == (10, 20)
        assert tissue.regions[4, 4] == 1
        assert tissue.regions[4, 13] == 2
        assert tissue.regions[0, 0] == 0

    def test_coverage_comes_from_the_polygons_not_their_picture(self) -> None:
        tissue = PolygonTissue(self.areas, (20, 10), 5.0)
        corners = np.array([[10, 10], [0, 0], [35, 25], [60, 20], [66, 26], [90, 40]])
        assert tissue.coverage(corners, 10.0).tolist() == pytest.approx([1, 0, 0.25, 1, 0.19125, 0])
        assert tissue.region_of(corners, 10.0).tolist() == [0, -1, 0, 1, 1, -1]
        assert tissue.region_of(np.array([[32, 20]]), 31.0).tolist() == [0]
        assert tissue.region_of(np.array([[38, 20]]), 31.0).tolist() == [1]

    def test_holes_and_what_lies_beyond_the_slide_are_outside(self) -> None:
        ring = shapely.box(-50, 0, 50, 50).difference(shapely.box(10, 10, 30, 30))
        tissue = PolygonTissue([ring], (20, 10), 5.0)
        assert tissue.polygons()[0].area == 2500 - 400
        assert tissue.coverage(np.array([[10, 10], [-10, 0]]), 10.0).tolist() == [0, 0]
        assert tissue.regions[4, 4] == 0

    def test_no_areas(self) -> None:
        tissue = PolygonTissue([], (4, 4), 8.0)
        assert tissue.n_regions == 0
        assert tissue.coverage(np.array([[0, 0]]), 8.0).tolist() == [0]
        assert tissue.region_of(np.array([[0, 0]]), 8.0).tolist() == [-1]


class TestOwnMask:
    overview = Overview(np.full((50, 100, 3), 255, np.uint8), 10.0)

    def find(self, path: Path, slide_id: str = "s") -> Any:
        return find_tissue(self.overview, TissueSpec(detector=f"mask:{path}"), slide_mpp=0.5, slide_id=slide_id)

    def write(self, path: Path, pixels: npt.NDArray[Any]) -> Path:
        cv2.imwrite(str(path), pixels)
        return path

    @pytest.mark.parametrize("scale", [0.5, 1, 3, 7.5])
    def test_a_picture_of_any_size(self, tmp_path: Path, scale: float) -> None:
        pixels = np.zeros((round(50 * scale), round(100 * scale)), np.uint8)
        pixels[: round(20 * scale), : round(40 * scale)] = 255
        pixels[round(40 * scale) :, round(90 * scale) :] = 1  # a label image counts from 1
        tissue = self.find(self.write(tmp_path / "m.png", pixels))
        assert tissue.n_regions == 2
        assert tissue.downsample == 10.0
        assert tissue.coverage(np.array([[0, 0], [100, 100], [350, 0], [900, 400]]), 100.0) == pytest.approx(
            [1, 1, 0.5, 1], abs=0.03
        )

    def test_colour_and_alpha(self, tmp_path: Path) -> None:
        pixels = np.zeros((50, 100, 4), np.uint8)
        pixels[:, :30] = (0, 0, 200, 255)
        pixels[:, 60:] = (255, 255, 255, 0)
        assert (
            self.find(self.write(tmp_path / "m.png", pixels)).regions.any(axis=0).tolist() == [True] * 30 + [False] * 70
        )

    @pytest.mark.parametrize(
        ("height", "width", "fits"), [(1000, 2000, True), (1000, 2050, True), (1000, 1900, False), (2000, 1000, False)]
    )
    def test_another_aspect_is_refused(self, tmp_path: Path, height: int, width: int, fits: bool) -> None:
        """The overview of 50 rows leaves 2 % in doubt, beside the 1 % allowed."""
        path = self.write(tmp_path / "m.png", np.full((height, width), 255, np.uint8))
        if fits:
            assert (self.find(path).regions == 1).all()
            return
        with pytest.raises(
            TissueError, match=r"do not have the slide's aspect of 2\.000; save the mask of the whole slide"
        ):
            self.find(path)

    def test_outlines_are_exact(self, tmp_path: Path) -> None:
        ring = [[0, 0], [105, 0], [105, 105], [0, 105], [0, 0]]
        feature = {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"classification": "Tissue"},
        }
        path = tmp_path / "s.geojson"
        path.write_text(json.dumps([feature]))
        for given_path in (path, tmp_path):
            assert self.find(given_path).coverage(np.array([[100, 0]]), 10.0).tolist() == [0.5]

    def test_a_folder_holds_one_file_a_slide(self, tmp_path: Path) -> None:
        self.write(tmp_path / "s.png", np.full((50, 100), 255, np.uint8))
        assert (self.find(tmp_path).regions == 1).all()
        with pytest.raises(
            TissueError, match=r"holds no mask for slide 't'; leave one <slide_id>\.png or \.geojson there$"
        ):
            self.find(tmp_path, "t")
        (tmp_path / "s.xml").touch()
        with pytest.raises(TissueError, match=r"holds both s\.png and s\.xml for slide 's'"):
            self.find(tmp_path)

    def test_what_is_no_mask_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "text.png").write_text("text")
        (tmp_path / "empty.png").touch()
        for name in ("text.png", "empty.png"):
            with pytest.raises(TissueError, match=r"is not a picture; save it as PNG$"):
                self.find(tmp_path / name)
        with pytest.raises(TissueError, match="does not exist"):
            self.find(tmp_path / "missing.png")
        (tmp_path / "bad.geojson").write_text("{")
        with pytest.raises(AnnotationError, match="is not GeoJSON"):
            self.find(tmp_path / "bad.geojson")

    def test_a_picture_that_fills_the_memory_is_refused_before_it_is_decoded(self, tmp_path: Path) -> None:
        """8 GiB in 8 MB, of which the head is enough: 16 bits, red, green, blue and alpha."""
        head = b"IHDR" + struct.pack(">IIBBBBB", 32_768, 32_768, 16, 6, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
        (tmp_path / "bomb.png").write_bytes(data)
        with pytest.raises(TissueError, match="has more pixels than a mask needs; save it at some 8 um a pixel, grey"):
            self.find(tmp_path / "bomb.png")

    def test_detectors_need_no_file_and_a_store_never_holds_a_path(self, tmp_path: Path) -> None:
        assert mask_file(TissueSpec(), "s") is None
        assert TissueSpec(detector="hsv").describe()["detector"] == "hsv"
        assert TissueSpec(detector=f"mask:{tmp_path / 'm.png'}").describe()["detector"] == "mask:m.png"
        assert find_tissue(self.overview, TissueSpec(), slide_mpp=0.5, slide_id="s").n_regions == 0
        with pytest.raises(UnknownNameError, match="known are all, entropy, hsv, otsu, mask:PATH"):
            TissueSpec(detector="mask:")
