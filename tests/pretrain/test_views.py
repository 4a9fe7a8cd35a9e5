"""Views against torchvision's functions, sample by sample, with the parameters that were drawn."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from simtriplet.pretrain.colour import blend, jitter, luminance, shift_hue, to_grey
from simtriplet.pretrain.resampling import blur, blur_radius, crop_matrix, resample
from simtriplet.pretrain.settings import ViewSettings
from simtriplet.pretrain.views import ViewMaker, normalise

EVERYTHING = ViewSettings(rotations90=True, vertical_flip_p=0.5)


def random_tiles(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth blobs with noise: flat noise would hide a shift by a pixel."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / rng.uniform(2, 9) + rng.uniform(0, 6)) * np.cos(y / rng.uniform(2, 9)) for _ in range(3 * n)]
    tiles = 127 + 80 * np.stack(waves).reshape(n, 3, height, width).transpose(0, 2, 3, 1)
    return torch.from_numpy((tiles + rng.normal(0, 20, tiles.shape)).clip(0, 255).astype(np.uint8))


def images_of(tiles: torch.Tensor) -> torch.Tensor:
    return tiles.permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("size", [16, 24, 40])
def test_crop_and_resize_is_torchvisions_antialiased_one(size):
    tiles = random_tiles(5, 33, 47)
    top, left = torch.tensor([0, 3, 7, 1, 0]), torch.tensor([2, 0, 11, 30, 0])
    height, width = torch.tensor([33, 20, 5, 32, 1]), torch.tensor([45, 47, 9, 17, 1])
    never = torch.zeros(5, dtype=torch.bool)
    rows = crop_matrix(top, height, never, in_px=33, out_px=size)
    columns = crop_matrix(left, width, never, in_px=47, out_px=size)
    got = resample(tiles.float() / 255, rows, columns)
    for i, image in enumerate(images_of(tiles)):
        box = [int(each[i]) for each in (top, left, height, width)]
        wanted = tv.resized_crop(image, *box, size=[size, size], antialias=True)
        torch.testing.assert_close(got[i], wanted, atol=2e-6, rtol=0)


@hypothesis_settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.integers(1, 64), st.booleans(), st.integers(1, 80))
def test_every_row_of_a_crop_matrix_averages_pixels_of_the_crop(start, length, flip, out_px):
    length = min(length, 64 - start)
    matrix = crop_matrix(torch.tensor([start]), torch.tensor([length]), torch.tensor([flip]), in_px=64, out_px=out_px)[
        0
    ]
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(out_px))
    assert matrix[:, :start].abs().sum() == 0
    assert matrix[:, start + length :].abs().sum() == 0


def test_blur_is_torchvisions_where_it_is_drawn_and_nothing_elsewhere():
    images = images_of(random_tiles(4, 32, 32))
    sigma = torch.tensor([0.0, 0.1, 1.3, 2.0])
    radius = blur_radius(2.0, 32)
    assert radius == 6
    got = blur(images, sigma, radius=radius)
    assert torch.equal(got[0], images[0])
    for i in (1, 2, 3):
        wanted = tv.gaussian_blur(images[i], [2 * radius + 1] * 2, [float(sigma[i])] * 2)
        torch.testing.assert_close(got[i], wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "function"), [(0, tv.adjust_brightness), (1, tv.adjust_contrast), (2, tv.adjust_saturation)]
)
def test_blends_are_torchvisions_with_a_factor_per_sample(change, function):
    images = images_of(random_tiles(4, 20, 20))
    factors = torch.tensor([0.0, 0.6, 1.0, 1.4])
    got = blend(images, torch.full((4,), change), factors)
    for i in range(4):
        torch.testing.assert_close(got[i], function(images[i], float(factors[i])), atol=1e-6, rtol=0)


def test_hue_is_torchvisions_also_on_grey_and_saturated_pixels():
    images = images_of(random_tiles(5, 20, 20))
    images[:, :, 0, :] = 0.5
    images[:, :, 1, :] = torch.tensor([1.0, 0.0, 0.0])[:, None]
    images[:, :, 2, :] = torch.tensor([0.0, 1.0, 1.0])[:, None]
    turns = torch.tensor([-0.5, -0.1, 0.0, 0.07, 0.5])
    got = shift_hue(images, turns)
    for i in range(5):
        torch.testing.assert_close(got[i], tv.adjust_hue(images[i], float(turns[i])), atol=5e-6, rtol=0)


def test_grey_is_torchvisions_where_it_is_drawn():
    images = images_of(random_tiles(2, 8, 8))
    got = to_grey(images, torch.tensor([True, False]))
    torch.testing.assert_close(got[0], tv.rgb_to_grayscale(images[0], num_output_channels=3), atol=1e-6, rtol=0)
    assert torch.equal(got[1], images[1])
    assert luminance(images).shape == (2, 1, 8, 8)


def test_jitter_keeps_each_samples_own_order():
    """All 24 orders at once, against torchvision's functions called in that order."""
    import itertools

    orders = [(order, gap) for order in itertools.permutations(range(3)) for gap in range(4)]
    images = images_of(random_tiles(24, 12, 12))
    factors = torch.tensor([[1.4, 0.6, 1.4]]).repeat(24, 1)
    got = jitter(
        images,
        factors=factors,
        order=torch.tensor([order for order, _ in orders]),
        hue_gap=torch.tensor([gap for _, gap in orders]),
        hue=torch.full((24,), 0.1),
    )
    for i, (order, gap) in enumerate(orders):
        wanted = _jitter_one(images[i], factors[i], order, gap, 0.1)
        torch.testing.assert_close(got[i], wanted, atol=1e-5, rtol=0)
    assert len({tuple(image.flatten()[:50].tolist()) for image in got - images}) == 24


