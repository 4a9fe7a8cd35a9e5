"""Which neighbours the features being learnt keep, against float64; and what choosing them leaves alone."""

import numpy as np
import pytest
import torch
from torch import nn

from simtriplet.pretrain.cohort import Cohort
from simtriplet.pretrain.regate import NeighbourRegate, RunPlace, edge_similarity, kept_edges
from simtriplet.pretrain.tiles import open_tiles

CPU = torch.device("cpu")


class QuadrantColours(nn.Module):
    """Mean colour of the four quarters of an image: (n, 12) features that float64 can follow."""

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.fixture
def stores(store_factory):
    """A slide, one of corners that nothing joins, and another slide."""
    corners = np.isin(np.arange(9), [0, 2, 6, 8])
    return [store_factory("a"), store_factory("b", rows=3, cols=3, keep=corners), store_factory("c", rows=3, seed=1)]


def make_regate(stores, settings, *, tier="device", steps_per_epoch=3, precision="fp32"):
    cohort = Cohort(stores, neighbours="spatial")
    draw = cohort.neighbour_draw(CPU)
    source = open_tiles(cohort.numbering, device=CPU, tier=tier)
    return NeighbourRegate(
        settings,
        neighbours=draw,
        source=source,
        offsets=cohort.numbering.offsets.tolist(),
        steps_per_epoch=steps_per_epoch,
        place=RunPlace(CPU, precision, torch.contiguous_format),
    )


def mask_of(regate) -> np.ndarray:
    return np.unpackbits(regate.neighbours.state().numpy(), count=regate.neighbours.n_edges).astype(bool)


