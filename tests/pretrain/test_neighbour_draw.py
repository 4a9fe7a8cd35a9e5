import numpy as np
import pytest
import torch

from simtriplet.pretrain.cohort import Cohort
from simtriplet.pretrain.neighbours import NeighbourDraw
from simtriplet.wsi.errors import NeighbourError

CPU = torch.device("cpu")


@pytest.fixture
def draw(store_factory) -> NeighbourDraw:
    """Two lattices of 3 x 3 (tiles 0..8 and 9..17); the second has lost all but its corners, which nothing joins."""
    corners = np.isin(np.arange(9), [0, 2, 6, 8])
    stores = [store_factory("a", rows=3, cols=3), store_factory("b", rows=3, cols=3, keep=corners)]
    return NeighbourDraw([store.neighbours() for store in stores], device=CPU)


def draws_of(draw: NeighbourDraw, tile: int, n: int, seed: int = 0) -> torch.Tensor:
    return draw.draw(torch.full((n,), tile), torch.Generator().manual_seed(seed))


def test_neighbours_are_drawn_uniformly(draw):
    counts = draws_of(draw, 4, 8000).bincount(minlength=13)
    assert counts.nonzero()[:, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    expected = 1000.0
    around = counts[counts > 0].double()
    assert ((around - expected).square() / expected).sum() < 24.3  # chi-square, 7 degrees of freedom, p = 0.001


def test_a_corner_has_three_neighbours(draw):
    assert draws_of(draw, 8, 300).unique().tolist() == [4, 5, 7]


def test_the_relation_drawn_from_is_symmetric(draw):
    reached = {(tile, int(other)) for tile in range(13) for other in draws_of(draw, tile, 400)}
    assert {(b, a) for a, b in reached} == reached


def test_isolated_tiles_are_counted_and_are_their_own_neighbour(draw):
    assert draw.n_isolated == 4
    assert draw.connected_ids.tolist() == list(range(9))
    for tile in range(9, 13):
        assert draws_of(draw, tile, 5).tolist() == [tile] * 5


def test_draws_never_cross_slides(store_factory):
    stores = [store_factory("a"), store_factory("b", seed=1)]
    draw = NeighbourDraw([store.neighbours() for store in stores], device=CPU)
    ids = torch.arange(48).repeat(50)
    assert torch.equal(draw.draw(ids, torch.Generator().manual_seed(0)) // 24, ids // 24)


def test_draws_are_seeded_and_fresh_each_time(draw):
    generator = torch.Generator().manual_seed(1)
    ids = torch.arange(9).repeat(10)
    first, second = draw.draw(ids, generator), draw.draw(ids, generator)
    assert torch.equal(first, draw.draw(ids, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, second)


def edge_weights(store) -> np.ndarray:
    """Weight of the edge from a to b: a + b / 100, so that every edge has its own."""
    graph = store.neighbours()
    return (np.repeat(np.arange(len(store)), graph.degrees) + graph.indices / 100).astype(np.float32)


def test_each_pair_comes_with_its_own_weight_and_an_isolated_tile_with_one(store_factory):
    corners = np.isin(np.arange(9), [0, 2, 6, 8])
    stores = [store_factory("a", rows=2, cols=3), store_factory("b", rows=3, cols=3, keep=corners)]
    stores.append(store_factory("c", rows=3, cols=2))
    weights = [edge_weights(store) for store in stores]
    draw = NeighbourDraw([store.neighbours() for store in stores], device=CPU, weights=weights)
    ids = torch.arange(16).repeat(40)
    neighbours, drawn = draw.draw_pairs(ids, torch.Generator().manual_seed(0))
    first = torch.tensor([0] * 6 + [6] * 4 + [10] * 6)[ids]
    expected = (ids - first) + (neighbours - first) / 100
    alone = (ids >= 6) & (ids < 10)
    torch.testing.assert_close(drawn, torch.where(alone, 1.0, expected.float()))
    assert drawn.dtype == torch.float32


def test_weights_do_not_change_who_is_drawn(draw, store_factory):
    stores = [store_factory("c", rows=3, cols=3)]
    graphs = [store.neighbours() for store in stores]
    weighted = NeighbourDraw(graphs, device=CPU, weights=[edge_weights(store) for store in stores])
    ids = torch.full((8000,), 4)
    neighbours, weights = weighted.draw_pairs(ids, torch.Generator().manual_seed(0))
    assert torch.equal(neighbours, NeighbourDraw(graphs, device=CPU).draw(ids, torch.Generator().manual_seed(0)))
    assert weights.unique().numel() == 8
    assert draw.draw_pairs(ids, torch.Generator()).weights is None


def keep_some(draw: NeighbourDraw, n_tiles: int, kept: set[tuple[int, int]]) -> torch.Tensor:
    anchors, others = draw.edges(0, n_tiles)
    mask = torch.tensor([pair in kept for pair in zip(anchors.tolist(), others.tolist(), strict=True)])
    draw.keep(mask)
    return mask


def test_only_kept_edges_are_drawn_along_and_all_alike(draw):
    kept = {(4, 0), (4, 3), (4, 5), (4, 7), (8, 7)}
    keep_some(draw, 13, kept)
    counts = draws_of(draw, 4, 8000).bincount(minlength=13)
    assert counts.nonzero()[:, 0].tolist() == [0, 3, 5, 7]
    around = counts[counts > 0].double()
    assert ((around - 2000).square() / 2000).sum() < 16.3  # chi-square, 3 degrees of freedom, p = 0.001
    assert draws_of(draw, 8, 50).unique().tolist() == [7]
    assert draws_of(draw, 7, 50).unique().tolist() == [7]  # kept from 4 to 7, not from 7 to 4
    assert draws_of(draw, 12, 5).tolist() == [12] * 5


def test_kept_edges_keep_their_weights(store_factory):
    store = store_factory("c", rows=3, cols=3)
    draw = NeighbourDraw([store.neighbours()], device=CPU, weights=[edge_weights(store)])
    mask = torch.rand(draw.n_edges, generator=torch.Generator().manual_seed(3)) < 0.4
    draw.keep(mask)
    ids = torch.arange(9).repeat(60)
    neighbours, weights = draw.draw_pairs(ids, torch.Generator().manual_seed(0))
    alone = neighbours == ids
    torch.testing.assert_close(weights, torch.where(alone, 1.0, (ids + neighbours / 100).float()))
    anchors, others = draw.edges(0, 9)
    drawn = {(a, b) for a, b in zip(ids.tolist(), neighbours.tolist(), strict=True) if a != b}
    assert drawn == set(zip(anchors[mask].tolist(), others[mask].tolist(), strict=True))


def test_what_is_kept_goes_through_a_checkpoint(draw, store_factory):
    assert len(draw.state()) == 0
    mask = keep_some(draw, 13, {(a, b) for a in range(9) for b in range(9) if (a + b) % 3})
    assert 0 < mask.sum() < len(mask)
    assert (draw.state().dtype, len(draw.state())) == (torch.uint8, -(-len(mask) // 8))
    corners = np.isin(np.arange(9), [0, 2, 6, 8])
    stores = [store_factory("c", rows=3, cols=3), store_factory("d", rows=3, cols=3, keep=corners)]
    other = NeighbourDraw([store.neighbours() for store in stores], device=CPU)
    other.restore(draw.state())
    ids = torch.arange(13).repeat(30)
    drawn = draw.draw(ids, torch.Generator().manual_seed(0))
    assert torch.equal(other.draw(ids, torch.Generator().manual_seed(0)), drawn)
    other.restore(torch.zeros(0, dtype=torch.uint8))
    assert not torch.equal(other.draw(ids, torch.Generator().manual_seed(0)), drawn)


def test_a_mask_of_another_index_is_refused(draw):
    with pytest.raises(ValueError, match="must be 40"):
        draw.keep(torch.ones(41, dtype=torch.bool))


def test_a_store_without_an_index_is_refused(store_factory):
    with pytest.raises(NeighbourError, match="simtriplet index"):
        Cohort([store_factory(index=False)], neighbours="spatial")
    assert Cohort([store_factory("b", index=False)], neighbours=None).neighbour_draw(CPU) is None