def _jitter_one(image, factors, order, gap, hue):
    blends = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    for rank, change in enumerate(order):
        if rank == gap:
            image = tv.adjust_hue(image, hue)
        image = blends[change](image, float(factors[change]))
    return tv.adjust_hue(image, hue) if gap == 3 else image


@pytest.mark.parametrize(("height", "width", "size"), [(40, 40, 24), (24, 24, 32), (30, 44, 24)])
def test_a_whole_view_is_torchvisions_functions_one_after_the_other(height, width, size):
    tiles = random_tiles(24, height, width)
    maker = ViewMaker(EVERYTHING, image_size_px=size)
    generator = torch.Generator().manual_seed(1)
    parameters = maker.draw(tiles, generator)
    got = maker.apply(tiles, parameters)
    assert parameters.quarter_turns.unique().tolist() == [0, 1, 2, 3]
    for i, image in enumerate(images_of(tiles)):
        torch.testing.assert_close(got[i], _view_one(image, parameters, i, size), atol=1e-4, rtol=0)


def _view_one(image, parameters, i, size):
    one = {name: values[i] for name, values in parameters._asdict().items()}
    box = [int(one[name]) for name in ("top", "left", "height", "width")]
    image = tv.resized_crop(image, *box, size=[size, size], antialias=True)
    image = tv.horizontal_flip(image) if one["flip_x"] else image
    image = tv.vertical_flip(image) if one["flip_y"] else image
    image = torch.rot90(image, int(one["quarter_turns"]), (1, 2))
    image = _jitter_one(image, one["factors"], one["order"].tolist(), int(one["hue_gap"]), float(one["hue"]))
    image = tv.rgb_to_grayscale(image, num_output_channels=3) if one["grey"] else image
    if one["blur_sigma"] > 0:
        kernel = 2 * blur_radius(2.0, size) + 1
        image = tv.gaussian_blur(image, [kernel, kernel], [float(one["blur_sigma"])] * 2)
    return tv.normalize(image, list(EVERYTHING.mean), list(EVERYTHING.std))


def test_views_are_seeded_and_fresh_each_time():
    tiles = random_tiles(6, 32, 32)
    maker = ViewMaker(ViewSettings(), image_size_px=32)
    generator = torch.Generator().manual_seed(5)
    first, second = maker(tiles, generator), maker(tiles, generator)
    again = maker(tiles, torch.Generator().manual_seed(5))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_one_tile_twice_in_a_batch_gives_two_views():
    tiles = random_tiles(1, 32, 32).repeat(2, 1, 1, 1)
    views = ViewMaker(ViewSettings(), image_size_px=32)(tiles, torch.Generator().manual_seed(0))
    assert (views[0] - views[1]).abs().mean() > 0.1


def test_pieces_do_not_show(monkeypatch):
    tiles = random_tiles(7, 32, 32)
    maker = ViewMaker(EVERYTHING, image_size_px=24)
    whole = maker(tiles, torch.Generator().manual_seed(5))
    monkeypatch.setattr("simtriplet.pretrain.views._PIECE_BYTES", {"cpu": 2 * 4 * 32 * 32 * 3})
    torch.testing.assert_close(maker(tiles, torch.Generator().manual_seed(5)), whole, atol=1e-6, rtol=0)


def test_without_augmentation_a_view_is_the_normalised_tile():
    still = ViewSettings(crop_scale=(1, 1), crop_ratio=(1, 1), horizontal_flip_p=0, jitter_p=0, grey_p=0, blur_p=0)
    tiles = random_tiles(3, 32, 32)
    views = ViewMaker(still, image_size_px=32)(tiles, torch.Generator().manual_seed(0))
    torch.testing.assert_close(views, normalise(images_of(tiles), still), atol=1e-5, rtol=0)
