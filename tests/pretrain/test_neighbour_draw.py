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


def test_a_store_without_an_index_is_refused(store_factory):
    with pytest.raises(NeighbourError, match="simtriplet index"):
        Cohort([store_factory(index=False)], neighbours="spatial")
    assert Cohort([store_factory("b", index=False)], neighbours=None).neighbour_draw(CPU) is None
