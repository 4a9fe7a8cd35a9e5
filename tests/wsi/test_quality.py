"""Quality scores: sharp against blurred, ink, folds, and the limits set on them; on drawn tissue and on real slides."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.ink import find_ink
from simtriplet.wsi.quality import (
    QUALITY_COLUMNS,
    QUALITY_REASONS,
    QualitySpec,
    find_fold_limit,
    score_tiles,
)
from simtriplet.wsi.slide import open_slide
from simtriplet.wsi.synthetic_texture import paint_texture

Tiles = npt.NDArray[np.uint8]
INKS = {"blue": (25, 70, 170), "green": (30, 140, 60), "red": (200, 25, 45), "black": (25, 25, 28)}


@pytest.fixture(scope="module")
def drawn() -> Tiles:
    """(12, 256, 256, 3): four tiles of each dense class of one patient."""
    classes = ("epithelium", "stroma", "lymphoid")
    textures = [paint_texture(name, period_px=512, mpp=0.5, patient_seed=1).image for name in classes]
    return np.stack([image[y : y + 256, x : x + 256] for image in textures for y in (0, 256) for x in (0, 256)])


def blurred(tiles: Tiles, sigma_px: float) -> Tiles:
    return np.stack([cv2.GaussianBlur(tile, (0, 0), sigma_px) for tile in tiles])


def folded(tiles: Tiles) -> Tiles:
    """Lay the tissue twice: the light goes through both layers."""
    return np.clip(np.rint(tiles.astype(np.float64) ** 2 / 244), 0, 255).astype(np.uint8)


def own_limit(tiles: Tiles) -> float:
    overview = np.concatenate([cv2.resize(tile, (16, 16), interpolation=cv2.INTER_AREA) for tile in tiles])
    return find_fold_limit(overview, np.ones(overview.shape[:2], bool))


def test_columns_shapes_and_types(drawn: Tiles) -> None:
    scores = score_tiles(drawn)
    assert tuple(scores) == QUALITY_COLUMNS
    assert all(values.shape == (12,) and values.dtype == np.float32 for values in scores.values())
    assert all(len(values) == 0 for values in score_tiles(np.zeros((0, 64, 64, 3), np.uint8)).values())


def test_a_list_and_an_array_and_one_by_one_give_the_same(drawn: Tiles) -> None:
    whole = score_tiles(drawn)
    mixed = score_tiles([*drawn[:6], drawn[0, :100, :100], *drawn[6:]])
    for name, values in whole.items():
        assert np.array_equal(np.delete(mixed[name], 6), values)
        assert np.array_equal(np.concatenate([score_tiles([tile])[name] for tile in drawn]), values)


def test_sharpness_falls_with_every_step_of_blur(drawn: Tiles) -> None:
    steps = np.stack(
        [score_tiles(blurred(drawn, sigma) if sigma else drawn)["sharpness"] for sigma in (0, 1, 1.5, 2, 3)]
    )
    assert (np.diff(steps, axis=0) < 0).all()
    assert steps[0].min() > 0.2 > steps[2].max()


def test_sharpness_does_not_follow_the_amount_of_tissue(drawn: Tiles) -> None:
    """Half the tile made glass: the variance of the Laplacian halves, the score stays on its side of the limit."""
    half = drawn.copy()
    half[:, :, 128:] = 244
    assert score_tiles(half)["sharpness"].min() > 0.2
    assert score_tiles(blurred(half, 2.0))["sharpness"].max() < 0.2


def test_noise_is_not_detail() -> None:
    rng = np.random.default_rng(0)
    glass = np.clip(244 + rng.normal(0, 1.5, (4, 224, 224, 3)), 0, 255).astype(np.uint8)
    assert score_tiles(glass)["sharpness"].max() < 0.1
    assert score_tiles(np.full((1, 224, 224, 3), 255, np.uint8))["sharpness"].tolist() == [0.0]


@pytest.mark.parametrize("ink", INKS)
def test_pen_is_the_share_of_ink(drawn: Tiles, ink: str) -> None:
    marked = drawn.copy()
    marked[:, 64:128] = INKS[ink]
    scores = score_tiles(marked)
    assert scores["pen"] == pytest.approx(np.full(12, 0.25), abs=0.001)
    assert (scores["fold"] < 0.05).all()  # ink is not counted twice
    glass = np.full((1, 224, 224, 3), 244, np.uint8)
    cv2.line(glass[0], (0, 0), (224, 224), INKS[ink], 30, cv2.LINE_AA)
    assert score_tiles(glass)["pen"][0] == pytest.approx(
        (glass[0, ..., 0] < 200).mean() if ink != "red" else 0.17, abs=0.06
    )


def test_tissue_is_not_ink_not_folded_but_coloured(drawn: Tiles) -> None:
    scores = score_tiles(drawn, fold_limit=own_limit(drawn))
    assert scores["pen"].max() == 0
    assert scores["fold"].max() < 0.1
    assert scores["saturation"].min() > 0.1
    assert score_tiles(np.full((1, 64, 64, 3), 200, np.uint8))["saturation"].tolist() == [0.0]


def test_saturation_is_that_of_hsv() -> None:
    pixel = np.full((1, 64, 64, 3), (200, 100, 150), np.uint8)
    assert score_tiles(pixel)["saturation"] == pytest.approx([0.5])


def test_folds_stand_out_against_the_slides_own_stain(drawn: Tiles) -> None:
    limit = own_limit(drawn)
    plain, twice = score_tiles(drawn, fold_limit=limit)["fold"], score_tiles(folded(drawn), fold_limit=limit)["fold"]
    assert (twice >= plain).all()
    assert (twice > 0.15).sum() >= 8  # pale stroma lies within the range of the slide even when it lies twice
    assert (plain < 0.02).all()
    strip = drawn.copy()
    strip[:, :, 96:160] = folded(drawn)[:, :, 96:160]
    quarter = score_tiles(strip, fold_limit=limit)["fold"]
    assert (plain <= quarter).all()
    assert (quarter <= twice).all()


def test_a_paler_slide_gets_a_lower_fold_limit(drawn: Tiles) -> None:
    pale = np.rint(244 * (drawn / 244) ** 0.5).astype(np.uint8)
    assert own_limit(pale) < own_limit(drawn)
    assert find_fold_limit(pale[0], np.zeros((256, 256), bool)) == 0.3


@pytest.mark.parametrize("size", [1, 2, 7, 31, 225])
def test_tiles_of_any_size(size: int) -> None:
    scores = score_tiles(np.full((2, size, size, 3), (200, 120, 170), np.uint8))
    assert scores["sharpness"].tolist() == [0, 0]
    assert scores["saturation"] == pytest.approx([0.4, 0.4])


SCORES = {
    "sharpness": np.array([0.5, 0.1, 0.5, 0.5, 0.5, 0.1, 0.2], np.float32),
    "pen": np.array([0.0, 0.0, 0.3, 0.0, 0.0, 0.3, 0.1], np.float32),
    "fold": np.array([0.0, 0.0, 0.0, 0.4, 0.0, 0.4, 0.1], np.float32),
    "saturation": np.array([0.3, 0.3, 0.3, 0.3, 0.0, 0.0, 0.1], np.float32),
}


class TestSpec:
    def test_by_default_everything_is_kept(self) -> None:
        assert not QualitySpec().filters
        assert QualitySpec().keeps(SCORES).all()

    def test_the_first_limit_missed_is_the_reason_and_limits_are_inclusive(self) -> None:
        spec = QualitySpec(min_sharpness=0.2, max_pen=0.1, max_fold=0.1, min_saturation=0.1)
        codes = spec.reason_codes(SCORES)
        assert [QUALITY_REASONS[code] for code in codes] == [
            "kept",
            "blur",
            "pen",
            "fold",
            "saturation",
            "blur",
            "kept",
        ]
        assert spec.keeps(SCORES).tolist() == [True, False, False, False, False, False, True]
        assert spec.filters

    def test_one_limit_alone(self) -> None:
        assert QualitySpec(max_pen=0.0).keeps(SCORES).tolist() == [True, True, False, True, True, False, False]

    @pytest.mark.parametrize(
        "values", [{"min_sharpness": -1.0}, {"max_pen": 1.1}, {"max_fold": float("nan")}, {"min_saturation": -0.1}]
    )
    def test_limits_out_of_range_are_refused(self, values: dict[str, Any]) -> None:
        with pytest.raises(SettingsError, match=f"^{next(iter(values))} .*: must "):
            QualitySpec(**values)


def test_ink_of_any_shape() -> None:
    colours = np.array([*INKS.values(), (200, 120, 170), (90, 50, 120), (244, 244, 244), (60, 30, 90)], np.uint8)
    assert find_ink(colours).tolist() == [True] * 4 + [False] * 4
    assert find_ink(colours.reshape(2, 4, 3)).shape == (2, 4)


def test_a_real_slide_is_sharp_and_clean(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        xy = np.array([[x, y] for y in range(400, 2600, 300) for x in range(750, 1500, 250)])
        tiles = slide.read_windows(0, xy, (256, 256))
        whole = cv2.resize(
            slide.read(0, (0, 0), (2220, 2967)), None, fx=1 / 16, fy=1 / 16, interpolation=cv2.INTER_AREA
        )
    limit = find_fold_limit(whole, cv2.cvtColor(whole, cv2.COLOR_RGB2HSV)[..., 1] > 18)
    scores = score_tiles(tiles, fold_limit=limit)
    assert scores["sharpness"].min() > 0.3
    assert score_tiles(blurred(tiles, 1.5))["sharpness"].max() < 0.22
    assert np.quantile(scores["pen"], 0.9) < 0.02
    assert np.quantile(scores["fold"], 0.9) < 0.08
    assert score_tiles(folded(tiles), fold_limit=limit)["fold"].mean() > 5 * scores["fold"].mean()
