"""Views against torchvision's functions, sample by sample, with the parameters that were drawn."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from simtriplet.pretrain.colour import blend, jitter, jitter_mixed, luminance, mean_grey, shift_hue
from simtriplet.pretrain.resampling import (
    blur,
    blur_mixed,
    blur_radius,
    blur_weights,
    crop_and_resize,
    crop_matrix,
    resample,
)
from simtriplet.pretrain.settings import ViewSettings
from simtriplet.pretrain.views import ViewMaker, normalise

EVERYTHING = ViewSettings(rotations90=True, vertical_flip_p=0.5)
ORDERS = [(order, gap) for order in itertools.permutations(range(3)) for gap in range(4)]


FACTORS = torch.tensor([1.4, 0.6, 1.4])


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


@pytest.mark.parametrize("size", [16, 24, 40])
def test_a_crop_on_bytes_is_torchvisions_bit_for_bit_and_half_a_level_from_the_matrices(size):
    tiles = random_tiles(1, 33, 47)
    for top, left, height, width in ((0, 2, 33, 45), (7, 11, 5, 9), (1, 30, 32, 17), (0, 0, 33, 47), (3, 3, 1, 1)):
        got = crop_and_resize(tiles[0], top=top, left=left, height=height, width=width, size_px=size)
        wanted = tv.resized_crop(tiles[0].permute(2, 0, 1), top, left, height, width, size=[size, size], antialias=True)
        assert torch.equal(got[0], wanted)
        rows, columns = (
            crop_matrix(torch.tensor([start]), torch.tensor([length]), torch.tensor([False]), in_px=px, out_px=size)
            for start, length, px in ((top, height, 33), (left, width, 47))
        )
        # both axes round, each by up to half a level, and the weights have 15 bits
        torch.testing.assert_close(got.float(), resample(tiles.float(), rows, columns), atol=1.05, rtol=0)


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


SIGMAS = torch.tensor([0.0, 0.1, 1.3, 2.0])


def test_blur_is_torchvisions_with_a_width_per_sample_and_nothing_at_width_0():
    images = images_of(random_tiles(4, 32, 32))
    radius = blur_radius(2.0, 32)
    assert radius == 6
    got = blur_mixed(images, blur_weights(SIGMAS, radius))
    assert torch.equal(got[0], images[0])
    for i in (1, 2, 3):
        wanted = tv.gaussian_blur(images[i], [2 * radius + 1] * 2, [float(SIGMAS[i])] * 2)
        torch.testing.assert_close(got[i], wanted, atol=2e-6, rtol=0)


def test_blur_of_samples_that_share_a_width_is_the_same():
    images = images_of(random_tiles(4, 32, 32))
    weights = blur_weights(SIGMAS, 6)
    many = blur_mixed(images, weights)
    for i in range(4):
        torch.testing.assert_close(blur(images[i : i + 1], weights[i].tolist())[0], many[i], atol=1e-6, rtol=0)


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 2), st.integers(7, 20))
def test_a_blur_keeps_a_flat_image_and_is_the_same_mirrored(sigma, size):
    flat, image = torch.full((1, 3, size, size), 0.7), images_of(random_tiles(1, size, size))
    weights = blur_weights(torch.tensor([sigma]), blur_radius(sigma, size))[0].tolist()
    torch.testing.assert_close(blur(flat, weights), flat)
    torch.testing.assert_close(blur(image.flip(3), weights).flip(3), blur(image, weights))


@pytest.mark.parametrize(
    ("other", "function"),
    [
        (lambda _: None, tv.adjust_brightness),
        (mean_grey, tv.adjust_contrast),
        (luminance, tv.adjust_saturation),
    ],
    ids=["brightness", "contrast", "saturation"],
)
def test_blends_are_torchvisions_with_a_factor_per_sample(other, function):
    images = images_of(random_tiles(4, 20, 20))
    factors = torch.tensor([0.0, 0.6, 1.0, 1.4])
    got = blend(images, other(images), factors)
    for i, factor in enumerate(factors.tolist()):
        torch.testing.assert_close(got[i], function(images[i], factor), atol=1e-6, rtol=0)
        torch.testing.assert_close(blend(images, other(images), factor)[i], got[i], atol=1e-6, rtol=0)


def test_hue_is_torchvisions_also_on_grey_and_saturated_pixels():
    images = images_of(random_tiles(5, 20, 20))
    images[:, :, 0, :] = 0.5
    images[:, :, 1, :] = torch.tensor([1.0, 0.0, 0.0])[:, None]
    images[:, :, 2, :] = torch.tensor([0.0, 1.0, 1.0])[:, None]
    corners = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=3)))  # all ties of the channels
    images[:, :, 3, :] = corners[:20].T
    images[:, :, 4, :7] = corners[20:].T
    images[:, :, 5, :] = 1e-30 * images[:, :, 6, :]
    turns = torch.tensor([-0.5, -0.1, 0.0, 0.07, 0.5])
    got = shift_hue(images, turns)
    for i, turn in enumerate(turns.tolist()):
        torch.testing.assert_close(got[i], tv.adjust_hue(images[i], turn), atol=5e-6, rtol=0)
        torch.testing.assert_close(shift_hue(images, turn)[i], got[i], atol=1e-6, rtol=0)


def test_grey_is_torchvisions_and_the_mean_is_its_mean():
    images = images_of(random_tiles(2, 8, 8))
    wanted = tv.rgb_to_grayscale(images)
    torch.testing.assert_close(luminance(images), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(mean_grey(images), wanted.mean(dim=(2, 3), keepdim=True), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def jittered_one_by_one() -> tuple[torch.Tensor, torch.Tensor]:
    """24 images, and what torchvision's functions make of them in the 24 orders."""
    images = images_of(random_tiles(24, 12, 12))
    made = [_jitter_one(image, FACTORS, order, gap, 0.1) for image, (order, gap) in zip(images, ORDERS, strict=True)]
    return images, torch.stack(made)


