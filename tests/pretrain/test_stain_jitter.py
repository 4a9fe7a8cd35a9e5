"""Stain jitter against the published formulas in float64."""

import dataclasses

import numpy as np
import pytest
import torch

from simtriplet.pretrain.settings import ViewSettings, load_settings
from simtriplet.pretrain.stain import STAIN_VECTORS, jitter_stain
from simtriplet.pretrain.views import ViewMaker, normalise
from simtriplet.wsi.errors import SettingsError

SCALE = torch.tensor([[1.0, 1.0, 1.0], [0.8, 1.2, 1.0], [1.2, 0.8, 0.9], [1.0, 1.0, 1.0]])
SHIFT = torch.tensor([[0.0, 0.0, 0.0], [0.1, -0.1, 0.05], [-0.2, 0.2, 0.0], [0.0, -0.2, 0.0]])


@pytest.fixture
def images() -> torch.Tensor:
    """Random colours, among them black, white and the primaries."""
    images = torch.rand((4, 3, 9, 11), generator=torch.Generator().manual_seed(0))
    corners = torch.tensor([[r, g, b] for r in (0.0, 1.0) for g in (0.0, 1.0) for b in (0.0, 1.0)])
    images[:, :, 0, :8] = corners.T
    return images


def jitter_in_float64(image: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Beer-Lambert: I = 10^-(c M), c the concentrations; c -> scale c + shift. Pixels are rows."""
    densities = -np.log10(np.maximum(image.reshape(3, -1).T.astype(np.float64), 1 / 255))
    concentrations = np.linalg.solve(np.array(STAIN_VECTORS).T, densities.T).T
    changed = 10 ** -((concentrations * scale + shift) @ np.array(STAIN_VECTORS))
    return np.clip(changed, 0, 1).T.reshape(image.shape)


def test_stain_jitter_is_the_formula_with_parameters_per_sample(images):
    got = jitter_stain(images, SCALE.unbind(dim=1), SHIFT.unbind(dim=1))
    for i in range(4):
        wanted = jitter_in_float64(images[i].numpy(), SCALE[i].double().numpy(), SHIFT[i].double().numpy())
        np.testing.assert_allclose(got[i].numpy(), wanted, atol=5e-6, rtol=0)
        same = jitter_stain(images[i : i + 1], SCALE[i].tolist(), SHIFT[i].tolist())
        torch.testing.assert_close(same[0], got[i], atol=1e-6, rtol=0)


def test_without_change_of_the_concentrations_only_the_darkest_pixels_move(images):
    got = jitter_stain(images[:1], [1, 1, 1], [0, 0, 0])
    torch.testing.assert_close(got, images[:1].clamp_min(1 / 255), atol=2e-6, rtol=0)


def test_more_haematoxylin_darkens_by_its_own_colour():
    grey = torch.full((1, 3, 4, 4), 0.5)
    got = jitter_stain(grey, [1, 1, 1], [0.3, 0, 0])
    densities = torch.log10(grey / got)[0, :, 0, 0]
    torch.testing.assert_close(densities, 0.3 * torch.tensor(STAIN_VECTORS[0]), atol=1e-5, rtol=0)


def test_glass_stays_glass_when_only_scaled():
    white = torch.ones(1, 3, 4, 4)
    torch.testing.assert_close(jitter_stain(white, [0.8, 1.2, 1], [0, 0, 0]), white)


@pytest.mark.parametrize("way", ["apply_one_by_one", "apply_at_once"])
def test_a_view_has_the_stain_jitter_where_it_was_drawn(way):
    still = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "horizontal_flip_p": 0.0}
    settings = ViewSettings(**still, jitter_p=0, grey_p=0, blur_p=0, stain_p=0.5, stain=0.2)
    tiles = torch.randint(0, 256, (12, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maker = ViewMaker(settings, image_size_px=16)
    drawn = maker.draw(tiles, torch.Generator().manual_seed(1))
    assert 0 < drawn.stained.sum() < 12
    views = getattr(maker, way)(tiles, drawn)
    for i, image in enumerate(tiles.permute(0, 3, 1, 2).numpy() / 255):
        changed = jitter_in_float64(image, drawn.stain_scale[i].double().numpy(), drawn.stain_shift[i].double().numpy())
        wanted = torch.from_numpy(changed if drawn.stained[i] else image)[None].float()
        torch.testing.assert_close(views[i : i + 1], normalise(wanted, settings), atol=5e-5, rtol=0)


def test_greying_comes_after_the_stain():
    settings = ViewSettings(jitter_p=0, grey_p=1, blur_p=0, stain_p=1, stain=0.2, mean=(0, 0, 0), std=(1, 1, 1))
    tiles = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    views = ViewMaker(settings, image_size_px=16)(tiles, torch.Generator().manual_seed(1))
    without = ViewMaker(dataclasses.replace(settings, stain_p=0), image_size_px=16)
    assert torch.equal(views[:, 0], views[:, 1])
    assert (views - without(tiles, torch.Generator().manual_seed(1))).abs().mean() > 0.01


@pytest.mark.parametrize("override", ["views.stain_p=1.5", "views.stain_p=-0.1", "views.stain=1.2", "views.stain=-0.1"])
def test_settings_out_of_range_are_refused(override):
    with pytest.raises(SettingsError, match=override.split("=")[0].replace(".", r"\.")):
        load_settings(overrides=[override])


def test_only_the_pathology_preset_jitters_stains():
    views = {name: load_settings(preset=name).views for name in ("paper", "pathology", "quick")}
    assert [name for name, settings in views.items() if settings.stain_p] == ["pathology"]
    assert views["pathology"].stain > 0
    assert views["pathology"].hue == 0