def similarities_numpy(stores, settings) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and anchor of every edge, in float64."""
    mean, std = np.array(settings.views.mean), np.array(settings.views.std)
    cosines, anchors, first = [], [], 0
    for store in stores:
        pixels = (store.images.read(np.arange(len(store))) / 255 - mean) / std
        features = pixels.reshape(len(store), 2, 16, 2, 16, 3).mean((2, 4)).reshape(len(store), -1)
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        graph = store.neighbours()
        rows = np.repeat(np.arange(len(store)), graph.degrees)
        cosines.append((unit[rows] * unit[graph.indices]).sum(1))
        anchors.append(rows + first)
        first += len(store)
    return np.concatenate(cosines), np.concatenate(anchors)


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("tier", ["device", "stream"])
def test_the_least_similar_pairs_of_the_cohort_are_left_out(stores, make_settings, tier, quantile):
    settings = make_settings("data.regate_every_epochs=1", f"data.regate_quantile={quantile}")
    regate = make_regate(stores, settings, tier=tier)
    regate.choose(QuadrantColours())
    cosine, anchors = similarities_numpy(stores, settings)
    n_dropped = int(quantile * len(cosine))
    best = np.zeros(46)
    np.maximum.at(best, anchors, cosine)
    threshold = np.sort(cosine)[n_dropped]
    kept = mask_of(regate)
    # both edges of a pair are equally similar, up to the last bit
    sure = np.abs(cosine - threshold) > 1e-6
    assert sure.mean() > 0.95
    np.testing.assert_array_equal(kept[sure], ((cosine >= threshold) | (cosine >= best[anchors] - 1e-9))[sure])
    assert set(anchors[kept]) == set(anchors)
    if not quantile:
        assert kept.all()
    else:
        assert 0 < (~kept).sum() <= n_dropped


def test_each_tile_keeps_its_most_similar_neighbour_at_least(stores, make_settings):
    settings = make_settings("data.regate_every_epochs=1", "data.regate_quantile=0.999")
    regate = make_regate(stores, settings)
    regate.choose(QuadrantColours())
    cosine, anchors = similarities_numpy(stores, settings)
    kept = mask_of(regate)
    assert np.bincount(anchors[kept], minlength=46)[:24].min() == 1
    for anchor in np.unique(anchors):
        row = anchors == anchor
        assert kept[row][cosine[row].argmax()]
    ids = torch.arange(46).repeat(20)
    drawn = regate.neighbours.draw(ids, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[(ids >= 24) & (ids < 28)], ids[(ids >= 24) & (ids < 28)])
    assert (drawn != ids)[(ids < 24) | (ids >= 28)].all()


def test_draws_after_a_choice_are_uniform_over_what_is_left(stores, make_settings):
    regate = make_regate(stores, make_settings("data.regate_every_epochs=1", "data.regate_quantile=0.4"))
    regate.choose(QuadrantColours())
    anchors, others = (ids.numpy() for ids in regate.neighbours.edges(0, 46))
    kept = mask_of(regate)
    assert len(np.unique(np.bincount(anchors[kept]))) > 2
    for tile in (7, 8, 15, 33):
        left = others[kept & (anchors == tile)]
        drawn = regate.neighbours.draw(torch.full((6000,), tile), torch.Generator().manual_seed(tile)).numpy()
        counts = np.bincount(drawn, minlength=46)
        assert set(np.flatnonzero(counts)) == set(left)
        expected = 6000 / len(left)
        assert ((counts[left] - expected) ** 2 / expected).sum() < 24.3  # chi-square, at most 7 degrees, p = 0.001


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_choosing_leaves_network_batch_statistics_and_random_numbers_alone(stores, make_settings, precision):
    class Restless(nn.Module):
        def forward(self, x):
            return x + 0.01 * torch.rand_like(x)

    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Dropout(0.5), Restless(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    backbone.train()
    backbone[1].eval()  # frozen by its owner
    backbone(torch.rand(4, 3, 32, 32)).sum().backward()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in backbone.parameters()]
    modes = [module.training for module in backbone.modules()]
    seen = []
    backbone.register_forward_hook(lambda module, args, output: seen.append((module.training, output.requires_grad)))
    regate = make_regate(stores, make_settings("data.regate_every_epochs=1"), precision=precision)
    state = torch.get_rng_state()
    regate.choose(backbone)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in backbone.modules()] == modes == [True, True, False, True, True, True, True]
    assert set(seen) == {(False, False)}
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    for parameter, gradient in zip(backbone.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_a_backbone_that_fails_is_left_in_training(stores, make_settings):
    class Failing(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError

    backbone = Failing()
    with pytest.raises(ZeroDivisionError):
        make_regate(stores, make_settings("data.regate_every_epochs=1")).choose(backbone)
    assert backbone.training


def test_tiles_are_seen_at_the_size_of_the_views(store_factory, make_settings):
    seen = []

    class Watching(QuadrantColours):
        def forward(self, images):
            seen.append(tuple(images.shape))
            return super().forward(images)

    regate = make_regate([store_factory(size_px=48)], make_settings("data.regate_every_epochs=1"))
    regate.choose(Watching())
    assert seen == [(8, 3, 32, 32)] * 3


def test_slides_without_tiles_or_pairs_do_no_harm(store_factory, make_settings):
    empty = store_factory("b", keep=np.zeros(24, bool))
    settings = make_settings("data.regate_every_epochs=1", "data.regate_quantile=0.5")
    regate = make_regate([store_factory("a"), empty, store_factory("c", rows=1, cols=1)], settings)
    regate.choose(QuadrantColours())
    assert 0 < mask_of(regate).sum() < regate.neighbours.n_edges
    alone = make_regate([store_factory("d", rows=3, cols=3, keep=np.isin(np.arange(9), [0, 8]))], settings)
    alone.choose(QuadrantColours())
    assert alone.neighbours.draw(torch.arange(2), torch.Generator()).tolist() == [0, 1]


def test_it_is_due_after_every_k_epochs_and_never_before_the_first(stores, make_settings):
    regate = make_regate(stores, make_settings("data.regate_every_epochs=2"), steps_per_epoch=3)
    assert [step for step in range(20) if regate.is_due(step)] == [6, 12, 18]


def test_similarity_is_the_cosine_in_blocks_of_any_size(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features = nn.functional.normalize(torch.randn(30, 7, generator=generator), dim=1)
    anchors, others = torch.randint(0, 30, (2, 200), generator=generator)
    x = features.double().numpy()
    expected = (x[anchors] * x[others]).sum(1)
    whole = edge_similarity(features, anchors, others)
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    monkeypatch.setattr("simtriplet.pretrain.regate._BLOCK_NUMBERS", 21)
    torch.testing.assert_close(edge_similarity(features, anchors, others), whole)


def test_features_that_are_not_finite_are_like_none():
    features = torch.tensor([[1.0, 0.0], [torch.nan, 0.0], [torch.inf, 0.0]])
    assert edge_similarity(features, torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2])).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("quantile", "kept"),
    [(0.0, [1, 1, 1, 1]), (0.25, [1, 1, 0, 1]), (0.5, [1, 1, 0, 0]), (0.6, [1, 1, 0, 0]), (0.75, [1, 1, 0, 0])],
)
def test_a_quantile_drops_that_share_and_ties_stay(quantile, kept):
    similarity = torch.tensor([0.9, 0.9, 0.1, 0.5])
    assert kept_edges(similarity, torch.zeros(4, dtype=torch.bool), quantile).int().tolist() == kept
    assert kept_edges(similarity, torch.tensor([False, False, True, False]), quantile)[2]
