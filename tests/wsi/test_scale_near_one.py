"""Tiles a little coarser than the level: OpenCV copies pixels there, which would be wrong by up to half the contrast."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simtriplet.wsi.geometry import TilingSpec, plan_tiles
from simtriplet.wsi.resampling import resample
from simtriplet.wsi.slide import SlideInfo


def _exact(window: np.ndarray[Any, Any], scale: float, size: int) -> np.ndarray[Any, Any]:
    """The mean over [i, i + 1) x scale in each direction, in float64, by a loop over the pixels touched."""
    weights = np.zeros((size, len(window)))
    for i in range(size):
        for j in range(int(i * scale), min(len(window), int(np.ceil((i + 1) * scale)))):
            weights[i, j] = max(0.0, min((i + 1) * scale, j + 1) - max(i * scale, j))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("ij,jkc,lk->ilc", weights, window.astype(np.float64), weights)


@settings(deadline=None, max_examples=60)
@given(size=st.integers(4, 48), scale=st.floats(1.0005, 1.2), seed=st.integers(0, 99))
def test_every_scale_averages(size: int, scale: float, seed: int) -> None:
    read = int(np.ceil(round(size * scale, 6)))
    window = np.random.default_rng(seed).integers(0, 256, (read, read, 3), np.uint8)
    tile = resample(window, scale, size)
    assert tile.shape == (size, size, 3)
    assert np.abs(tile - _exact(window, scale, size)).max() <= 1.0


def test_the_size_and_mpp_of_a_20x_slide() -> None:
    info = SlideInfo(((2220, 2967),), (1.0,), 0.499, 0.499, 20.0, "aperio")
    plan = plan_tiles(info, 0.499, TilingSpec(mpp=0.5, size_px=224, mpp_tolerance=0.0), slide_name="CMU")
    assert plan.mpp == 0.5, "as it was asked for, without the noise of a product"
    assert plan.scale == pytest.approx(0.5 / 0.499)
    window = np.random.default_rng(0).integers(0, 256, (plan.read_px, plan.read_px, 3), np.uint8)
    tile = resample(window, plan.scale, 224)
    assert np.abs(tile - _exact(window, plan.scale, 224)).max() <= 1.0
    assert not np.array_equal(tile, window[:224, :224])
