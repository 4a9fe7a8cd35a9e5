"""The distributions behind the views, on 20,000 draws."""

import math

import pytest
import torch

from simtriplet.pretrain.settings import ViewSettings
from simtriplet.pretrain.view_parameters import ViewNumbers, ViewParameters, draw_view_parameters

N = 20_000
FOUR_SIGMA = 4 * math.sqrt(0.25 / N)


def draw(settings: ViewSettings, seed: int = 0, size: int = 96) -> ViewParameters:
    generator = torch.Generator().manual_seed(seed)
    return draw_view_parameters(N, tile_height=size, tile_width=size, settings=settings, generator=generator)


@pytest.fixture(scope="module")
def drawn() -> ViewParameters:
    return draw(ViewSettings(rotations90=True, vertical_flip_p=0.3))


def test_crops_lie_inside_the_tile_and_have_the_scales_and_ratios_asked_for(drawn):
    assert (drawn.top >= 0).all()
    assert (drawn.top + drawn.height <= 96).all()
    assert (drawn.left + drawn.width <= 96).all()
    share = drawn.height * drawn.width / 96**2
    assert 0.19 < share.min() < 0.21
    assert 0.98 < share.max() <= 1
    ratio = drawn.width / drawn.height
    assert 0.73 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 1.37


def test_crops_are_distributed_as_torchvisions(drawn):
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.zeros(3, 96, 96)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = torch.stack([drawn.top, drawn.left, drawn.height, drawn.width], dim=1).float()
    spread = theirs.float().std(0)
    assert ((ours.mean(0) - theirs.float().mean(0)).abs() < 4 * spread / math.sqrt(4000)).all()
    assert ((ours.std(0) / spread - 1).abs() < 0.05).all()


@pytest.mark.parametrize(("name", "share"), [("flip_x", 0.5), ("flip_y", 0.3), ("grey", 0.2)])
def test_coins_fall_as_often_as_asked(drawn, name, share):
    assert abs(getattr(drawn, name).float().mean().item() - share) < FOUR_SIGMA


def test_jitter_is_drawn_for_four_in_five_and_within_its_ranges(drawn):
    touched = (drawn.factors != 1).any(dim=1)
    assert abs(touched.float().mean().item() - 0.8) < FOUR_SIGMA
    assert torch.equal(touched, drawn.hue != 0)
    factors, hue = drawn.factors[touched], drawn.hue[touched]
    assert ((factors.amin(0) - 0.6).abs() < 0.002).all()
    assert ((factors.amax(0) - 1.4).abs() < 0.002).all()
    assert ((factors.mean(0) - 1).abs() < 0.01).all()
    assert hue.abs().max() <= 0.1
    assert abs(hue.mean().item()) < 0.002


def test_all_24_orders_are_equally_likely(drawn):
    code = ((drawn.order[:, 0] * 3 + drawn.order[:, 1]) * 4 + drawn.hue_gap).bincount()
    counts = code[code > 0].double()
    expected = N / 24
    assert len(counts) == 24
    assert ((counts - expected).square() / expected).sum() < 49.7  # chi-square, 23 degrees of freedom, p = 0.001


def test_blur_is_drawn_for_half_and_within_its_range(drawn):
    blurred = drawn.blur_sigma > 0
    assert abs(blurred.float().mean().item() - 0.5) < FOUR_SIGMA
    sigma = drawn.blur_sigma[blurred]
    assert 0.1 <= sigma.min() < 0.11
    assert 1.99 < sigma.max() <= 2
    assert abs(sigma.mean().item() - 1.05) < 0.03


def test_quarter_turns_are_uniform_and_off_by_default(drawn):
    counts = drawn.quarter_turns.bincount().double()
    assert ((counts - N / 4).square() / (N / 4)).sum() < 16.3  # chi-square, 3 degrees of freedom, p = 0.001
    assert draw(ViewSettings()).quarter_turns.sum() == 0


def test_samples_do_not_share_parameters(drawn):
    assert len(drawn.factors[:, 0].unique()) > 0.7 * N
    assert abs(torch.corrcoef(torch.stack([drawn.factors[:, 0], drawn.factors[:, 1]]))[0, 1].item()) < 0.6


def test_a_crop_that_never_fits_is_the_whole_tile():
    settings = ViewSettings(crop_scale=(1.0, 1.0), crop_ratio=(0.75, 4 / 3))
    drawn = draw(settings)
    whole = (drawn.height == 96) & (drawn.width == 96)
    assert whole.float().mean() > 0.9
    assert (drawn.top[whole] == 0).all()


def test_the_same_seed_draws_the_same():
    for one, other in zip(draw(ViewSettings(), 3), draw(ViewSettings(), 3), strict=True):
        assert torch.equal(one, other)


def test_stain_jitter_is_drawn_as_often_as_asked_and_within_its_ranges():
    drawn = draw(ViewSettings(stain_p=0.7, stain=0.2))
    assert abs(drawn.stained.float().mean().item() - 0.7) < FOUR_SIGMA
    for values, centre in ((drawn.stain_scale, 1), (drawn.stain_shift, 0)):
        assert ((values.amin(0) - (centre - 0.2)).abs() < 0.001).all()
        assert ((values.amax(0) - (centre + 0.2)).abs() < 0.001).all()
        assert ((values.mean(0) - centre).abs() < 0.005).all()
        assert abs(torch.corrcoef(values.T)[0, 1].item()) < 0.03


def test_without_stain_jitter_the_generator_is_where_it_was_before_there_was_one():
    """Numbers of the version that had none: a run begun with it goes on with the same views."""
    generator = torch.Generator().manual_seed(3)
    drawn = draw_view_parameters(2, tile_height=96, tile_width=96, settings=ViewSettings(), generator=generator)
    assert not drawn.stained.any()
    assert torch.equal(drawn.stain_scale, torch.ones(2, 3))
    plain = torch.Generator().manual_seed(3)
    torch.rand(2 * (10 + 10 + 1 + 3 + 1 + 1 + 2 + 2 + 1 + 3 + 1 + 1 + 1), generator=plain)
    assert torch.rand(1, generator=generator) == torch.rand(1, generator=plain)


def test_rows_are_the_same_parameters_as_plain_numbers(drawn):
    assert ViewNumbers._fields == ViewParameters._fields
    rows = drawn.rows()
    assert len(rows) == N
    for name, values in drawn._asdict().items():
        assert torch.equal(torch.tensor([getattr(row, name) for row in rows]), values), name
    assert [type(value) for value in rows[0][:5]] == [int, int, int, int, bool]