def test_mixed_jitter_keeps_each_samples_own_order(jittered_one_by_one):
    images, wanted = jittered_one_by_one
    got = jitter_mixed(
        images,
        factors=FACTORS.repeat(24, 1),
        order=torch.tensor([order for order, _ in ORDERS]),
        hue_gap=torch.tensor([gap for _, gap in ORDERS]),
        hue=torch.full((24,), 0.1),
    )
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert len({tuple(image.flatten()[:50].tolist()) for image in got - images}) == 24


def test_jitter_of_samples_that_share_an_order_does_the_same(jittered_one_by_one):
    images, wanted = jittered_one_by_one
    for i, (order, gap) in enumerate(ORDERS):
        got = jitter(images[i : i + 1], factors=FACTORS.tolist(), order=order, hue_gap=gap, hue=0.1)
        torch.testing.assert_close(got[0], wanted[i], atol=1e-5, rtol=0)


def test_jitter_that_was_not_drawn_changes_nothing():
    images = images_of(random_tiles(2, 12, 12))
    assert jitter(images, factors=[1.0, 1.0, 1.0], order=(2, 0, 1), hue_gap=1, hue=0.0) is images
    order, gap = torch.tensor([[0, 1, 2], [2, 0, 1]]), torch.tensor([1, 3])
    mixed = jitter_mixed(images, factors=torch.ones(2, 3), order=order, hue_gap=gap, hue=torch.zeros(2))
    torch.testing.assert_close(mixed, images, atol=1e-6, rtol=0)


def _jitter_one(image, factors, order, gap, hue):
    blends = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    for rank, change in enumerate(order):
        if rank == gap:
            image = tv.adjust_hue(image, hue)
        image = blends[change](image, float(factors[change]))
    return tv.adjust_hue(image, hue) if gap == 3 else image


@pytest.mark.parametrize("way", ["apply_one_by_one", "apply_at_once"])
@pytest.mark.parametrize(("height", "width", "size"), [(40, 40, 24), (24, 24, 32), (30, 44, 24)])
def test_a_whole_view_is_torchvisions_functions_one_after_the_other(height, width, size, way):
    """One by one from the uint8 tile, at once from the tile as floats: that is where the two ways differ."""
    tiles = random_tiles(24, height, width)
    maker = ViewMaker(EVERYTHING, image_size_px=size)
    parameters = maker.draw(tiles, torch.Generator().manual_seed(1))
    got = getattr(maker, way)(tiles, parameters)
    assert parameters.quarter_turns.unique().tolist() == [0, 1, 2, 3]
    assert not got.is_inference()  # a backward pass can follow
    images = tiles.permute(0, 3, 1, 2) if way == "apply_one_by_one" else images_of(tiles)
    for i, image in enumerate(images):
        torch.testing.assert_close(got[i], _view_one(image, parameters, i, size), atol=2e-4, rtol=0)


def _view_one(image, parameters, i, size):
    one = {name: values[i] for name, values in parameters._asdict().items()}
    box = [int(one[name]) for name in ("top", "left", "height", "width")]
    image = tv.to_dtype(tv.resized_crop(image, *box, size=[size, size], antialias=True), torch.float32, scale=True)
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


@pytest.mark.parametrize("crop", [{}, {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}], ids=["crops", "whole"])
def test_both_ways_make_the_same_views_up_to_the_rounding_of_the_crop(monkeypatch, crop):
    settings = dataclasses.replace(EVERYTHING, stain_p=0.5, stain=0.1, **crop)
    tiles, maker = random_tiles(25, 40, 40), ViewMaker(settings, image_size_px=40)
    parameters = maker.draw(tiles, torch.Generator().manual_seed(5))
    one_by_one = maker.apply_one_by_one(tiles, parameters)
    assert torch.equal(maker.apply(tiles, parameters), one_by_one)
    for piece_bytes in (1, 2 * 4 * 40 * 40 * 3, 1 << 29):
        monkeypatch.setattr("simtriplet.pretrain.views._PIECE_BYTES", piece_bytes)
        apart = (maker.apply_at_once(tiles, parameters) - one_by_one).abs()
        if crop:
            assert apart.max() < 2e-4
        else:
            assert apart.mean() < 0.01  # half a level is 0.009 after the normalisation
            assert apart.max() < 0.2  # where the stain jitter or the contrast stretches dark pixels


def test_without_augmentation_a_view_is_the_normalised_tile():
    still = ViewSettings(crop_scale=(1, 1), crop_ratio=(1, 1), horizontal_flip_p=0, jitter_p=0, grey_p=0, blur_p=0)
    tiles = random_tiles(3, 32, 32)
    views = ViewMaker(still, image_size_px=32)(tiles, torch.Generator().manual_seed(0))
    torch.testing.assert_close(views, normalise(images_of(tiles), still), atol=1e-5, rtol=0)
